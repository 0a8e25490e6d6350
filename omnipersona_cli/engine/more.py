"""Going on from a concept that is there: `learn` with `Keeping.more`.

Its tokens are the start, its facts stand before those that are given, and no photo that it was
learned from is held out. The concept stays as it is until the new tokens are in the library, and an
undo copy of it stays after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnipersona_cli.backend import Opening
from omnipersona_cli.concepts.library import NoConceptError
from omnipersona_cli.concepts.pack import Pack, PackHeader, read_header, read_pack, write_pack
from omnipersona_cli.engine.checkpoint import BEGUN, LEARNED, forget_checkpoints
from omnipersona_cli.engine.keep import Before, Keeping
from omnipersona_cli.engine.material import Subject
from omnipersona_cli.engine.request import choose
from omnipersona_cli.engine.settings import Settings
from omnipersona_cli.errors import MissingError, PersonaError, SlotError, UsageError, shell_word

MOST_RUNS = 100
"""The most runs that a slot goes on telling of, the last ones."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The concept that is gone on from, and the opening of the backend that it was learned on."""

    pack: Pack
    opening: Opening

    @property
    def learned_from(self) -> frozenset[str]:
        """The digests of the photos that its tokens on this backend were learned from."""
        return frozenset(
            digest
            for slot in self.pack.slots.values()
            if slot.about.get("backend") == self.opening.backend
            and isinstance(told := slot.about.get("photo_digests"), list)
            for digest in told
            if isinstance(digest, str)
        )


def earlier(
    subject: Subject, settings: Settings, keeping: Keeping, opening: Opening, backend: str = ""
) -> Earlier:
    """The concept in the library that ``subject`` names, on the open ``backend`` or the one that
    ``opening`` asks for, else on the one that it was learned on. Loads no model.

    Raises MissingError where there is none, SlotError where it was learned on other backends
    alone, UsageError for settings that do not go with it.
    """
    name, photos = subject.name, " ".join(shell_word(photo) for photo in subject.photos)
    if settings.instant:
        raise UsageError("going on takes at least 1 step", hint="--more --steps 100")
    try:
        pack = keeping.chosen_library.load(name)
    except NoConceptError as error:
        near = f"did you mean <{error.near}>? " if error.near else ""
        raise MissingError(
            f"there is no concept <{name}> to go on from",
            hint=f"{near}begin it: op learn {photos} --name {name}",
        ) from error
    wanted = backend or opening.backend
    learned_on = sorted({str(slot.about.get("backend", "?")) for slot in pack.slots.values()})
    if wanted and wanted not in learned_on:
        raise SlotError(
            f"<{name}> was learned on {', '.join(learned_on) or 'nothing'}: on {wanted} there is "
            "nothing to go on from",
            hint=f"begin it there: op learn {photos} --name {name} -b {wanted}",
        )
    return Earlier(pack=pack, opening=choose({name: pack}, replace(opening, backend=wanted)))


def with_what_is_known(subject: Subject, pack: Pack) -> Subject:
    """``subject`` with the facts of the concept, and what it is where that is not said anew."""
    return replace(
        subject,
        class_word=subject.class_word or pack.class_word,
        kind=subject.kind or pack.kind,
        known=tuple(fact.text for fact in pack.facts),
    )


def begun(before: Before, folder: Path, slot: str, *, resume: bool) -> Before:
    """What the run in ``folder`` goes on from, kept there as it begins. With ``resume`` it is what
    was kept then, if the concept in the library is still that, or what the run has made of it; else
    the run is forgotten, and another begins."""
    if before.header is None or before.pack is None:
        return before
    if resume:
        with suppress(PersonaError):
            kept = read_header(folder / BEGUN)
            if _same(kept, before.header, slot):
                return before
            if _same(read_header(folder / LEARNED), before.header, slot):
                return replace(before, header=kept, pack=read_pack(folder / BEGUN))
        forget_checkpoints(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_pack(before.pack, folder / BEGUN, overwrite=True, large=True)
    return before


def runs_of(pack: Pack, slot: str) -> list[Mapping[str, Any]]:
    """The runs of learning that a slot tells of, the first one first. The pack may be a stranger's:
    what is no whole number is 0."""
    about = pack.slots[slot].about
    told = about.get("runs")
    first = {**about, "photos": pack.provenance.get("photos")}
    runs = told if isinstance(told, list) else [first]
    return [
        {key: _whole(run.get(key)) for key in ("seed", "steps", "best_step", "photos")}
        for run in runs[-MOST_RUNS:]
        if isinstance(run, Mapping)
    ]


def _same(one: PackHeader, other: PackHeader, slot: str) -> bool:
    return (
        slot in one.slots and slot in other.slots and one.slots[slot].hash == other.slots[slot].hash
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
