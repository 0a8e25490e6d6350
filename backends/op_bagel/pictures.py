"""Pictures on their way into and out of the model: sizes, pixels, patches, position ids.

Source: BAGEL release, image transforms and data utilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens."""


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """Bounds in pixels of a picture's longest and shortest side, their divisor, and an area cap."""

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) that a picture of `width` x `height` pixels is resized to."""
        scale = min(self.max_size / max(width, height), 1.0)
        scale = max(scale, self.min_size / min(width, height))
        width, height = self._scaled(width, height, scale)
        if width * height > self.max_pixels:
            # The release scales the sides by the ratio of areas, not by its root.
            width, height = self._scaled(width, height, self.max_pixels / (width * height))
        if max(width, height) > self.max_size:
            width, height = self._scaled(width, height, self.max_size / max(width, height))
        return width, height

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        def snap(side: int) -> int:
            return max(self.stride, round(round(side * scale) / self.stride) * self.stride)

        return snap(width), snap(height)

    def resize(self, image: Image.Image) -> Image.Image:
        """The picture as RGB, alpha flattened on white, at the size of `fit` (bicubic)."""
        image = rgb(image)
        size = self.fit(*image.size)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB picture; transparency is flattened on white."""
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture -> [3, H, W] float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return (pixels.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def to_pixels(images: Tensor) -> Tensor:
    """[..., 3, H, W] in about [-1, 1] -> [..., H, W, 3] uint8; clamped, then truncated."""
    scaled = (images.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.movedim(-3, -1).to(torch.uint8)


def patchify(x: Tensor, patch: int) -> tuple[Tensor, Grid]:
    """[..., C, H, W] -> [..., h * w, patch * patch * C] and (h, w): pictures and latents alike.

    Patches are row-major; inside one the order is (row, column, channel).
    Raises ValueError where a side is no multiple of `patch`.
    """
    *batch, channels, height, width = x.shape
    if height % patch or width % patch:
        raise ValueError(f"{width}x{height} does not split in patches of {patch}")
    grid = (height // patch, width // patch)
    cells = x.reshape(*batch, channels, grid[0], patch, grid[1], patch)
    n = len(batch)
    cells = cells.permute(*range(n), n + 1, n + 3, n + 2, n + 4, n)
    return cells.reshape(*batch, grid[0] * grid[1], patch * patch * channels), grid


def unpatchify(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """[..., h * w, patch * patch * C] -> [..., C, h * patch, w * patch]; undoes `patchify`."""
    *batch, _, width = tokens.shape
    channels = width // patch**2
    cells = tokens.reshape(*batch, grid[0], grid[1], patch, patch, channels)
    n = len(batch)
    cells = cells.permute(*range(n), n + 4, n, n + 2, n + 1, n + 3)
    return cells.reshape(*batch, channels, grid[0] * patch, grid[1] * patch)


def position_ids(grid: Grid, side: int, *, interpolate: bool = False) -> Tensor:
    """Ids [h * w] into a position table of `side` x `side` cells.

    By default those of the table's own top-left corner; with `interpolate` the corner is
    stretched over the whole table. Raises ValueError where the corner does not fit.
    """
    rows, columns = (torch.arange(n) for n in grid)
    if interpolate:
        edges = torch.arange(1 / side, 1.0, 1 / side)
        rows, columns = (
            torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), edges, right=True) for n in grid
        )
    elif max(grid) > side:
        raise ValueError(f"a grid of {grid[0]}x{grid[1]} does not fit a table of side {side}")
    return (rows[:, None] * side + columns).flatten()


def sincos_table(side: int, width: int) -> Tensor:
    """The fixed table [side * side, width], float32: half the width for columns, half for rows.

    Each half is `width / 4` sines then as many cosines, frequency k = 10000^(-k / (width / 4)).
    """
    wave = waves(side, width // 2)
    columns = wave[None].expand(side, -1, -1)
    rows = wave[:, None].expand(-1, side, -1)
    return torch.cat((columns, rows), dim=-1).reshape(side * side, -1).float()


def sincos_table_3d(frames: int, side: int, width: int) -> Tensor:
    """The fixed table [frames * side * side, width], float32, of a model that counts frames: a part
    for frames, one for rows, one for columns; the first two are `width // 3` wide, made even, the
    third has the rest."""
    part = width // 3 // 2 * 2
    place = (frames, side, side)
    frame, row, column = (
        waves(count, wide)
        for count, wide in zip(place, (part, part, width - 2 * part), strict=True)
    )
    parts = (frame[:, None, None], row[None, :, None], column[None, None, :])
    return torch.cat([one.expand(*place, -1) for one in parts], dim=-1).flatten(0, 2).float()


def waves(count: int, width: int) -> Tensor:
    """[count, width] float64: `width / 2` sines of the places 0.., then as many cosines, frequency
    k = 10000^(-k / (width / 2))."""
    half = width // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)
