"""The autoencoder, Wan2.2's, for single pictures.

Wan2.2 encodes videos. For one frame every step is two-dimensional: a convolution over time sees
zeros before the frame, so that the last time slice of its kernel is all that counts, and the
convolutions over time alone are never used. This module holds those slices: 252 million numbers
instead of 705. Tensor names are those of the released `Wan2.2_VAE.pth`; `plane` says what becomes
of a released tensor.

Source: Wan2.2 release, autoencoder module; Lance release (arXiv 2605.18678), which fixes one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# fmt: off
LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813,
    0.0891, 0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108,
    -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313,
    -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944,
    0.3573, -0.0548, -0.1681, -0.0667,
)
LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of the autoencoder; the defaults are the released ones.

    `dim` and `dec_dim` are the widths of encoder and decoder at their finest level, `dim_mult` what
    each level has of them, finest first. `temporal_downsample` says which levels also halve time.
    """

    dim: int = 160
    dec_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    pixel_patch: int = 2
    latents_mean: tuple[float, ...] = LATENTS_MEAN
    latents_std: tuple[float, ...] = LATENTS_STD

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("temporal_downsample has one entry less than dim_mult")
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise ValueError(f"latents_mean and latents_std have {self.z_dim} numbers each")

    @property
    def downsample(self) -> int:
        """Pixels along one side of a latent cell."""
        return self.pixel_patch << (len(self.dim_mult) - 1)


class ChannelNorm(nn.Module):
    """Each pixel's channels scaled to length sqrt(C), then by `gamma` [C, 1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length: float = x.shape[1] ** 0.5
        return F.normalize(x, dim=1) * length * self.gamma


class Residual(nn.Module):
    """norm, SiLU, conv, twice, added to the input: [B, width_in, H, W] -> [B, width_out, H, W]."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(width_in),
            nn.SiLU(),
            nn.Conv2d(width_in, width_out, 3, padding=1),
            ChannelNorm(width_out),
            nn.SiLU(),
            nn.Identity(),  # the release has a dropout here
            nn.Conv2d(width_out, width_out, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x)
        return out + (x if self.shortcut is None else self.shortcut(x))


class Attention(nn.Module):
    """Single-head attention over all cells, added to the input: [B, C, H, W] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        q, k, v = cells.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(x.shape))
        return x + out


class Resample(nn.Module):
    """Halve or double both sides, then a convolution. Halving pads zeros at right and bottom."""

    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        if up:
            change: nn.Module = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
            conv = nn.Conv2d(width, width, 3, padding=1)
        else:
            change = nn.ZeroPad2d((0, 1, 0, 1))
            conv = nn.Conv2d(width, width, 3, stride=2)
        self.resample = nn.Sequential(change, conv)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resample(x)
        return out


class DownLevel(nn.Module):
    """Residual blocks, then half the size but on the last level; plus the input, averaged."""

    def __init__(
        self, width_in: int, width_out: int, blocks: int, *, down: bool, in_time: bool
    ) -> None:
        super().__init__()
        widths = [width_in, *[width_out] * blocks]
        layers: list[nn.Module] = [Residual(a, b) for a, b in pairwise(widths)]
        if down:
            layers.append(Resample(width_out, up=False))
        self.downsamples = nn.Sequential(*layers)
        self.width, self.side, self.in_time = width_out, 2 if down else 1, in_time

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsamples(x)
        return out + self._averaged(x)

    def _averaged(self, x: Tensor) -> Tensor:
        """Space (and time) folded into the channels, equal runs of them averaged."""
        b, c, h, w = x.shape
        n = self.side
        cells = x.reshape(b, c, 1, h // n, n, w // n, n).permute(0, 1, 2, 4, 6, 3, 5)
        if self.in_time:  # the frame before the only one is zero
            cells = torch.cat((torch.zeros_like(cells), cells), dim=2)
        return cells.reshape(b, self.width, -1, h // n, w // n).mean(2)


class UpLevel(nn.Module):
    """Residual blocks, then twice the size, plus the input, repeated; the last level only has the
    blocks."""

    def __init__(
        self, width_in: int, width_out: int, blocks: int, *, up: bool, in_time: bool
    ) -> None:
        super().__init__()
        widths = [width_in, *[width_out] * blocks]
        layers: list[nn.Module] = [Residual(a, b) for a, b in pairwise(widths)]
        if up:
            layers.append(Resample(width_out, up=True))
        self.upsamples = nn.Sequential(*layers)
        self.width, self.up, self.frames = width_out, up, 2 if in_time else 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.upsamples(x)
        return out + self._repeated(x) if self.up else out

    def _repeated(self, x: Tensor) -> Tensor:
        """Channels repeated and unfolded into space (and time, of which the last frame is kept)."""
        b, c, h, w = x.shape
        copies = self.width * self.frames * 4 // c
        cells = x.repeat_interleave(copies, dim=1).reshape(b, self.width, self.frames, 2, 2, h, w)
        return cells[:, :, -1].permute(0, 1, 4, 2, 5, 3).reshape(b, self.width, 2 * h, 2 * w)


def middle(width: int) -> nn.Sequential:
    """Block, attention, block at the coarsest level."""
    return nn.Sequential(Residual(width, width), Attention(width), Residual(width, width))


def head(width: int, out: int) -> nn.Sequential:
    """norm, SiLU, conv"""
    return nn.Sequential(ChannelNorm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))


class Encoder(nn.Module):
    """[B, 3 * 4, H, W] -> [B, 2 z, H / 8, W / 8] at the released number of levels."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        widths = [config.dim, *(config.dim * m for m in config.dim_mult)]
        self.conv1 = nn.Conv2d(3 * config.pixel_patch**2, config.dim, 3, padding=1)
        in_time = (*config.temporal_downsample, False)
        self.downsamples = nn.Sequential(
            *(
                DownLevel(
                    widths[i],
                    widths[i + 1],
                    config.num_res_blocks,
                    down=i < len(config.dim_mult) - 1,
                    in_time=in_time[i],
                )
                for i in range(len(config.dim_mult))
            )
        )
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.downsamples(self.conv1(x))))
        return out


