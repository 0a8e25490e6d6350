"""Pictures as grids of codes: those that an edit leaves alone, painting them, how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image as images
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn import functional

from omnipersona_cli.backend import OnEstimate, OnStep

OnCodes = Callable[[int, int, Sequence[int] | Sequence[Tensor]], None]
"""Called with (codes known, codes in all, the codes known so far, in reading order)."""


class Sampler(Protocol):
    """Draws the codes of one picture."""

    def __call__(
        self, *, generator: torch.Generator, on_step: OnStep | None, on_codes: OnCodes | None
    ) -> Tensor: ...


def kept_codes(mask: Image | None, grid: tuple[int, int], *, spread: int = 1) -> Tensor:
    """Which codes [rows * columns] of a grid (rows, columns) stay as they are.

    ``mask`` is white where a pixel may change. A code that one such pixel touches may change, and
    so may its neighbours up to ``spread`` codes away, because a decoder lets each code colour its
    surroundings. Without a mask nothing is kept.
    """
    rows, columns = grid
    if mask is None:
        return torch.zeros(rows * columns, dtype=torch.bool)
    reach = (max(columns, -(-mask.width // columns) * columns), -(-mask.height // rows) * rows)
    even = mask.convert("L").resize((reach[0], max(rows, reach[1])), Resampling.NEAREST)
    white = torch.from_numpy(np.array(even) > 127).float()
    cells = functional.adaptive_max_pool2d(white[None, None], (rows, columns))
    if spread:
        cells = functional.max_pool2d(cells, 2 * spread + 1, stride=1, padding=spread)
    return cells.flatten() == 0


def changed_codes(codes: Tensor, source: Tensor) -> Tensor:
    """Which ``codes`` an edit of ``source`` changed, as a mask; all, where none is another."""
    changed = codes != source
    return changed if bool(changed.any()) else torch.ones_like(changed)


def paint_codes(
    sample: Sampler,
    decode: Callable[[Tensor], Image],
    grid: tuple[int, int],
    *,
    seeds: Sequence[int],
    known: Tensor | None = None,
    size: tuple[int, int] | None = None,
    on_step: OnStep | None = None,
    on_estimate: OnEstimate | None = None,
) -> Iterator[Image]:
    """A picture for each seed, one after the other, brought to ``size`` where one is given.

    ``decode`` makes a picture of codes [rows * columns], or as ``sample`` gives them. What of an
    estimate is not drawn yet is that of the codes ``known`` in its place, without them a mean
    colour.

    Several in a batch would take less time: four of Janus 0.4 of it (512 x 8, 576 codes, one
    thread). But a row of a batch is not bit-equal to the row alone: states differ by 1e-6 in
    float32, by far more in bfloat16. Where that changes one code, all that follow are others, and a
    seed would mean another picture alone than among others.
    """

    def sized(picture: Image) -> Image:
        return picture if size is None else picture.resize(size, Resampling.BICUBIC)

    def estimate(codes: Sequence[int] | Sequence[Tensor]) -> Image:
        first = torch.as_tensor(codes)
        rest = first[-1].repeat(grid[0] * grid[1]) if known is None else known.flatten()
        picture = decode(filled_up(first, rest))
        return sized(picture if known is not None else veiled(picture, grid, len(first)))

    def on_codes(told: OnEstimate | None) -> OnCodes | None:
        if told is None:
            return None
        return lambda done, total, codes: told(done, total, lambda: estimate(codes))

    for number, seed in enumerate(seeds):
        codes = sample(
            generator=torch.Generator().manual_seed(seed),
            on_step=over_all(on_step, number, len(seeds)),
            on_codes=on_codes(told_over_all(on_estimate, number, len(seeds))),
        )
        yield sized(decode(codes))


def over_all(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """The steps of picture ``number`` (from 0), reported as steps over all ``count`` pictures."""
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, count * steps)


def told_over_all(on_estimate: OnEstimate | None, number: int, count: int) -> OnEstimate | None:
    """As `over_all`, for whoever looks on."""
    if on_estimate is None:
        return None
    return lambda done, steps, look: on_estimate(number * steps + done, count * steps, look)


def seen_through(
    on_estimate: OnEstimate | None, shown: Callable[[Image], Image]
) -> OnEstimate | None:
    """Whoever looks on, shown ``shown(picture)`` instead of the picture."""
    if on_estimate is None:
        return None
    return lambda done, steps, look: on_estimate(done, steps, lambda: shown(look()))


def filled_up(drawn: Sequence[int] | Tensor, known: Tensor) -> Tensor:
    """Codes [N] of a picture of which only the first are drawn: the others are those of ``known``
    [N]."""
    codes = known.clone()
    codes[: len(drawn)] = torch.as_tensor(drawn, dtype=codes.dtype, device=codes.device)
    return codes


def veiled(picture: Image, grid: tuple[int, int], drawn: int) -> Image:
    """``picture``, painted code by code from the top left, with what is not ``drawn`` yet in the
    mean colour of what is: a decoder shows something there too, which means nothing."""
    rows, columns = grid
    pixels = np.asarray(picture).copy()
    down = np.arange(picture.height) * rows // picture.height
    across = np.arange(picture.width) * columns // picture.width
    hidden = down[:, None] * columns + across >= drawn
    if hidden.any():
        visible = pixels[~hidden]
        pixels[hidden] = visible.mean(0).round() if len(visible) else 127
    return images.fromarray(pixels)
