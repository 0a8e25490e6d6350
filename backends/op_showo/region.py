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

from omnipersona_cli.errors import UsageError
from op_showo.magvit import to_tensor, token_mask

DIFFERENT = 0.05
"""Mean difference (of values in -1..1) above which a place counts as changed."""

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""


def window(mask: Image, size: tuple[int, int]) -> Box:
    """The part of a picture of ``size`` that is repainted. UsageError for a mask of another size
    or without white."""
    if mask.size != size:
        raise UsageError(
            f"the mask is {mask.width}x{mask.height} pixels and the picture {size[0]}x{size[1]}",
            hint="save the mask in the size of the picture",
        )
    box = mask.convert("L").point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        raise UsageError(
            "the mask has no white in it, so nothing may change",
            hint="paint white what may change, black what must stay",
        )
    side = min(size)
    if max(box[2] - box[0], box[3] - box[1]) > side:
        return (0, 0, *size)
    left, top = (
        min(max(0, (box[axis] + box[axis + 2] - side) // 2), size[axis] - side) for axis in (0, 1)
    )
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
