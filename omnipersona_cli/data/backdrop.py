"""A photo without its subject: what lies behind it, guessed from what lies beside it.

Scenes lie in layers (sky, wall, ground), so each pixel of the hole takes the nearest known pixel of
its own row. Honest and simple: right on cartoons and calm backgrounds, streaky on busy photographs;
pairs from a generative inpainting model can be given with `--edits` instead.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def backdrop(image: Image.Image, mask: Image.Image) -> Image.Image:
    """``image`` (RGB) with the region of ``mask`` (mode L, white = subject, same size), a little
    widened, filled from both sides; every other pixel is untouched. A row without a known pixel
    takes the nearest row that has one."""
    hole = np.asarray(widened(mask)) > 127
    pixels = np.asarray(image).copy()
    if hole.all():
        return image.copy()
    for row in np.nonzero(hole.any(axis=1) & ~hole.all(axis=1))[0]:
        known, missing = np.nonzero(~hole[row])[0], np.nonzero(hole[row])[0]
        right = np.searchsorted(known, missing).clip(0, len(known) - 1)
        left = np.maximum(right - 1, 0)
        nearer_left = np.abs(missing - known[left]) <= np.abs(known[right] - missing)
        pixels[row, missing] = pixels[row, known[np.where(nearer_left, left, right)]]
    rows = np.nonzero(~hole.all(axis=1))[0]
    for row in np.nonzero(hole.all(axis=1))[0]:
        pixels[row] = pixels[rows[np.abs(rows - row).argmin()]]
    return Image.fromarray(pixels)


def widened(mask: Image.Image) -> Image.Image:
    """The mask grown by 2 % of the short side, at least 1 px: outlines and soft edges go too."""
    reach = max(1, round(min(mask.size) * 0.02))
    return mask.convert("L").filter(ImageFilter.MaxFilter(2 * reach + 1))
