"""From learned tokens to a pack: where it is kept, the checks before and after writing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import Any

import torch

from omnipersona_cli import __version__
from omnipersona_cli.backend import Backend, ConceptTokens, Prompt, is_hub_id
from omnipersona_cli.concepts.container import sweep_temporaries
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import (
    SUFFIX,
    Pack,
    PackHeader,
    Slot,
    read_header,
    read_pack,
    rewrite,
    write_pack,
)
from omnipersona_cli.concepts.upkeep import runs
from omnipersona_cli.config import cache_folder
from omnipersona_cli.engine.checkpoint import BEGUN, LEARNED, keep_beginning
from omnipersona_cli.engine.examine import PLACES
from omnipersona_cli.engine.material import Material, agreeing_facts
from omnipersona_cli.engine.optimise import Optimised
from omnipersona_cli.engine.page import check_page, wrote_page
from omnipersona_cli.engine.precision import format_of
from omnipersona_cli.engine.provenance import name_of_model
from omnipersona_cli.engine.report import Report
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import from_slot, named_tensors, slot_name, to_slot
from omnipersona_cli.errors import MissingError, PersonaError, ResourceError, UsageError, shell_word
from omnipersona_cli.hookspecs import Base
from omnipersona_cli.language.mentions import to_turn

PACK_ROOM = 1 << 20
"""Bytes that must be free where a pack is to be written."""

CACHE_HINT = "checkpoints go there; choose another place: export OMNIPERSONA_HOME=FOLDER"
PLACE_HINT = "choose another place: -o FILE, or export OMNIPERSONA_HOME=FOLDER"


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where what is learned is kept, and what besides it.

    ``library`` None is the user's; ``out`` writes the pack there instead. ``force`` replaces a
    concept of that name, and files. ``more`` goes on from the tokens of the concept that is in the
    library. ``resume`` takes up an interrupted run of the same inputs.
    ``previews`` is a folder for pictures painted at a fixed seed at every check; ``page`` an HTML
    file for the report card, with the photos in it. ``samples`` (0 to 4) pictures are painted for
    the card; None is 4, and 0 for an instant concept. ``header`` is that of the concept in the
    library where somebody read it before: what changes from then on is merged. Raises UsageError
    for another number of samples.
    """

    library: Library | None = None
    out: Path | None = None
    force: bool = False
    more: bool = False
    resume: bool = False
    previews: Path | None = None
    page: Path | None = None
    samples: int | None = None
    header: PackHeader | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and not 0 <= self.samples <= len(PLACES):
            raise UsageError(
                f"{self.samples} samples cannot be painted",
                hint=f"--samples takes 0 to {len(PLACES)}",
            )

    @property
    def chosen_library(self) -> Library:
        """The library, or the user's."""
        return Library() if self.library is None else self.library

    def begun(self, name: str) -> Keeping:
        """With the header as it is now, where nobody has read it and there is one."""
        if self.header is not None:
            return self
        with suppress(PersonaError):
            return replace(self, header=self.chosen_library.header(name))
        return self


@dataclass(frozen=True, kw_only=True)
class Before:
    """What was there when learning began.

    ``header`` is the concept's in the library, None where there was none; ``pack`` the one to which
    a slot is added, or whose slot is gone on from. ``refusal`` is the error to raise unless what is
    there was written by the very run that is resumed (`check_resumed`), which was cut before it was
    done.
    """

    header: PackHeader | None = None
    pack: Pack | None = None
    refusal: PersonaError | None = None


def check_places(keeping: Keeping) -> None:
    """Raises, before anything is learned, PersonaError where a file would be overwritten, and
    ResourceError where nothing could be written in the end."""
    if keeping.out is not None and not keeping.resume and (refusal := _out_taken(keeping)):
        raise refusal
    _check_place(keeping.chosen_library.folder if keeping.out is None else keeping.out.parent)
    _check_place(cache_folder(), hint=CACHE_HINT)
    if keeping.out is None:
        with keeping.chosen_library.changing():  # some file systems know no locks
            pass
    if keeping.page is not None:
        check_page(keeping.page, force=keeping.force or keeping.resume)
        _check_place(keeping.page.parent, hint="choose another place: --report FILE")
    if keeping.previews is not None:
        _check_place(keeping.previews, hint="choose another --previews")


def _check_place(folder: Path, *, hint: str = PLACE_HINT) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"\0" * PACK_ROOM)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror or error}",
            hint=hint,
        ) from error


def _out_taken(keeping: Keeping) -> PersonaError | None:
    if keeping.out is None or keeping.force or not keeping.out.exists():
        return None
    return PersonaError(f"{keeping.out} is already there", hint="name another file, or add --force")


