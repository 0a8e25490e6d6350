"""Change a picture only where asked: add, remove or replace what was learned.

The result has the source's size, and outside a known region it is the source, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from PIL.Image import Image

from omnipersona_cli.backend import Backend, Box
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.data.colour import Carried, carried_by, given_back
from omnipersona_cli.engine.calibrate import sigmoid
from omnipersona_cli.engine.limits import check_sampling, checked_count, checked_seeds
from omnipersona_cli.engine.picture import EDITED, Picture
from omnipersona_cli.engine.progress import (
    Looking,
    OnProgress,
    estimates,
    painting_steps,
    tell,
)
from omnipersona_cli.engine.provenance import provenance_of
from omnipersona_cli.engine.recognise import best_of, odds_of
from omnipersona_cli.engine.region import (
    MaskMeans,
    box_mask,
    change_inside,
    checked_mask,
    mask_remarks,
    mask_understood,
    paste_back,
)
from omnipersona_cli.engine.replay import Trace, replay_request
from omnipersona_cli.engine.request import (
    ANY,
    Opening,
    Request,
    checked_picture,
    memory_errors,
    open_request,
)
from omnipersona_cli.engine.routing import (
    EditRegion,
    can_tell,
    meant,
    odds_of_edit,
    regions_of,
    tries_of,
    understood,
)
from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.instructions import Instruction

_MOSTLY_INSIDE = 0.97
"""A native edit is held to the finder's region only where this share of its change lies inside or
more: a hat that the finder missed has to go with its head."""

_TAKEN_OUT = 0
"""The seed by which something is taken out before it is added elsewhere: always the same, so that a
picture's own seed paints it again."""


def edit(
    image: Image,
    prompt: str,
    *,
    concepts: Sequence[str] = (),
    mask: Image | None = None,
    mask_means: MaskMeans | None = None,
    box: Box | None = None,
    count: int = 1,
    tries: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    fast: bool = False,
    strength: float = 1.0,
    seed: int | None = None,
    replayed: bool = True,
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_picture: Callable[[Picture], None] | None = None,
    looking: Looking | None = None,
) -> tuple[Picture, ...]:
    """Edit ``image`` as ``prompt`` says, ``count`` times.

    ``mask`` (white = may change; of another size it is stretched, with a note; where part of it is
    transparent, ``mask_means`` says how to read that) or ``box`` (left, top, right, bottom) limit
    the change. Without them a backend that edits natively is trusted with the whole picture; what
    goes, gets something or looks different is held to the subject finder's region where that holds
    most of the change, and a backend that only repaints regions needs it. What is to stand
    elsewhere is taken out first. The result has the colour profile and the transparency of
    ``image``.
    With more than one of ``tries`` each picture is painted so often, and that is kept in which the
    model itself sees best what was asked for: concepts that came or stayed, none that went, the
    new hat, colour or place; its ``seed`` alone paints it again. None is `routing.TRIES` where
    something tells the best, else one; where a few places are tried, one at each.
    ``fast`` paints as the backend's ``info.fast`` says; TaskError where it cannot.
    ``strength`` (0..1] scales the guidance: less of it keeps more of the source. ``about["how"]``
    of each picture says how the edit was made, ``about["understood"]`` what was understood, and
    ``about["recognised"]`` the probability that each mentioned concept is in it now. ``looking`` is
    shown pictures on their way.
    """
    checked_count(count)
    check_sampling(steps=steps, guidance=guidance, tries=tries)
    if mask is not None and box is not None:
        raise UsageError("a mask and a box were both given", hint="give --mask or --box")
    if not 0 < strength <= 1:
        raise UsageError(
            f"a strength of {strength} is outside the range above 0 up to 1", hint="--strength 0.7"
        )
    (start,) = checked_seeds(seed, 1)
    source = checked_picture(image)
    given = _given_region(mask, mask_means, box, source.size)
    if mask is not None and given is not None and given.mask is not None:
        remarks = mask_remarks(mask, source.size, mask_means)
        tell(on_progress, (mask_understood(given.mask), *remarks))
    request = open_request(
        prompt,
        concepts=concepts,
        backend=backend,
        opening=opening,
        library=library,
        task="edit",
        pictures=(source,),
        fast=fast,
        on_progress=on_progress,
    )
    tell(on_progress, request.notes)
    trace = replay_request(request, replayed, on_progress)
    instruction = meant(request, trace, source)
    if given is not None and instruction.intent == "move":
        instruction = replace(instruction, intent="other")  # where it stands was said otherwise
    trace = replace(trace, instruction=understood(instruction, request))
    if on_trace is not None:
        on_trace(trace)
    info = request.backend.info
    full = info.guidance if guidance is None else guidance
    paint = _Painter(
        request=request,
        trace=trace,
        instruction=instruction,
        source=source,
        carried=carried_by(image, source),
        steps=steps,
        guidance=guidance if strength == 1.0 else 1.0 + (full - 1.0) * strength,
        on_progress=on_progress,
        looking=looking,
    )
    if instruction.intent == "move":
        paint = paint.elsewhere()
    regions = (given,) if given else regions_of(request, paint.instruction, paint.source)
    tries = tries_of(paint.instruction, request, regions) if tries is None else tries
    if tries > 1 and not can_tell(paint.instruction, request):
        tell(on_progress, ("nothing tells the best of these, so that the first try is kept",))
        tries = 1
    seeds = checked_seeds(start, count * tries)
    pictures = []
    with memory_errors(info.name):
        for first in range(count):
            picture = paint.picture(first, regions, seeds[first::count])
            pictures.append(picture)
            if on_picture is not None:
                on_picture(picture)
    return tuple(pictures)


