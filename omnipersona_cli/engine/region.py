"""The part of a picture that an edit may change, and the seam around it.

Masks are mode L, of the picture's size; 128 and more means "may change".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as images
from PIL import ImageChops, ImageFilter, ImageOps
from PIL.Image import Image

from omnipersona_cli.backend import Box
from omnipersona_cli.data.colour import alpha_of, eight_bits
from omnipersona_cli.errors import UsageError

MaskMeans = Literal["white", "transparent"]
"""What of a mask that is transparent somewhere may change."""

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


def checked_mask(mask: Image, size: tuple[int, int], means: MaskMeans | None = None) -> Image:
    """``mask`` in black and white (white = may change), stretched to the picture's ``size``.

    A mask without transparency is read by its brightness. One that is transparent somewhere is
    read as ``means`` says, never by a guess: "transparent" changes what is transparent, "white"
    what is white and opaque. Raises UsageError where it does not say, and where nothing may change.
    What `mask_understood` and `mask_remarks` say of it ought to be told.
    """
    binary = _black_and_white(mask, means)
    if binary.size == size:
        return binary
    share = np.asarray(binary.resize(size, images.Resampling.BOX))
    half = min(128, int(share.max()))  # a speck on a large mask is still a place
    return images.fromarray(np.where(share >= half, 255, 0).astype(np.uint8))


def _black_and_white(mask: Image, means: MaskMeans | None) -> Image:
    mask = eight_bits(ImageOps.exif_transpose(mask))
    alpha = alpha_of(mask)
    transparent = alpha is not None and bool((np.asarray(alpha) < 128).any())
    if transparent and means is None:
        raise UsageError(
            "part of the mask is transparent, and it is not said what that means",
            hint="--mask-means transparent changes what is transparent, --mask-means white what is "
            "white",
        )
    if means == "transparent":
        if alpha is None or not transparent:
            raise UsageError(
                "the mask has no transparency in it, so nothing may change",
                hint="--mask-means white changes what is white",
            )
        return alpha.point([255] * 128 + [0] * 128)
    grey = mask.convert("RGB").convert("L")
    if alpha is not None:
        grey = ImageChops.multiply(grey, alpha)
    brightest = int(np.asarray(grey).max())
    if brightest < 128:
        raise UsageError(
            "the mask has no white in it, so nothing may change (its brightest pixel is "
            f"{brightest} of 255)",
            hint="paint white what may change, black what must stay",
        )
    return grey.point([0] * 128 + [255] * 128)


def mask_understood(mask: Image) -> str:
    """What a checked mask allows, in words: "23 % of the picture may change: the left half"."""
    share = float(np.asarray(mask).mean()) / 255
    percent = f"{100 * share:.0f}" if share >= 0.01 else "less than 1"
    where = _place(mask)
    return f"mask: {percent} % of the picture may change" + (f", {where}" if where else "")


def _place(mask: Image) -> str:
    box = mask.getbbox()
    if box is None:
        return ""
    across = _side(box[0] / mask.width, box[2] / mask.width, ("left", "right"))
    down = _side(box[1] / mask.height, box[3] / mask.height, ("top", "bottom"))
    if not across and not down:
        return ""
    if not across or not down:
        one = across or down
        extent = box[2] - box[0] if across else box[3] - box[1]
        half = abs(extent / (mask.width if across else mask.height) - 0.5) < 0.06
        return f"the {one} half" if half and one != "middle" else f"the {one}"
    if across == down:
        return "in the middle"
    return f"at the {down} {across}" if down != "middle" else f"at the {across}"


def _side(begin: float, end: float, names: tuple[str, str]) -> str:
    """Where along one axis a region from ``begin`` to ``end`` (0..1) lies; empty for all of it."""
    if end - begin > 0.9:
        return ""
    middle = (begin + end) / 2
    if end - begin > 0.6 or 0.4 <= middle <= 0.6:
        return "middle" if 0.4 <= middle <= 0.6 else names[middle > 0.5]
    return names[middle > 0.5]


def mask_remarks(mask: Image, size: tuple[int, int], means: MaskMeans | None = None) -> list[str]:
    """What a person may not expect of a mask that they gave, a sentence each."""
    remarks = []
    mask = ImageOps.exif_transpose(mask)
    if mask.size != size:
        remarks.append(
            f"the mask is {mask.width}x{mask.height} pixels and was stretched to the picture's "
            f"{size[0]}x{size[1]}"
        )
    if checked_mask(mask, size, means).getextrema()[0] == 255:
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


def place_box(place: str, size: tuple[int, int]) -> Box | None:
    """The part of a picture that "on the left" or "in the top right corner" means; None for words
    that name no part."""
    width, height = size
    words = set(re.findall(r"[a-z]+", place.lower()))
    middle = bool(words & {"middle", "centre", "center"})
    left, right = ("left" in words, "right" in words)
    top, bottom = ("top" in words or "upper" in words, "bottom" in words or "lower" in words)
    if not (middle or left or right or top or bottom):
        return None
    across = (0.0, 0.5) if left else (0.5, 1.0) if right else (0.25, 0.75)
    down = (0.0, 0.6) if top else (0.4, 1.0) if bottom else (0.3, 1.0)
    return (
        round(across[0] * width),
        round(down[0] * height),
        round(across[1] * width),
        round(down[1] * height),
    )


def reached(mask: Image) -> Image:
    """The box of ``mask`` with room for what something wears or holds: above it and beside it."""
    box = mask.getbbox()
    if box is None:
        return mask
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    room = (left - wide // 4, top - high // 3, right + wide // 4, bottom + high // 10)
    return box_mask(room, mask.size)


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