class Decoder(nn.Module):
    """[B, z, h, w] -> [B, 3 * 4, h * 8, w * 8]; one block more per level."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        wide = config.dec_dim * config.dim_mult[-1]
        widths = [wide, *(config.dec_dim * m for m in reversed(config.dim_mult))]
        self.conv1 = nn.Conv2d(config.z_dim, wide, 3, padding=1)
        self.middle = middle(wide)
        in_time = (*reversed(config.temporal_downsample), False)
        self.upsamples = nn.Sequential(
            *(
                UpLevel(
                    widths[i],
                    widths[i + 1],
                    config.num_res_blocks + 1,
                    up=i < len(config.dim_mult) - 1,
                    in_time=in_time[i],
                )
                for i in range(len(config.dim_mult))
            )
        )
        self.head = head(widths[-1], 3 * config.pixel_patch**2)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.head(self.upsamples(self.middle(self.conv1(z))))
        return out


class AutoEncoder(nn.Module):
    """Pictures to normalised latents and back. Pictures of unequal size go one by one."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = like.new_tensor(self.config.latents_mean).view(1, -1, 1, 1)
        return mean, like.new_tensor(self.config.latents_std).view(1, -1, 1, 1)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> normalised mean and log-variance, each [B, z, h, w].

        Only the mean is normalised, as in the release. Raises ValueError where a side is no
        multiple of `config.downsample`.
        """
        height, width = images.shape[-2:]
        if height % self.config.downsample or width % self.config.downsample:
            raise ValueError(
                f"a picture of {width}x{height} pixels does not split in cells of "
                f"{self.config.downsample}"
            )
        mean, logvar = self.conv1(self.encoder(fold(images, self.config.pixel_patch))).chunk(2, 1)
        shift, scale = self._scale(mean)
        return (mean - shift) / scale, logvar

    def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> normalised latents [B, z, h, w].

        `eps` [B, z, h, w] is standard normal noise; the release always samples. Without it the
        mean is taken.
        """
        mean, logvar = self.moments(images)
        return mean if eps is None else mean + torch.exp(0.5 * logvar) * eps

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, z, h, w] -> pictures [B, 3, H, W], in about [-1, 1], unclamped."""
        shift, scale = self._scale(latents)
        out = self.decoder(self.conv2(latents * scale + shift))
        return unfold(out, self.config.pixel_patch)


def fold(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, C * patch * patch, H / patch, W / patch]; columns before rows."""
    b, c, h, w = images.shape
    cells = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 1, 5, 3, 2, 4).reshape(b, -1, h // patch, w // patch)


def unfold(folded: Tensor, patch: int) -> Tensor:
    """[B, C * patch * patch, h, w] -> [B, C, h * patch, w * patch]; undoes `fold`."""
    b, _, h, w = folded.shape
    cells = folded.reshape(b, -1, patch, patch, h, w)
    return cells.permute(0, 1, 4, 3, 5, 2).reshape(b, -1, h * patch, w * patch)


def plane(name: str, tensor: Tensor) -> Tensor | None:
    """What a released tensor is for single pictures: of a kernel [out, in, time, h, w] the last
    time slice, of a norm [C, 1, 1, 1] its channels; None for what only videos use."""
    if ".time_conv." in name:
        return None
    if tensor.ndim == 5:
        return tensor[:, :, -1]
    return tensor[..., 0] if name.endswith(".gamma") and tensor.ndim == 4 else tensor


def to_pixels(images: Tensor) -> Tensor:
    """[..., 3, H, W] in about [-1, 1] -> [..., H, W, 3] uint8; clamped, then rounded."""
    scaled = (images.float().clamp(-1, 1) * 0.5 + 0.5) * 255
    return scaled.round().movedim(-3, -1).to(torch.uint8)