@dataclass(frozen=True, kw_only=True)
class _Painter:
    """All that is the same for every seed of one edit."""

    request: Request
    trace: Trace
    instruction: Instruction
    source: Image
    carried: Carried | None
    steps: int | None
    guidance: float | None
    on_progress: OnProgress | None
    looking: Looking | None

    def elsewhere(self) -> _Painter:
        """The painter of the second half of a move, which adds what the first half, painted here,
        takes out of the source."""
        names = self.instruction.present
        mentioned = " and ".join(f"<{name}>" for name in names)
        gone = replace(self.instruction, intent="remove", present=(), absent=names)
        taking = replace(
            self,
            instruction=gone,
            trace=replace(self.trace, rewritten=f"remove {mentioned}"),
            looking=None,
        )
        regions = regions_of(self.request, gone, self.source)
        with memory_errors(self.request.backend.info.name):
            emptied, _ = taking._finished(0, regions[0], _TAKEN_OUT, part=0, parts=1)
        text = f"add {mentioned}, {self.instruction.place}"
        return replace(
            self,
            source=emptied,
            instruction=replace(self.instruction, intent="add"),
            trace=replace(self.trace, rewritten=text),
        )

    def picture(self, number: int, regions: Sequence[EditRegion], seeds: Sequence[int]) -> Picture:
        """The best edit of all regions and seeds, with how it was made."""
        pairs = list(product(regions, seeds))
        tried = [
            self._finished(number, region, one, part=part, parts=len(pairs))
            for part, (region, one) in enumerate(pairs)
        ]
        odds = [odds_of(self.request, image) for image, _ in tried]
        best = 0
        if len(tried) > 1:
            weighed = [
                odds_of_edit(self.request, self.instruction, known, image)
                for known, (image, _) in zip(odds, tried, strict=True)
            ]
            best = best_of(weighed, absent=self.instruction.absent)
        (image, region), (_, seed) = tried[best], pairs[best]
        about = provenance_of(
            self.request,
            self.trace,
            "edit",
            image,
            seed=seed,
            steps=self.steps,
            guidance=self.guidance,
        )
        about |= {
            "tries": len(pairs),
            "how": self.request.backend.info.tasks["edit"],
            "region": region.source,
            "understood": self.trace.instruction,
            "recognised": {name: round(sigmoid(value), 4) for name, value in odds[best].items()},
        }
        return Picture(
            image=image if self.carried is None else given_back(image, self.carried),
            seed=seed,
            trace=self.trace,
            about=about,
            source=EDITED,
            region=region.mask,
        )

    def _finished(
        self, number: int, region: EditRegion, seed: int, *, part: int, parts: int
    ) -> tuple[Image, EditRegion]:
        """One edit, and the region that it was held to."""
        native = self.request.backend.info.tasks["edit"] == "native"
        found = region.source == "finder" and native
        mask = None if found else region.mask
        looked_at = estimates(
            self.looking,
            self.request.backend.info,
            number,
            part=part,
            parts=parts,
            shown=None if mask is None else lambda image: paste_back(self.source, image, mask),
        )
        painted = self._raw(mask, seed, part=part, parts=parts, looked_at=looked_at)
        if region.mask is None:
            return painted, region
        if found and change_inside(self.source, painted, region.mask) < _MOSTLY_INSIDE:
            return painted, EditRegion(mask=None, source="none")
        return paste_back(self.source, painted, region.mask), region

    def _raw(
        self, mask: Image | None, seed: int, *, part: int, parts: int, looked_at: Mapping[str, Any]
    ) -> Image:
        """What the backend paints."""
        images = self.request.backend.edit(
            self.source,
            self.request.prompt(self.trace.rewritten),
            mask=mask,
            steps=self.steps,
            guidance=self.guidance,
            seeds=(seed,),
            on_step=painting_steps(self.on_progress, part=part, parts=parts),
            **looked_at,
        )
        painted = next(iter(images)).convert("RGB")
        if painted.size != self.source.size:
            raise RuntimeError(f"{self.request.backend.info.name} changed the picture's size")
        return painted


def _given_region(
    mask: Image | None, means: MaskMeans | None, box: Box | None, size: tuple[int, int]
) -> EditRegion | None:
    if mask is not None:
        return EditRegion(mask=checked_mask(mask, size, means), source="mask")
    if box is not None:
        return EditRegion(mask=box_mask(box, size), source="box")
    return None
