"""Concepts as plain values: what a page or an agent is shown of a pack, and what it may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from omnipersona_cli.concepts.card import advice_in, doubts_in, figures_in, grade_in
from omnipersona_cli.concepts.container import RawTensor
from omnipersona_cli.concepts.facts import Fact, new_fact, with_fact
from omnipersona_cli.concepts.pack import Pack, PackHeader
from omnipersona_cli.errors import MissingError, PackError, PersonaError, UsageError
from omnipersona_cli.language.mentions import check_name
from op_serve.pictures import MOST_THUMBNAIL_PIXELS, opened
from op_serve.work import Shown, corrected

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = "media/thumbnail"
THUMBNAIL_SIDE = 192
"""Pixels of the longer side of a picture that is kept in a pack."""


def all_of(shown: Shown, backend: str) -> list[dict[str, Any]]:
    """Every concept that is served; one whose file is broken says so instead."""
    found = []
    for name in shown.names():
        try:
            found.append(as_data(shown.library.header(name), backend))
        except PersonaError as error:
            found.append({"name": name, "broken": str(error), "hint": error.hint})
    return found


def one_of(shown: Shown, name: str, backend: str) -> dict[str, Any]:
    """One concept. Raises MissingError, PackError."""
    shown.check([name])
    return as_data(shown.library.header(name), backend)


def as_data(header: PackHeader, backend: str) -> dict[str, Any]:
    """What a header tells. ``card`` is the report card of the slot that is served here, and
    ``here`` says whether there is one."""
    learned_on = {str(slot.about.get("backend", "")): name for name, slot in header.slots.items()}
    slot = learned_on.get(backend, "")
    figures = header.evals.get(slot, {})
    card = figures.get("card", {}) if isinstance(figures, dict) else {}
    card = card if isinstance(card, dict) else {}
    return {
        "name": header.name,
        "kind": header.class_word or header.kind,
        "facts": [{"text": fact.text, "source": fact.source} for fact in header.facts],
        "here": bool(slot),
        "backends": sorted(learned_on),
        "grade": grade_in(card),
        "figures": [list(row) for row in figures_in(card)],
        "advice": [*doubts_in(card), *advice_in(card)],
        "photos": header.provenance.get("photos"),
        "date": header.date,
        "hash": header.hash,
        "size": header.size,
        "thumbnail": THUMBNAIL in header.extra_tensors,
    }


def add_fact(shown: Shown, name: str, text: str) -> PackHeader:
    """One fact more; the same fact again changes nothing. Raises UsageError where it contradicts
    one that is there."""
    shown.check([name])
    bare = check_name(name)
    fact = new_fact(text, name=bare)
    return shown.library.change_facts(bare, lambda facts: with_fact(facts, fact, name=bare))


def correct_fact(shown: Shown, name: str, text: str) -> PackHeader:
    """One fact in the place of those that speak of the same attribute."""
    shown.check([name])
    bare = check_name(name)
    fact = new_fact(text, name=bare)

    def change(facts: tuple[Fact, ...]) -> Sequence[Fact]:
        kept = corrected([old.text for old in facts], [fact.text], bare)
        return [*(old for old in facts if old.text in kept[:-1]), fact]

    return shown.library.change_facts(bare, change)


def remove_fact(shown: Shown, name: str, text: str) -> PackHeader:
    """One fact less. Raises MissingError where it is not there."""
    shown.check([name])
    bare = check_name(name)
    if text not in [fact.text for fact in shown.library.header(bare).facts]:
        raise MissingError(f"<{bare}> has no such fact", hint=f"op concepts facts {bare}")
    return shown.library.change_facts(
        bare, lambda facts: [fact for fact in facts if fact.text != text]
    )


def thumbnail_of(shown: Shown, name: str) -> bytes:
    """The picture that the pack keeps, as a PNG made anew: a pack may be a stranger's.

    Raises MissingError where it keeps none.
    """
    from omnipersona_cli.data.colour import normalised

    shown.check([name])
    tensor = shown.library.load(name).extra_tensors.get(THUMBNAIL)
    if tensor is None:
        raise MissingError(f"<{name}> keeps no picture", hint="op concepts show " + name)
    try:
        image = opened(bytes(tensor.data), most_pixels=MOST_THUMBNAIL_PIXELS)
    except PersonaError as error:
        raise PackError(f"the picture in <{name}> is broken: {error}", hint=error.hint) from error
    image = normalised(image)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def keep_thumbnail(shown: Shown, name: str, image: Image | None) -> None:
    """Keep a small copy of ``image`` in the pack, or none any more."""
    from omnipersona_cli.data.colour import normalised

    shown.check([name])
    kept: dict[str, RawTensor] = {}
    if image is not None:
        small = normalised(image).copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = BytesIO()
        small.save(buffer, format="PNG")
        data = buffer.getvalue()
        kept[THUMBNAIL] = RawTensor(dtype="U8", shape=(len(data),), data=data)

    def with_it(pack: Pack) -> Pack:
        others = {key: value for key, value in pack.extra_tensors.items() if key != THUMBNAIL}
        return replace(pack, extra_tensors=others | kept, hash="")

    shown.library.change(name, with_it, large=True)


def remove(shown: Shown, name: str) -> None:
    """Take a concept out of the library; its undo copy stays."""
    shown.check([name])
    shown.library.remove(name)


def rename(shown: Shown, old: str, new: str) -> None:
    """Give a concept another name. Raises UsageError where only some are served."""
    shown.check([old])
    if shown.only is not None:
        raise UsageError("names are fixed here", hint="op serve without --concepts")
    shown.library.rename(old, new)
