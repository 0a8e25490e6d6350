"""The part of a picture that an edit may change, and the seam around it.

Masks are mode L, of the picture's size; 128 and more means "may change".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image as images
from PIL import ImageFilter
from PIL.Image import Image

from omnipersona_cli.errors import UsageError

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are just outside."""

FEATHER = 0.02
"""Width of the seam, as a share of the picture's shorter side."""


def box_mask(box: Box, size: tuple[int, int]) -> Image:
    """A mask that is white inside ``box``; UsageError where the box misses the picture."""
    width, height = size
    left, top, right, bottom = box
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        raise UsageError(
            "the box lies outside the picture",
            hint=f"--box x,y,width,height within {width}x{height} pixels",
        )
    mask = images.new("L", size, 0)
    mask.paste(255, (left, top, right, bottom))
    return mask


def checked_mask(mask: Image, size: tuple[int, int]) -> Image:
    """``mask`` in black and white, stretched to the picture's ``size``; UsageError where it has no
    white. What `mask_remarks` says of it ought to be told."""
    grey = mask.getchannel("A") if mask.mode in ("LA", "RGBA") and _varies(mask) else mask
    binary = grey.convert("L").point([0] * 128 + [255] * 128)
    if binary.getbbox() is None:
        raise UsageError(
            "the mask has no white in it, so nothing may change",
            hint="paint white what may change, black what must stay",
        )
    if binary.size == size:
        return binary
    share = np.asarray(binary.resize(size, images.Resampling.BOX))
    half = min(128, int(share.max()))  # a speck on a large mask is still a place
    return images.fromarray(np.where(share >= half, 255, 0).astype(np.uint8))


def mask_remarks(mask: Image, size: tuple[int, int]) -> list[str]:
    """What a person may not expect of a mask that they gave, a sentence each."""
    remarks = []
    if mask.size != size:
        remarks.append(
            f"the mask is {mask.width}x{mask.height} pixels and was stretched to the picture's "
            f"{size[0]}x{size[1]}"
        )
    if checked_mask(mask, size).getextrema()[0] == 255:
        remarks.append("the mask is white everywhere: nothing of the source has to stay")
    return remarks


def grown(mask: Image, share: float = 0.04) -> Image:
    """``mask`` grown by ``share`` of the shorter side: room for outlines and shadows."""
    reach = max(1, round(share * min(mask.size)))
    for _ in range(reach):
        mask = mask.filter(ImageFilter.MaxFilter(3))
    return mask


def paste_back(source: Image, painted: Image, mask: Image) -> Image:
    """``painted`` inside ``mask``, ``source`` outside it bit for bit; the seam fades inside.

    All three have the same size; ``source`` and ``painted`` are RGB.
    """
    inside = np.asarray(mask) >= 128
    alpha = _feathered(inside)[..., None]
    old = np.asarray(source, dtype=np.float32)
    new = np.asarray(painted, dtype=np.float32)
    blended = (old + (new - old) * alpha).round().astype(np.uint8)
    return images.fromarray(np.where(inside[..., None], blended, np.asarray(source)))


def change_inside(source: Image, painted: Image, mask: Image) -> float:
    """The share (0..1) of all change between two pictures that lies inside ``mask``; 1 where
    nothing changed. Changes of a few grey levels, as an autoencoder makes everywhere, are no
    change."""
    old, new = np.asarray(source, dtype=np.float32), np.asarray(painted, dtype=np.float32)
    change = np.maximum(np.abs(new - old).mean(axis=2) - 12, 0)
    total = float(change.sum())
    return float(change[np.asarray(mask) >= 128].sum()) / total if total else 1.0


def likely_boxes(size: tuple[int, int]) -> Iterator[Box]:
    """A few places where something could be added: below the middle, to the right, to the left."""
    width, height = size
    top, bottom = round(0.3 * height), height
    for left, right in ((0.25, 0.75), (0.5, 1.0), (0.0, 0.5)):
        yield round(left * width), top, round(right * width), bottom


def _feathered(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """0 outside, rising from the border of the region to 1 further in; [h, w] float32.

    The picture's own edge is no border: a region that touches it does not fade there.
    """
    reach = max(1, round(FEATHER * min(inside.shape)))
    layers = np.zeros(inside.shape, dtype=np.float32)
    current = images.fromarray(np.pad(inside, reach + 1, mode="edge").astype(np.uint8) * 255)
    for _ in range(reach):
        current = current.filter(ImageFilter.MinFilter(3))
        kept = np.asarray(current)[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
        layers += kept >= 128
    # the outermost ring of the region gets a small share, so that thin regions change too
    return np.where(inside, (layers + 1) / (reach + 1), 0).astype(np.float32)


def _varies(mask: Image) -> bool:
    low, high = mask.getchannel("A").getextrema()
    return low != high
