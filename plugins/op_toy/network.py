"""The network that reads a cartoon's attributes. It measures, and is used for nothing else.

A small convolutional network: nothing of nano is in it, neither weights nor shape, and it was
trained on pictures of its own. Its accuracy on held-out identities stands in nano's model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from torch import Tensor, nn

from op_toy.attributes import NAMES, AttributeHeads, truth
from op_toy.world import Composition

SIZE = 64
"""Pixels on a side."""
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is in a picture, by attribute name (`attributes.NAMES`): class numbers."""

    found: dict[str, int]

    def matches(self, picture: Composition, names: Sequence[str]) -> dict[str, bool]:
        """Which of the named attributes are as in ``picture``; those that do not apply to it (the
        second colour of a plain coat) are left out."""
        wanted = dict(zip(NAMES, truth(picture), strict=True))
        return {name: self.found[name] == wanted[name] for name in names if wanted[name] >= 0}


class JudgeNetwork(nn.Module):
    """Pictures [B, 3, 64, 64] in [-1, 1] -> logits of each question of `attributes.NAMES`: three
    levels of two residual blocks, then attribute heads over the 8 x 8 cells."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(
            nn.Conv2d(one, two, 3, stride=2, padding=1) for one, two in pairwise(widths)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(_Residual(width), _Residual(width)) for width in widths
        )
        self.place = nn.Parameter(torch.randn(64, widths[-1]) * 0.02)
        self.heads = AttributeHeads(widths[-1])

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = self.levels[0](self.enter(pictures))
        for down, level in zip(self.down, self.levels[1:], strict=True):
            x = level(down(x))
        cells = F.layer_norm(x.flatten(2).mT, (x.shape[1],)) + self.place
        logits: list[Tensor] = self.heads(cells)
        return logits


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, each after a norm, around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.silu(norm(y)))
        out: Tensor = x + y
        return out


@lru_cache(maxsize=1)
def _network(path: Path) -> JudgeNetwork:
    network = JudgeNetwork()
    network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return network.requires_grad_(False).eval()


def _pixels(image: Image) -> Tensor:
    """[3, 64, 64] in [-1, 1]; other shapes are squeezed, so that nothing is cut off."""
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        filter_ = Resampling.BOX if min(image.size) > SIZE else Resampling.BICUBIC
        image = image.resize((SIZE, SIZE), filter_)
    values = torch.from_numpy(np.array(image))
    return (values.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


@torch.inference_mode()
def read(images: Sequence[Image], path: Path = WEIGHTS / "judge.safetensors") -> list[Reading]:
    """One reading per picture; any size is brought to 64 x 64."""
    network = _network(path)
    pixels = torch.stack([_pixels(image) for image in images])
    logits = network(pixels)
    best = torch.stack([one.argmax(1) for one in logits], dim=1).tolist()
    return [Reading(found=dict(zip(NAMES, row, strict=True))) for row in best]
