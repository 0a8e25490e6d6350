"""Pictures on their way into the model: aspect buckets, and patches for the vision tower.

Source: Lance release (arXiv 2605.18678), image transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from omnipersona_cli.backend import Box
from op_bagel.pictures import Grid, rgb, to_tensor
from op_lance.config import LanceConfig, TowerConfig

ASPECTS = ((21, 9), (16, 9), (4, 3), (1, 1), (3, 4), (9, 16))
"""Width to height of the buckets."""

STRIDE = 16
"""Bucket sides are multiples of it, for the tower too, although its own tokens want 28."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

USED, LEARNED = 3 / 4, 1 / 2
"""The side of a square picture in use, and of one that is learned from, as a share of the largest
that the latent table holds: 768 and 512 of 1024 pixels, two of the release's settings. The least
that may be asked for in learning, 256, is the third."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a picture is brought into a bucket: cut to `box`, resized to `bucket` (width, height),
    the middle `size` of that kept."""

    box: Box
    bucket: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class BucketRule:
    """Pictures of about `resolution` x `resolution` pixels in one of six shapes, with sides that
    are multiples of `multiple`."""

    resolution: int
    multiple: int

    @cached_property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each shape in `ASPECTS`."""
        return tuple(aspect_size(self.resolution, *aspect) for aspect in ASPECTS)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of what comes out, per bucket."""
        return tuple(self._whole(bucket) for bucket in self.buckets)

    def _whole(self, bucket: tuple[int, int]) -> tuple[int, int]:
        width, height = (side // self.multiple * self.multiple for side in bucket)
        return width, height

    def cut(self, width: int, height: int) -> Cut:
        """What becomes of a picture of `width` x `height` pixels: the bucket of the nearest shape,
        and the middle of the picture in that shape."""
        bucket = min(self.buckets, key=lambda size: abs(width / height - size[0] / size[1]))
        ratio = bucket[0] / bucket[1]
        wide, high = round((width * height * ratio) ** 0.5), round((width * height / ratio) ** 0.5)
        if not (0 < wide <= width and 0 < high <= height):
            if width / height < ratio:
                wide, high = width, round(width / ratio)
            else:
                wide, high = round(height * ratio), height
        left, top = (width - wide) // 2, (height - high) // 2
        return Cut(
            box=(left, top, left + wide, top + high), bucket=bucket, size=self._whole(bucket)
        )

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture as RGB, alpha flattened on white, in its bucket (bicubic)."""
        cut = self.cut(*image.size)
        image = rgb(image).crop(cut.box)
        if image.size != cut.bucket:
            image = image.resize(cut.bucket, Image.Resampling.BICUBIC)
        left, top = (round((b - s) / 2) for b, s in zip(cut.bucket, cut.size, strict=True))
        return image.crop((left, top, left + cut.size[0], top + cut.size[1]))


@dataclass(frozen=True)
class ShapeRule:
    """Whole pictures in their own shape, at the area of the buckets of `resolution`: a bucket cuts
    off what is outside its shape, which an edit would leave as it was. No side is longer than
    `longest`; sides are multiples of `multiple`, squeezed by less than one of them."""

    resolution: int
    multiple: int
    longest: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """What becomes of a picture of `width` x `height` pixels; where its ratio is that of a
        bucket that fits, the bucket's own size."""
        bucket = aspect_size(self.resolution, width, height)
        if max(bucket) > self.longest:
            scale = self.longest / max(width, height)
            bucket = _strides(width * scale), _strides(height * scale)
        wide, high = (max(side, self.multiple) for side in bucket)
        return wide // self.multiple * self.multiple, high // self.multiple * self.multiple

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture as RGB, alpha flattened on white, at that size (bicubic)."""
        size = self.size(*image.size)
        image = rgb(image)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large pictures are to the model: to the tower where they are asked about and where they
    are edited, and to the autoencoder."""

    asked: BucketRule
    edited: ShapeRule
    latent: ShapeRule


def sizes_of(config: LanceConfig, share: float) -> Sizes:
    """Sizes for square pictures of `share` of what the latent table holds. The tower sees 7/8 of
    what the autoencoder does, as in each of the release's settings."""
    largest, seen = config.max_latent_size * config.vae.downsample, config.tower.multiple
    resolution = round(largest * share)
    return Sizes(
        asked=BucketRule(resolution * 7 // 8, seen),
        edited=ShapeRule(resolution * 7 // 8, seen, largest * 7 // 8),
        latent=ShapeRule(resolution, config.vae.downsample, largest),
    )


def aspect_size(resolution: int, wide: int, high: int) -> tuple[int, int]:
    """(width, height) of about `resolution` x `resolution` pixels in the shape `wide` to `high`:
    the shorter side first, then the longer one from it."""
    ratio = max(wide, high) / min(wide, high)
    short = _strides(resolution / ratio**0.5)
    long = _strides(short * ratio)
    return (long, short) if wide >= high else (short, long)


def _strides(pixels: float) -> int:
    return max(1, round(pixels / STRIDE)) * STRIDE


def for_tower(image: Image.Image) -> Tensor:
    """An RGB picture -> [3, H, W] float32, normalised for the vision tower."""
    scaled = to_tensor(image) * 0.5 + 0.5
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (scaled - mean) / std


def tower_patches(pixels: Tensor, config: TowerConfig) -> tuple[Tensor, Grid]:
    """[3, H, W] -> patch rows [n, 3 * frames * patch * patch] and the rows and columns of patches.

    The picture is its own second frame. The patches of one merged token follow each other.
    Raises ValueError where a side is no multiple of `config.multiple`.
    """
    channels, height, width = pixels.shape
    if height % config.multiple or width % config.multiple:
        raise ValueError(f"{width}x{height} does not split in tokens of {config.multiple}")
    p, m, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    h, w = height // p, width // p
    cells = pixels.reshape(channels, h // m, m, p, w // m, m, p)
    cells = cells.permute(1, 4, 2, 5, 0, 3, 6)  # merged row, merged column, row, column, channel
    cells = cells.reshape(h * w, channels, 1, p, p).expand(-1, -1, frames, -1, -1)
    return cells.reshape(h * w, -1), (h, w)


def merged(grid: Grid, config: TowerConfig) -> Grid:
    """Rows and columns of tokens of a picture with `grid` rows and columns of patches."""
    return grid[0] // config.spatial_merge_size, grid[1] // config.spatial_merge_size
