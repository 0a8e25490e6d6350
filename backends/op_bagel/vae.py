"""The picture autoencoder of BAGEL: the FLUX autoencoder, at any size.

Pictures are [B, 3, H, W] in [-1, 1]; latents are [B, z, H / downsample, W / downsample], scaled to
about unit variance. Tensor names and shapes are those of the released `ae.safetensors`.

Source: BAGEL release, autoencoder module (convolutions in 3x3, group norms, SiLU, one
single-head attention in the middle, no quantisation convolutions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are the released ones.

    The number of multipliers fixes `downsample`; it is derived, never stored.
    Raises ValueError where a level's width is no multiple of `groupnorm_groups`.
    """

    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159
    groupnorm_groups: int = 32
    groupnorm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.ch_mult:
            raise ValueError("ch_mult needs at least one level")
        for width in self.widths:
            if width % self.groupnorm_groups:
                raise ValueError(f"{width} channels do not split in {self.groupnorm_groups} groups")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.ch * multiplier for multiplier in self.ch_mult)

    @property
    def downsample(self) -> int:
        """Pixels along one side of a latent cell."""
        return 1 << (len(self.ch_mult) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VAEConfig:
        """Read a config; names that are no field (`resolution`, ...) are passed over.

        Raises ValueError where a stated `downsample` disagrees with the multipliers.
        """
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        if "ch_mult" in known:
            known["ch_mult"] = tuple(known["ch_mult"])
        config = cls(**known)
        if values.get("downsample", config.downsample) != config.downsample:
            raise ValueError(
                f"downsample {values['downsample']} does not fit {len(config.ch_mult)} levels"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; `from_dict` reads them back."""
        return {**asdict(self), "ch_mult": list(self.ch_mult)}


def _norm(channels: int, config: VAEConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.groupnorm_groups, channels, eps=config.groupnorm_eps)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice, added to the input: [B, width_in, H, W] -> [B, width_out, H, W]."""

    def __init__(self, width_in: int, width_out: int, config: VAEConfig) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, config)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out, config)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    """Single-head attention over all cells, added to the input: [B, C, H, W] -> the same."""

    def __init__(self, width: int, config: VAEConfig) -> None:
        super().__init__()
        self.norm = _norm(width, config)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            conv(h).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for conv in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        mixed: Tensor = self.proj_out(h.reshape(x.shape))
        return x + mixed


class Middle(nn.Module):
    """Block, attention, block at the coarsest level."""

    def __init__(self, width: int, config: VAEConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, config)
        self.attn_1 = AttnBlock(width, config)
        self.block_2 = ResnetBlock(width, width, config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    """Halve both sides; the zero row and column go to the bottom and to the right only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, then its change of resolution, if any."""

    def __init__(self, width_in: int, width_out: int, blocks: int, config: VAEConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(width_in if i == 0 else width_out, width_out, config) for i in range(blocks)
        )
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, 2 z, H / downsample, W / downsample]: mean, then log-variance."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        levels = []
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else config.ch
            level = Level(before, width, config.num_res_blocks, config)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            levels.append(level)
        self.down = nn.ModuleList(levels)
        self.mid = Middle(widths[-1], config)
        self.norm_out = _norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """[B, z, h, w] -> [B, 3, h * downsample, w * downsample]; one block more per level."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        levels = []
        for i, width in enumerate(widths):
            before = widths[min(i + 1, len(widths) - 1)]
            level = Level(before, width, config.num_res_blocks + 1, config)
            if i:
                level.upsample = Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class AutoEncoder(nn.Module):
    """Pictures to scaled latents and back.

    Encode pictures of unequal size one by one: padding them to a common canvas changes the
    latents of the smaller ones, because norms and attention see the padding.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> mean and log-variance, each [B, z, h, w], unscaled.

        Raises ValueError where a side is no multiple of `config.downsample`.
        """
        height, width = images.shape[-2:]
        if height % self.config.downsample or width % self.config.downsample:
            raise ValueError(
                f"a picture of {width}x{height} pixels does not split in cells of "
                f"{self.config.downsample}"
            )
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return mean, logvar

    def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> scaled latents [B, z, h, w].

        `eps` [B, z, h, w] is standard normal noise; the release always samples. Without it the
        mean is taken. scaled = scale * (mean + exp(logvar / 2) * eps - shift).
        """
        mean, logvar = self.moments(images)
        z = mean if eps is None else mean + torch.exp(0.5 * logvar) * eps
        return self.config.scale_factor * (z - self.config.shift_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, z, h, w] -> pictures [B, 3, H, W], in about [-1, 1], unclamped."""
        images: Tensor = self.decoder(latents / self.config.scale_factor + self.config.shift_factor)
        return images
