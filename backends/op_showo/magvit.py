"""The image tokenizer: MAGVIT-v2 for single pictures, with a lookup-free quantiser.

A picture becomes a grid of codes, each one the signs of ``bits`` channels read as a binary number.
Tensor names are those of the released checkpoint. Sources: MAGVIT-v2 (Yu et al. 2024), section 3;
Show-o, section 3.1.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from op_showo.config import CoderConfig, TokenizerConfig

Grid = tuple[int, int]
"""(rows, columns) of codes."""


class ResidualBlock(nn.Module):
    """[B, C, h, w] -> [B, C', h, w]; the skip is a 1 x 1 convolution where the width changes."""

    def __init__(self, wide_in: int, wide_out: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, wide_in, eps=config.eps)
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(config.groups, wide_out, eps=config.eps)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(wide_in, wide_out, 1) if wide_in != wide_out else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        out: Tensor = inner + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out


class AttnBlock(nn.Module):
    """One head over all pixels, as a residual."""

    def __init__(self, wide: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, wide, eps=config.eps)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(wide, wide, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        normed = self.norm(x)
        q, k, v = (
            part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(mixed)
        return out


class Middle(nn.Module):
    """The lowest resolution: the only attention of the tokenizer is here."""

    def __init__(self, wide: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(wide, wide, config)
        self.attn_1 = AttnBlock(wide, config)
        self.block_2 = ResidualBlock(wide, wide, config)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    """Half the resolution; one row of zeros below and one column to the right."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, wide, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h/2, w/2]."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice the resolution: nearest pixels, then a convolution."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 2h, 2w]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution and what leads to the next."""

    def __init__(
        self,
        wide_in: int,
        wide_out: int,
        blocks: int,
        after: nn.Module | None,
        *,
        named: str,
        config: TokenizerConfig,
    ) -> None:
        super().__init__()
        widths = pairwise([wide_in, *[wide_out] * blocks])
        self.block = nn.ModuleList(ResidualBlock(a, b, config) for a, b in widths)
        self.attn = nn.ModuleList()  # no level has any in the released models
        self.after = named if after is not None else ""
        if after is not None:
            self.add_module(named, after)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        for block in self.block:
            x = block(x)
        return x if not self.after else self.get_submodule(self.after)(x)


class Encoder(nn.Module):
    """[B, 3, H, W] in -1..1 -> [B, bits, h, w]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        half = config.encoder
        widths = _widths(half)
        self.conv_in = nn.Conv2d(3, half.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                before,
                wide,
                blocks,
                Downsample(wide) if number < len(widths) - 1 else None,
                named="downsample",
                config=config,
            )
            for number, (before, wide, blocks) in enumerate(
                zip([half.ch, *widths], widths, half.num_res_blocks, strict=False)
            )
        )
        self.mid = Middle(widths[-1], config)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=config.eps)
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """The channels whose signs are the code."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        out: Tensor = self.quant_conv(x)
        return out


class Decoder(nn.Module):
    """[B, bits, h, w] of -1 and 1 -> [B, 3, H, W]. ``up.0`` is the finest level and runs last."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        half = config.decoder
        widths = _widths(half)
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList(
            Level(
                before,
                wide,
                blocks,
                Upsample(wide) if number else None,
                named="upsample",
                config=config,
            )
            for number, (before, wide, blocks) in enumerate(
                zip([*widths[1:], widths[-1]], widths, half.num_res_blocks, strict=True)
            )
        )
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.eps)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, bits: Tensor) -> Tensor:
        """Pixels around -1..1, not clamped."""
        x = self.mid(self.conv_in(self.post_quant_conv(bits)))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class Quantiser(nn.Module):
    """Signs as binary numbers, channel 0 the highest bit; zero counts as -1."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        numbers = torch.arange(2**bits)[:, None]
        signs = ((numbers // powers) % 2).float() * 2 - 1
        self.register_buffer("embedding", signs)
        self.register_buffer("power_vals", powers)

    def codes(self, z: Tensor) -> Tensor:
        """[B, bits, h, w] -> codes [B, h * w], row by row."""
        bits = (z > 0).flatten(2).transpose(1, 2).long()
        return (bits * self.power_vals.to(z.device)).sum(-1)

    def signs(self, codes: Tensor, grid: Grid) -> Tensor:
        """[B, h * w] -> -1 or 1, [B, bits, h, w] float32."""
        bits = (codes[..., None] // self.power_vals) % 2
        signs: Tensor = (bits.float() * 2 - 1).transpose(1, 2)
        return signs.reshape(len(codes), -1, *grid)


class Magvit(nn.Module):
    """The whole tokenizer."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantiser(config.bits)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> codes [B, h * w]."""
        return self.quantize.codes(self.encoder(pixels.to(self.encoder.conv_in.weight.dtype)))

    def decode(self, codes: Tensor, grid: Grid | None = None) -> Tensor:
        """Codes [B, h * w] -> [B, 3, H, W] around -1..1; a square grid where none is named."""
        side = round(codes.shape[-1] ** 0.5)
        signs = self.quantize.signs(codes.clamp(0, 2**self.config.bits - 1), grid or (side, side))
        out: Tensor = self.decoder(signs.to(self.decoder.conv_in.weight.dtype))
        return out


def fit(image: Image, resolution: int) -> Image:
    """The middle square of a picture, its shorter side resized to ``resolution``."""
    short = min(image.size)
    width, height = (int(resolution * side / short) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), images.Resampling.BICUBIC)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    return image.crop((left, top, left + resolution, top + resolution))


def to_tensor(image: Image) -> Tensor:
    """RGB -> [3, H, W] in -1..1; grey -> [1, H, W] in 0..1."""
    values = torch.from_numpy(np.array(image)).float().div(255)
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).sub(0.5).div(0.5)


def to_image(pixels: Tensor) -> Image:
    """[3, H, W] around -1..1 -> RGB; fractions are cut off, as in the release."""
    values = ((pixels.float() + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    return images.fromarray(values.permute(1, 2, 0).cpu().numpy())


def token_mask(mask: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """A mask [B, 1, H, W] in 0..1 (1 = draw again) -> (shrunk [B, 1, h, w], codes [B, h * w])."""
    small = F.interpolate(mask, size=grid, mode="bicubic", align_corners=False)
    return small, (small >= 0.5).flatten(1)


def _widths(half: CoderConfig) -> list[int]:
    return [half.ch * times for times in half.ch_mult]
