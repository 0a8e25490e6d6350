"""Change a picture only where asked: add, remove or replace what was learned.

The result has the source's size, and outside a known region it is the source, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine.calibrate import from_dict, recognition_score
from omnipersona_cli.engine.gen import (
    check_settings,
    painting,
    replay_of,
    seeds_from,
    story,
    tell,
)
from omnipersona_cli.engine.picture import EDITED, Picture
from omnipersona_cli.engine.region import (
    Box,
    box_mask,
    change_inside,
    checked_mask,
    grown,
    likely_boxes,
    mask_remarks,
    paste_back,
)
from omnipersona_cli.engine.replay import Trace
from omnipersona_cli.engine.request import (
    ANY,
    OnProgress,
    Opening,
    Request,
    checked_count,
    checked_picture,
    memory_errors,
    open_request,
)
from omnipersona_cli.engine.tokens import slot_name
from omnipersona_cli.errors import TaskError, UsageError

Intent = Literal["add", "remove", "replace", "other"]
RegionSource = Literal["mask", "box", "finder", "tried", "none"]

_INTENTS: tuple[tuple[Intent, str], ...] = (
    ("remove", r"remove|erase|delete|take (?!.*\bphoto\b).*\b(?:away|out|off)|get rid of"),
    ("replace", r"replace|swap|exchange|(?:turn|change) .+ (?:in)?to\b"),
    ("add", r"add|put|place|insert|draw|include|paint"),
)
_TARGET = re.compile(
    r"\b(?:replace|swap|exchange|turn|change|remove|erase|delete)\s+"
    r"(?:the|an?|this|that|its)?\s*(?P<kind>[a-z][a-z -]{0,30}?)"
    r"\s*(?:$|[.,!]|\b(?:with|by|for|into|to|from|in|on|at|next)\b)",
    re.IGNORECASE,
)
_MOSTLY_INSIDE = 0.6
"""A native edit is held to the finder's region only where it changed this share of it or more."""


@dataclass(frozen=True, kw_only=True)
class _Region:
    mask: Image | None
    source: RegionSource


def edit(
    image: Image,
    prompt: str,
    *,
    concepts: Sequence[str] = (),
    mask: Image | None = None,
    box: Box | None = None,
    count: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float = 1.0,
    seed: int | None = None,
    replayed: bool = True,
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_picture: Callable[[Picture], None] | None = None,
) -> tuple[Picture, ...]:
    """Edit ``image`` as ``prompt`` says, ``count`` times.

    ``mask`` (mode L, white = may change; of another size it is stretched, with a note) or ``box``
    (left, top, right, bottom) limit the change. Without them a backend that edits natively is
    trusted with the whole picture; for remove and replace the subject finder's region is used
    where it holds most of the change, and a backend that only repaints regions needs it.
    ``strength`` (0..1] scales the guidance: less of it keeps more of the source. ``about["how"]``
    of each picture says how the edit was made, and ``about["recognised"]`` the probability that
    each mentioned concept is in it now.
    """
    checked_count(count)
    check_settings(steps=steps, guidance=guidance)
    if mask is not None and box is not None:
        raise UsageError("a mask and a box were both given", hint="give --mask or --box")
    if not 0 < strength <= 1:
        raise UsageError(f"a strength of {strength} is none", hint="--strength goes up to 1")
    source = checked_picture(image)
    given = _given_region(mask, box, source.size)
    if mask is not None:
        tell(on_progress, mask_remarks(mask, source.size))
    seeds = seeds_from(seed, count)
    request = open_request(
        prompt,
        concepts=concepts,
        backend=backend,
        opening=opening,
        library=library,
        task="edit",
        picture=source,
        on_progress=on_progress,
    )
    tell(on_progress, request.notes)
    trace = replay_of(request, replayed)
    if on_trace is not None:
        on_trace(trace)
    info = request.backend.info
    full = info.guidance if guidance is None else guidance
    paint = _Painter(
        request=request,
        trace=trace,
        source=source,
        steps=steps,
        guidance=guidance if strength == 1.0 else 1.0 + (full - 1.0) * strength,
        on_progress=on_progress,
    )
    pictures = []
    with memory_errors(info.name):
        region = given or _found_region(request, source, paint, seeds[0])
        for one in seeds:
            picture = paint.picture(region, one)
            pictures.append(picture)
            if on_picture is not None:
                on_picture(picture)
    return tuple(pictures)


