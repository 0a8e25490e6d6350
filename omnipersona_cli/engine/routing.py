"""How an instruction is carried out: what it means in this picture, where, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import ImageChops, ImageOps
from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.engine.recognise import can_recognise, odds_of_answer, presence
from omnipersona_cli.engine.region import box_mask, grown, likely_boxes, place_box, reached
from omnipersona_cli.engine.replay import Trace
from omnipersona_cli.engine.request import Request
from omnipersona_cli.errors import TaskError
from omnipersona_cli.language.instructions import Instruction, read_instruction

RegionSource = Literal["mask", "box", "finder", "tried", "place", "none"]

TRIES = 3
"""How often an edit is painted whose best can be told, where nobody says."""

_TRIED = frozenset(("add", "replace", "give", "change", "scene", "move"))


@dataclass(frozen=True, kw_only=True)
class EditRegion:
    """Where an edit may change the picture (None: everywhere), and who said so."""

    mask: Image | None
    source: RegionSource


def meant(request: Request, trace: Trace, source: Image) -> Instruction:
    """What the instruction means in ``source``: "put <bo> on the left" moves it where the model
    recognises it, and adds it where it does not. What replay has put in is read too."""
    found = read_instruction(request.text)
    told = read_instruction(trace.rewritten)
    if told.intent == found.intent:
        found = replace(found, place=told.place, question=told.question, answer=told.answer)
    if found.intent == "move" and not (found.present and can_recognise(request)):
        return replace(found, intent="other")  # nobody can tell where it is
    if found.if_absent == found or not can_recognise(request):
        return found
    there = {tokens.name: presence(request, tokens, source)[1] for tokens in request.concepts}
    return found if all(there[name] > 0 for name in found.present) else found.if_absent


def understood(instruction: Instruction, request: Request) -> str:
    """What is going to be done, for a person to read."""
    names = ", ".join(f"<{name}>" for name in (*instruction.present, *instruction.absent))
    whom = names or ", ".join(f"<{tokens.name}>" for tokens in request.concepts)
    where = f" {instruction.place}" if instruction.place else ""
    return {
        "add": f"{whom} is added{where}",
        "remove": f"{instruction.target or names} goes",
        "replace": f"{instruction.target or 'what is there'} gives way to {whom}",
        "give": f"{whom or 'it'} gets or loses something, where it stands",
        "change": f"{whom or 'it'} looks different, where it stands",
        "scene": f"{whom or 'it'} stays, all around it becomes: {instruction.place}",
        "move": f"{whom or 'it'} is there: it is taken out and added again{where}",
        "other": "the whole instruction is the model's to read",
    }[instruction.intent]


def tries_of(instruction: Instruction, request: Request, regions: Sequence[EditRegion]) -> int:
    """How often it is painted where nobody says: once where nothing tells the best."""
    judged = instruction.present or instruction.question
    if len(regions) > 1 or not can_recognise(request):
        return 1
    return TRIES if instruction.intent in _TRIED and judged else 1


def can_tell(instruction: Instruction, request: Request) -> bool:
    """Whether anything tells the best of several tries."""
    judged = instruction.present or instruction.absent or instruction.question
    return can_recognise(request) and bool(judged)


def odds_of_edit(
    request: Request, instruction: Instruction, odds: Mapping[str, float], image: Image
) -> dict[str, float]:
    """The log-odds by which tries are compared: of the concepts that ought to be there or not, and
    of the answer that shows that it was done."""
    named = (*instruction.present, *instruction.absent)
    found = {name: value for name, value in odds.items() if name in named}
    if instruction.question and can_recognise(request):
        found["answer"] = odds_of_answer(request.backend, instruction, image)
    return found


def regions_of(request: Request, instruction: Instruction, source: Image) -> Sequence[EditRegion]:
    """The region where a person gave none, or a few places to try; TaskError where the backend
    needs one and none is found."""
    native = request.backend.info.tasks["edit"] == "native"
    if region := _where_it_stands(request, instruction, source, native=native):
        return (region,)
    if native:
        return (EditRegion(mask=None, source="none"),)
    if instruction.intent == "add" and request.concepts:
        if box := place_box(instruction.place, source.size):
            return (EditRegion(mask=box_mask(box, source.size), source="place"),)
        places = likely_boxes(source.size)
        return [EditRegion(mask=box_mask(box, source.size), source="tried") for box in places]
    raise TaskError(
        f"{request.backend.info.name} repaints regions, and it is not clear which one",
        hint="say where: --box x,y,width,height or --mask FILE",
    )


def _where_it_stands(
    request: Request, instruction: Instruction, source: Image, *, native: bool
) -> EditRegion | None:
    """The finder's region for what goes or looks different, for what it gets with room around it,
    and for a backend that repaints regions all around what stays."""
    intent = instruction.intent
    if intent not in ("remove", "replace", "give", "change") and (native or intent != "scene"):
        return None
    subject = registry.find_subject(source, _kind_of_target(request, instruction))
    if subject is None:
        return None
    binary = (subject.mask or box_mask(subject.box, source.size)).convert("L")
    binary = binary.point([0] * 128 + [255] * 128)
    if binary.size != source.size or binary.getbbox() is None:
        return None
    mask = grown(binary)
    if intent == "give":
        mask = ImageChops.lighter(mask, reached(binary))
    elif intent == "scene":
        mask = ImageOps.invert(binary)
    return EditRegion(mask=mask, source="finder")


def _kind_of_target(request: Request, instruction: Instruction) -> str:
    """What is to go: the words of the instruction ("the cat"), or the kind of the concept."""
    if instruction.target:
        return instruction.target
    packs = list(request.packs.values())
    return (packs[0].kind or packs[0].class_word) if packs else ""
