"""What is in a picture, as class numbers, and the heads that read it off a network's features.

The judge is built on them; so is the pretraining of nano's ViT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from op_toy.drawing import layout
from op_toy.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    SCENES,
    THINGS,
    Composition,
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "second": tuple(COLOURS),
    "accessory": ("nothing", *ACCESSORIES),
    "accessory colour": tuple(COLOURS),
}
AROUND: dict[str, tuple[str, ...]] = {
    "scene": SCENES,
    "thing": ("nothing", *THINGS),
    "thing colour": tuple(COLOURS),
    "characters": ("0", "1", "2"),
}
NAMES = (*ATTRIBUTES, *(f"right {name}" for name in ATTRIBUTES), *AROUND)
"""The questions, in the order of `truth` and of `AttributeHeads`."""


def truth(picture: Composition) -> list[int]:
    """Class numbers of a picture: the attributes of its left and right character (a single one
    counts as left), then what is around; -1 where a question makes no sense."""
    stands = sorted(layout(picture), key=lambda item: item[1])
    found: list[int] = []
    for side in range(2):
        if side >= len(stands):
            found += [-1] * len(ATTRIBUTES)
            continue
        character = stands[side][0]
        worn = character.accessory
        colours = tuple(COLOURS)
        found += [
            KINDS.index(character.kind),
            colours.index(character.colours[0]),
            PATTERNS.index(character.pattern),
            -1 if character.pattern == "plain" else colours.index(character.colours[1]),
            ATTRIBUTES["accessory"].index(worn.what if worn else "nothing"),
            colours.index(worn.colour) if worn else -1,
        ]
    thing = picture.thing
    return [
        *found,
        SCENES.index(picture.scene),
        AROUND["thing"].index(thing.what if thing else "nothing"),
        tuple(COLOURS).index(thing.colour) if thing else -1,
        len(stands),
    ]


class AttributeHeads(nn.Module):
    """One attention query and one linear head per question."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [len(values) for values in (*ATTRIBUTES.values(), *ATTRIBUTES.values())]
        sizes += [len(values) for values in AROUND.values()]
        self.queries = nn.Parameter(torch.randn(len(sizes), width) * 0.1)
        self.keys = nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, features: Tensor) -> list[Tensor]:
        """[B, n, d] -> logits of each question."""
        weights = (self.keys(features) @ self.queries.T * features.shape[-1] ** -0.5).softmax(1)
        pooled = weights.mT @ features
        return [head(pooled[:, i]) for i, head in enumerate(self.heads)]
