"""Which square of a picture an edit repaints, and which codes of it.

The model knows one square size. The square around the mask is repainted at the picture's own
proportions; where the mask is larger than any square in the picture, the whole of it is squeezed.
"""

from __future__ import annotations

import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from omnipersona_cli.backend import Box
from op_showo.magvit import to_tensor, token_mask

DIFFERENT = 0.05
"""Mean difference (of values in -1..1) above which a place counts as changed."""


def window(mask: Image, size: tuple[int, int]) -> Box:
    """The part of a picture of ``size`` that is repainted; ``mask`` has that size too."""
    left, top, right, bottom = mask.convert("L").point([0] * 128 + [255] * 128).getbbox() or (
        (0, 0, *size)
    )
    side = min(size)
    if max(right - left, bottom - top) > side:
        return (0, 0, *size)
    middle = (left + right, top + bottom)
    left, top = (min(max(0, (middle[axis] - side) // 2), size[axis] - side) for axis in (0, 1))
    return left, top, left + side, top + side


def covered(mask: Image, resolution: int, cells: int) -> Tensor:
    """Codes to be drawn again, [1, cells * cells]: those that the mask half covers (Show-o, section
    4), or all that it touches where it half covers none."""
    square = mask.convert("L").resize((resolution, resolution), images.Resampling.BICUBIC)
    pixels = to_tensor(square)[None]
    _, hidden = token_mask(pixels, (cells, cells))
    if bool(hidden.any()):
        return hidden
    touched = F.max_pool2d(pixels, resolution // cells).flatten(1)
    return touched >= torch.clamp(touched.max(), max=0.5)


def changed(source: Image, target: Image, cells: int) -> Tensor:
    """The codes' places [cells * cells] where two squares of one size differ; all of them where
    nothing does. Pixels are compared because the encoder's codes differ far beyond a change."""
    gap = (to_tensor(target) - to_tensor(source)).abs().mean(0, keepdim=True)
    places = F.avg_pool2d(gap, source.width // cells).flatten() > DIFFERENT
    return places if bool(places.any()) else torch.ones_like(places)