def pack_before(keeping: Keeping, material: Material, backend: str) -> Before:
    """What is there of the concept: one that is gone on from, or a pack of the same photos, learned
    on other backends, that gets a slot more.

    Raises PersonaError for a concept of that name, or a file, that would be lost, UsageError for
    facts that do not go together with those of the pack.
    """
    name = material.name
    begun = keeping.resume and any(run.concept == name for run in runs())
    place = keeping.out or keeping.chosen_library.folder / f"{name}{SUFFIX}"
    if place.is_dir():
        raise PersonaError(
            f"{place} is a folder, and <{name}> would be kept there",
            hint=f"ls {shell_word(place)} shows what is in it; move it away, or name another",
        )
    sweep_temporaries(place.parent, place.name.__eq__)
    refusal = _out_taken(keeping)
    if refusal is not None and not begun:
        raise refusal
    library = keeping.chosen_library
    if keeping.more:
        header = keeping.header or library.header(name)
        return Before(header=header, pack=library.load(name), refusal=refusal)
    if keeping.out is not None:
        return Before(refusal=refusal)
    try:
        header = library.header(name)
    except MissingError:
        return Before(header=keeping.header if keeping.force else None)
    began = keeping.header or header
    same = header.provenance.get("digest") == material.photo_digest()
    learned_on = {str(slot.about.get("backend", "")) for slot in header.slots.values()}
    if same and backend not in learned_on:
        known = tuple(fact.text for fact in header.facts)
        agreeing_facts((*known, *(fact.text for fact in material.facts)), name, known=known)
        return Before(header=began, pack=library.load(name))
    if keeping.force:
        return Before(header=began)
    refusal = PersonaError(
        f"there is a concept <{name}> already",
        hint="--force replaces it, --more goes on from it; another --name keeps both",
    )
    if same and begun:
        return Before(header=began, pack=library.load(name), refusal=refusal)
    raise refusal


def check_resumed(before: Before, keeping: Keeping, folder: Path, slot: str) -> None:
    """Raises what `check_places` and `pack_before` held back, unless the run in ``folder`` wrote
    what is there."""
    if keeping.page is not None:
        check_page(keeping.page, force=keeping.force or wrote_page(folder, keeping.page))
    if before.refusal is None:
        return
    try:
        mine = read_header(folder / LEARNED)
        there = before.header
        if keeping.out is not None:
            there = read_header(keeping.out)
    except PersonaError:
        raise before.refusal from None
    if there is None or slot not in there.slots or slot not in mine.slots:
        raise before.refusal
    if there.slots[slot].hash != mine.slots[slot].hash:
        raise before.refusal


def since_it_began(before: Before, keeping: Keeping, name: str, folder: Path) -> Before:
    """``before`` as it was when the run in ``folder`` began: what happened to the concept from then
    on, also while the run lay interrupted, is merged when it ends.

    A run that begins keeps that in ``folder``. One that is taken up reads it, unless the concept
    was removed meanwhile.
    """
    library = keeping.chosen_library
    if keeping.resume:
        with suppress(PersonaError):
            began = read_header(folder / BEGUN)
            library.today(name, began)
            return replace(before, header=began)
    data = None
    if before.header is not None:
        with suppress(PersonaError):  # one that is gone is told of when this run ends
            now = library.today(name, before.header) or before.header
            data = rewrite(library.read_bytes(now.name), name=name, facts=before.header.facts)
    keep_beginning(data, folder)
    return before


def check_learned(
    backend: Backend, start: ConceptTokens, tokens: ConceptTokens, material: Material
) -> None:
    """PersonaError where the tokens make no difference: a pack that does nothing is not written."""
    if "understand" not in backend.info.tasks:
        moved = any(
            not torch.equal(a, b)
            for a, b in zip(
                named_tensors(start).values(), named_tensors(tokens).values(), strict=True
            )
        )
    else:
        turn = to_turn(f"is <{tokens.name}> here?")
        image = material.positives[0]
        with_it = backend.score(
            Prompt(turns=(turn,), concepts=(tokens,)), ("yes", "no"), image=image
        )
        without = backend.score(Prompt(turns=(turn,)), ("yes", "no"), image=image)
        moved = not torch.equal(with_it, without)
    if not moved:
        raise PersonaError(
            f"<{tokens.name}> makes no difference to {backend.info.name}: nothing was learned",
            hint="learn it with more --steps",
        )


