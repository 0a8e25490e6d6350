"""How the backends of this lineage paint: seeds in batches, with guidance, in full or faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from PIL import Image as images
from PIL import ImageFilter
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import BackendInfo, OnEstimate, OnStep, Prompt
from omnipersona_cli.family.codes import over_all, told_over_all
from op_bagel.cache import Cache
from op_bagel.model import Bagel
from op_bagel.pictures import Grid, rgb, to_tensor
from op_bagel.sampling import Guidance, SamplingStep, Solver, noise_tokens, sample_latents

UNCHANGED = 14.0
"""Mean difference (0..255) below which an edit counts as leaving a pixel alone."""

AT_ONCE = 4096
"""Picture tokens that are painted as one batch: those of one picture of 1024 x 1024 pixels."""

TOGETHER = 1024
"""From so many tokens of a picture on, the branches of guidance run one after another: each keeps
the machine busy alone, and a batch of them would copy their contexts."""

FEWER = 0.4
"""Share of the usual steps that a faster backend takes. On nano that is nearer to a picture of many
steps than all of them are with Euler's method (benchmarks/fast_painting.py)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """What a picture is painted behind: all of it, and for guidance what is without the request,
    and what is without pictures."""

    full: Cache
    no_text: Cache | None = None
    no_image: Cache | None = None


class Painter(Protocol):
    """A backend that paints with a solver, in the steps that its description says; ``shift`` moves
    those steps towards the noise."""

    info: BackendInfo
    solver: Solver
    shift: float


P = TypeVar("P", bound=Painter)


def faster(painter: P) -> P:
    """A solver of second order in fewer steps; weights and all that is kept are shared."""
    other = copy(painter)
    other.info = replace(painter.info, steps=max(1, round(FEWER * painter.info.steps)), fast="")
    other.solver = "ab2"
    return other


def to_paint(prompt: Prompt) -> Prompt:
    """``prompt`` with what painting reads of its concepts."""
    return replace(prompt, concepts=tuple(one.of_looks() for one in prompt.concepts))


def with_scale(guidance: Guidance, scale: float | None) -> Guidance:
    """``guidance`` at another scale, where one is asked for."""
    return guidance if scale is None else replace(guidance, text=scale)


def paint(
    painter: Painter,
    model: Bagel,
    contexts: Contexts,
    grid: Grid,
    *,
    seeds: Sequence[int],
    guidance: Guidance,
    steps: int | None,
    decode: Callable[[Tensor], Image],
    on_step: OnStep | None = None,
    on_estimate: OnEstimate | None = None,
) -> Iterator[Image]:
    """A picture for each seed, a few painted at once; ``decode`` makes one of its latent tokens
    [n, latent width]. A seed means the same alone and among others."""
    cells = grid[0] * grid[1]
    few = max(1, AT_ONCE // cells)
    batches = [seeds[first : first + few] for first in range(0, len(seeds), few)]
    for number, some in enumerate(batches):
        with torch.inference_mode():
            tokens = sample_latents(
                model,
                contexts.full,
                no_text=contexts.no_text,
                no_image=contexts.no_image,
                noise=noise_tokens(grid, model.config.latent_width, some),
                grid=grid,
                guidance=guidance,
                steps=painter.info.steps if steps is None else steps,
                shift=painter.shift,
                solver=painter.solver,
                together=cells < TOGETHER,
                on_step=_step_of(
                    over_all(on_step, number, len(batches)),
                    told_over_all(on_estimate, number, len(batches)),
                    decode,
                ),
            )
        yield from map(decode, tokens)


def _step_of(
    on_step: OnStep | None, on_estimate: OnEstimate | None, decode: Callable[[Tensor], Image]
) -> Callable[[SamplingStep], None] | None:
    """The sampler's report as those want it who count the steps, and those who look on."""
    if on_step is None and on_estimate is None:
        return None

    def told(step: SamplingStep) -> None:
        if on_step is not None:
            on_step(step.index + 1, step.total)
        if on_estimate is not None:
            on_estimate(step.index + 1, step.total, lambda: decode(step.estimate[0]))

    return told


def keep_unchanged(source: Image, restored: Image, painted: Image) -> Image:
    """``painted`` at the size of ``source``, but the source's own pixels wherever the painting
    differs little from ``restored``, the source after the autoencoder alone."""
    source = rgb(source)
    change = (to_tensor(painted) - to_tensor(restored)).abs().mean(0) * 127.5
    changed = images.fromarray(((change > UNCHANGED) * 255).to(torch.uint8).numpy())
    near = changed.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.MaxFilter(5))
    mask = near.resize(source.size, images.Resampling.BILINEAR)
    return images.composite(painted.resize(source.size, images.Resampling.BICUBIC), source, mask)