def intent_of(prompt: str) -> Intent:
    """What an instruction asks for, by its verb."""
    for intent, pattern in _INTENTS:
        if re.search(rf"\b(?:{pattern})\b", prompt, re.IGNORECASE):
            return intent
    return "other"


def recognised(request: Request, image: Image) -> dict[str, float]:
    """For each concept of the request, the probability that it is in ``image``."""
    if "understand" not in request.backend.info.tasks:
        return {}
    found = {}
    for tokens in request.concepts:
        figures = request.packs[tokens.name].evals.get(slot_name(request.backend), {})
        calibration = from_dict(figures.get("calibration", {}))
        score = recognition_score(request.backend, tokens, image)
        found[tokens.name] = round(calibration.probability(score), 4)
    return found


@dataclass(frozen=True, kw_only=True)
class _Painter:
    """All that is the same for every seed of one edit."""

    request: Request
    trace: Trace
    source: Image
    steps: int | None
    guidance: float | None
    on_progress: OnProgress | None

    def raw(self, mask: Image | None, seed: int) -> Image:
        """What the backend paints."""
        images = self.request.backend.edit(
            self.source,
            self.request.prompt(self.trace.rewritten),
            mask=mask,
            steps=self.steps,
            guidance=self.guidance,
            seeds=(seed,),
            on_step=painting(self.on_progress),
        )
        painted = next(iter(images)).convert("RGB")
        if painted.size != self.source.size:
            raise RuntimeError(f"{self.request.backend.info.name} changed the picture's size")
        return painted

    def picture(self, region: _Region, seed: int) -> Picture:
        """One finished edit with its story."""
        native = self.request.backend.info.tasks["edit"] == "native"
        if region.source == "finder" and native and region.mask is not None:
            painted = self.raw(None, seed)
            if change_inside(self.source, painted, region.mask) < _MOSTLY_INSIDE:
                region = _Region(mask=None, source="none")
        else:
            painted = self.raw(region.mask, seed)
        if region.mask is not None:
            painted = paste_back(self.source, painted, region.mask)
        about = story(
            self.request,
            self.trace,
            "edit",
            painted,
            seed=seed,
            steps=self.steps,
            guidance=self.guidance,
        )
        about |= {
            "how": self.request.backend.info.tasks["edit"],
            "region": region.source,
            "recognised": recognised(self.request, painted),
        }
        return Picture(
            image=painted,
            seed=seed,
            trace=self.trace,
            about=about,
            source=EDITED,
            region=region.mask,
        )


def _given_region(mask: Image | None, box: Box | None, size: tuple[int, int]) -> _Region | None:
    if mask is not None:
        return _Region(mask=checked_mask(mask, size), source="mask")
    if box is not None:
        return _Region(mask=box_mask(box, size), source="box")
    return None


def _found_region(request: Request, source: Image, paint: _Painter, seed: int) -> _Region:
    """The region where a person gave none; TaskError where the backend needs one and none is
    found."""
    intent = intent_of(request.text)
    native = request.backend.info.tasks["edit"] == "native"
    if intent in ("remove", "replace"):
        subject = registry.find_subject(source, _kind_of_target(request))
        if subject is not None:
            mask = subject.mask or box_mask(subject.box, source.size)
            binary = mask.convert("L").point([0] * 128 + [255] * 128)
            if binary.size == source.size and binary.getbbox() is not None:
                return _Region(mask=grown(binary), source="finder")
    if native:
        return _Region(mask=None, source="none")
    if intent == "add" and request.concepts:
        return _best_place(request, source, paint, seed)
    raise TaskError(
        f"{request.backend.info.name} repaints regions, and it is not clear which one",
        hint="say where: --box x,y,width,height or --mask FILE",
    )


def _best_place(request: Request, source: Image, paint: _Painter, seed: int) -> _Region:
    """Of a few boxes the one in which the model itself recognises the concept best."""
    tokens = request.concepts[-1]

    def score(region: _Region) -> float:
        picture = replace(paint, on_progress=None).picture(region, seed)
        return recognition_score(request.backend, tokens, picture.image)

    places = (
        _Region(mask=box_mask(box, source.size), source="tried")
        for box in likely_boxes(source.size)
    )
    return max(places, key=score)


def _kind_of_target(request: Request) -> str:
    """What is to go: the words of the instruction ("the cat"), or the kind of the concept."""
    match = _TARGET.search(request.text)
    if match is not None:
        return match["kind"].strip().lower()
    packs = list(request.packs.values())
    return (packs[0].kind or packs[0].class_word) if packs else ""
