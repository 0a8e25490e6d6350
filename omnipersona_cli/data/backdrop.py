"""A photo without its subject: what lies behind it, guessed from what lies around it.

The hole is filled with a shifted piece of the photo itself (which keeps texture and horizon) or,
where no shift fits, row by row from both sides; a smooth membrane then takes away the difference at
the seam, as in seamless cloning (Farbman et al. 2009). Honest and simple: good on cartoons and calm
backgrounds, no match for a generative inpainting model, whose pairs `--edits` accepts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_SHIFT_STEPS = 24


def backdrop(image: Image.Image, mask: Image.Image) -> Image.Image:
    """``image`` (RGB) with the region of ``mask`` (mode L, white = subject, same size), a little
    widened, filled from its surroundings; every other pixel is untouched."""
    hole = np.asarray(widened(mask)) > 127
    pixels = np.asarray(image, dtype=np.float32)
    if not hole.any() or hole.all():
        return image.copy()
    ring = _ring(hole)
    fills = [_rows(pixels, hole), *_shifted(pixels, hole, ring)]
    fill = min(fills, key=lambda guess: _seam(guess, pixels, ring))
    fill = fill + _membrane(pixels - fill, ring)
    result = np.where(hole[..., None], fill, pixels)
    return Image.fromarray(np.clip(result, 0, 255).round().astype(np.uint8))


def widened(mask: Image.Image) -> Image.Image:
    """The mask grown by 2 % of the short side, at least 1 px: outlines and soft edges go too."""
    reach = max(1, round(min(mask.size) * 0.02))
    return mask.convert("L").filter(ImageFilter.MaxFilter(2 * reach + 1))


def _ring(hole: Bools) -> Bools:
    """Known pixels within two steps of the hole."""
    wide = np.asarray(Image.fromarray(hole).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
    return wide & ~hole


def _seam(fill: Floats, pixels: Floats, ring: Bools) -> float:
    """Mean squared difference between a fill and the photo around the hole."""
    return float(((fill - pixels)[ring] ** 2).mean())


def _shifted(pixels: Floats, hole: Bools, ring: Bools) -> list[Floats]:
    """The best copy of the photo, mirrored at its sides, moved so that known pixels cover the
    hole; empty when there is no such move. Moves along the row come first: horizons stay."""
    height, width = hole.shape
    across = (np.linspace(-1, 1, 2 * _SHIFT_STEPS + 1) * width * 0.75).round().astype(int)
    along = (np.linspace(-1, 1, 9) * height * 0.06).round().astype(int)
    rows, columns = np.nonzero(hole | ring)
    best: tuple[float, int, int] | None = None
    known = ring[rows, columns]
    for dy in np.unique(along):
        for dx in np.unique(across):
            y, x = _mirror(rows + dy, height), _mirror(columns + dx, width)
            if hole[y, x].any():
                continue
            difference = pixels[y[known], x[known]] - pixels[rows[known], columns[known]]
            cost = float((difference**2).mean())
            if best is None or cost < best[0]:
                best = (cost, int(dy), int(dx))
    if best is None:
        return []
    y, x = _mirror(rows + best[1], height), _mirror(columns + best[2], width)
    moved = pixels.copy()
    moved[rows, columns] = pixels[y, x]
    return [moved]


def _mirror(places: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Places outside 0..length-1 reflected back inside."""
    folded = np.abs(places) % (2 * length - 2)
    return np.where(folded >= length, 2 * length - 2 - folded, folded)


def _rows(pixels: Floats, hole: Bools) -> Floats:
    """Each row of the hole as a straight line between its two sides; rows without a known pixel
    take the nearest row that has one."""
    filled = pixels.copy()
    places = np.arange(hole.shape[1])
    open_rows = np.nonzero(~hole.all(axis=1))[0]
    for row in np.nonzero(hole.any(axis=1))[0]:
        if hole[row].all():
            continue
        known = ~hole[row]
        for channel in range(3):
            filled[row, hole[row], channel] = np.interp(
                places[hole[row]], places[known], pixels[row, known, channel]
            )
    for row in np.nonzero(hole.all(axis=1))[0]:
        filled[row] = filled[open_rows[np.abs(open_rows - row).argmin()]]
    return filled


def _membrane(values: Floats, known: Bools) -> Floats:
    """``values`` [h, w, 3] where ``known``, spread smoothly over everything else (pull-push)."""
    weights = known.astype(np.float32)[..., None]
    return _pull_push(values * weights, weights)


def _pull_push(sums: Floats, weights: Floats) -> Floats:
    height, width = weights.shape[:2]
    if min(height, width) <= 1 or bool((weights > 0).all()):
        total = max(float(weights.sum()), 1e-6)
        mean = sums.sum(axis=(0, 1)) / total
        return np.where(weights > 0, sums / np.maximum(weights, 1e-6), mean)
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    halves = [np.pad(part, pad) for part in (sums, weights)]
    small = [
        part[0::2, 0::2] + part[1::2, 0::2] + part[0::2, 1::2] + part[1::2, 1::2] for part in halves
    ]
    coarse = _pull_push(*(part.astype(np.float32) / 4 for part in small))
    smooth = np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(coarse[..., channel])).resize(
                    (halves[1].shape[1], halves[1].shape[0]), Image.Resampling.BILINEAR
                )
            )[:height, :width]
            for channel in range(coarse.shape[2])
        ],
        axis=-1,
    )
    share = np.minimum(weights, 1.0)
    return np.asarray(
        share * (sums / np.maximum(weights, 1e-6)) + (1 - share) * smooth, dtype=np.float32
    )
