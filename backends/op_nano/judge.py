"""The judge of nano's world: says what is in a picture. It measures, and is used for nothing else.

A ViT with attribute heads like the one that pretraining starts from, but trained apart: other
pictures, another start. Its own accuracy on held-out identities stands in the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL.Image import Image
from safetensors.torch import load_file
from torch import nn

from op_bagel.pictures import to_tensor
from op_bagel.vit import VisionModel
from op_nano.backend import WEIGHTS, square
from op_nano.shape import CONFIG
from op_nano.vision import NAMES, AttributeHeads, see, truth
from op_nano.world import Picture


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is in a picture, by attribute name (`vision.NAMES`): class numbers."""

    found: dict[str, int]

    def matches(self, picture: Picture, names: Sequence[str]) -> dict[str, bool]:
        """Which of the named attributes are as in ``picture``; those that do not apply to it (the
        second colour of a plain coat) are left out."""
        wanted = dict(zip(NAMES, truth(picture), strict=True))
        return {name: self.found[name] == wanted[name] for name in names if wanted[name] >= 0}


@lru_cache(maxsize=1)
def _network(path: Path) -> nn.ModuleDict:
    width = CONFIG.vit.hidden_size
    network = nn.ModuleDict({"vit": VisionModel(CONFIG.vit), "heads": AttributeHeads(width)})
    network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return network.requires_grad_(False).eval()


@torch.inference_mode()
def judge(images: Sequence[Image], path: Path = WEIGHTS / "judge.safetensors") -> list[Verdict]:
    """One verdict per picture; any size is brought to nano's."""
    network = _network(path)
    pixels = torch.stack([to_tensor(square(image.convert("RGB"))) for image in images])
    logits = network["heads"](see(network["vit"], pixels))  # type: ignore[arg-type]
    best = torch.stack([one.argmax(1) for one in logits], dim=1).tolist()
    return [Verdict(found=dict(zip(NAMES, row, strict=True))) for row in best]