def packed(
    backend: Backend,
    optimised: Optimised,
    material: Material,
    hyper: Hyperparameters,
    report: Report,
    before: Pack | None,
    revisions: Mapping[str, str],
    *,
    runs: Sequence[Mapping[str, Any]] = (),
    learned_from: Collection[str] = (),
) -> Pack:
    """The pack: a new one, or ``before`` with one slot more; after ``runs``, as the slot tells of
    them, and photos with the digests ``learned_from``, with the slot that was gone on from.
    ``revisions`` are those of the hub's repositories that the backend was opened from."""
    slot = slot_name(backend)
    tokens = optimised.tokens
    run = {
        "seed": hyper.seed,
        "steps": hyper.steps,
        "best_step": optimised.best_step,
        "photos": material.album.count,
    }
    about = {
        **({"revisions": dict(revisions)} if revisions else {}),
        "recipe": {
            "batch_size": hyper.batch_size,
            "learning_rate": hyper.learning_rate,
            "lambda_image": hyper.lambda_image,
            "lambda_edit": hyper.lambda_edit,
            "schedule": "cosine",
            "understand_tokens": tokens.und.shape[0],
            "generate_tokens": tokens.gen.shape[0],
            **({} if hyper.steps or runs else {"instant": True}),
            **({"fact_tokens": tokens.fact_tokens} if tokens.fact_tokens else {}),
            **({"depth": tokens.depth} if tokens.depth else {}),
            **({"quantize": kind} if (kind := format_of(backend)) else {}),
        },
        "seed": hyper.seed,
        "steps": hyper.steps + sum(int(earlier["steps"]) for earlier in runs),
        "best_step": optimised.best_step,
        **({"runs": [*runs, run]} if runs else {}),
        "photo_digests": sorted(
            {photo.digest for photo in material.album.learning if not photo.varied}
            | set(learned_from)
        ),
        "versions": {"omnipersona": __version__, "torch": str(torch.__version__)},
    }
    made = without_folders(to_slot(tokens, backend, about))
    figures = {
        "threshold": report.calibration.threshold,
        "recognition": report.calibration.balanced_accuracy,
        "auroc": report.calibration.auroc,
        "verdict": report.card.grade,
        "calibration": report.calibration.to_dict(),
        "memory": report.memory.to_dict(),
        "card": report.card.to_dict(named=False),
        "losses": {key: round(value, 6) for key, value in report.losses.items()},
    }
    pack = before or Pack(name=material.name)
    facts = {
        fact.text.casefold(): fact for fact in (*material.facts, *pack.facts)
    }  # as they were, in order
    pack = replace(
        pack,
        facts=tuple(facts.values()),
        slots={**pack.slots, slot: made},
        evals={**pack.evals, slot: figures},
        hash="",
    )
    if before is not None and not runs:
        return pack
    return replace(
        pack,
        class_word=material.class_word,
        kind=material.kind,
        provenance={
            **pack.provenance,
            "photos": material.album.count,
            "held_out": len(material.album.held_out),
            "negatives": report.negatives,
            "digest": material.photo_digest(),
        },
        date=datetime.now(UTC).date().isoformat(),
    )


def kept(
    pack: Pack,
    keeping: Keeping,
    backend: Backend,
    tokens: ConceptTokens,
    *,
    before: Before,
    folder: Path,
) -> tuple[Pack, Path, tuple[str, ...]]:
    """Write the pack, read it back, and see that ``tokens`` came through to the bit. Returns the
    pack that was read, where it lies, and a sentence where the concept changed meanwhile.

    The pack is first put into ``folder``, that of the run. Where it cannot be kept where it was
    wanted the error says so, and names the file: what was learned is never thrown away.
    """
    slot, large = slot_name(backend), bool(tokens.extra)
    beside: Path | None = folder / LEARNED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_pack(pack, folder / LEARNED, overwrite=True, large=large)
    except (OSError, ResourceError):  # the place where it is wanted may be on another disk
        beside = None
    try:
        note = ""
        if keeping.out is None:
            path, note = keeping.chosen_library.save_learned(
                pack, before=before.header, slots=(slot,), large=large
            )
        else:
            path = keeping.out
            overwrite = keeping.force or before.refusal is not None
            write_pack(pack, path, overwrite=overwrite, large=large)
        written = read_pack(path, norm_limit={slot: backend.norm_limit})
        check_kept(written, backend, tokens)
    except PersonaError as error:
        if beside is None:
            raise
        raise type(error)(
            f"{error}; what was learned is in {beside}",
            hint=f"op concepts import {shell_word(beside)}{_under(pack.name, keeping)}",
        ) from error
    return written, path, (note,) if note else ()


def _under(name: str, keeping: Keeping) -> str:
    """The option that imports a pack under a name that is free, where ``name`` is not."""
    taken: tuple[str, ...] = ()
    with suppress(PersonaError):
        taken = keeping.chosen_library.names()
    if name not in taken:
        return ""
    numbered = (f"{name[:28]}-{number}" for number in count(2))
    return f" --name {next(free for free in numbered if free not in taken)}"


def without_folders(slot: Slot) -> Slot:
    """``slot`` with its base as a name where that is a folder of this machine."""
    base = name_of_model(str(slot.about["base"]))
    if "/" in base and not all(map(is_hub_id, base.split("+"))):
        base = PurePath(base).name
    return replace(slot, about={**slot.about, "base": base})


def check_kept(pack: Pack, backend: Backend | Base, tokens: ConceptTokens) -> None:
    """What was read back is what was learned, to the bit."""
    kept = named_tensors(from_slot(pack, backend))
    for key, value in named_tensors(tokens).items():
        if not torch.equal(kept[key], value.cpu()):
            raise ResourceError(
                f"the pack of <{pack.name}> was not kept as it was written",
                hint="is the disk full? `df -h`, then add --resume",
            )
