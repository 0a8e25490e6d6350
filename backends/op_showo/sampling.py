"""Iterative parallel decoding: all unknown codes are sampled, the least certain are hidden again.

Sources: MaskGIT (Chang et al. 2022), section 3.2; Show-o, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

KNOWN = 88.7228
"""Log of the largest float32: the certainty of a code that was given."""


class Chance(Protocol):
    """Where a step's random numbers come from."""

    def draw(self, probabilities: Tensor) -> Tensor:
        """One code [B, N] for each row of probabilities [B, N, K]."""

    def uniform(self, shape: torch.Size) -> Tensor:
        """Numbers between 0 and 1, [B, N]."""


class Seeded:
    """One generator for each picture, so that a seed means the same alone and among others."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, probabilities: Tensor) -> Tensor:
        """A draw from each row."""
        rows = zip(probabilities.float().cpu(), self.generators, strict=True)
        codes = [torch.multinomial(row, 1, generator=generator)[:, 0] for row, generator in rows]
        return torch.stack(codes).to(probabilities.device)

    def uniform(self, shape: torch.Size) -> Tensor:
        """Fresh numbers."""
        return torch.stack(
            [torch.rand(shape[1:], generator=generator) for generator in self.generators]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodingStep:
    """One step of the decoder: what it knew and did. All [B, N], ``probabilities`` [B, N, K]."""

    index: int
    total: int
    temperature: float
    probabilities: Tensor
    chosen: Tensor
    kept_masked: Tensor  # [B]
    remask: Tensor
    codes: Tensor


def decode_masked(
    logits: Callable[[Tensor, Tensor], Tensor],
    known: Tensor,
    unknown: Tensor,
    *,
    steps: int,
    chance: Chance,
    temperature: float = 1.0,
) -> Iterator[DecodingStep]:
    """Fill in codes in ``steps`` steps; the last step's ``codes`` are the picture.

    ``logits(codes, unknown)`` gives [B, N, K] after guidance; ``known`` [B, N] are codes, read only
    where ``unknown`` is false. ``temperature`` weighs the Gumbel noise of the choice of what is
    hidden again; it shrinks by a factor (1 - ratio) at every step, one factor upon the other.
    """
    codes, hidden = known.clone(), unknown.clone()
    for index in range(steps):
        ratio = (index + 1) / steps
        scores = logits(codes, hidden).float()
        probabilities = scores.softmax(-1)
        sampled = torch.where(hidden, chance.draw(probabilities), codes)
        chosen = probabilities.gather(-1, sampled[..., None])[..., 0]
        share = torch.tensor(ratio, dtype=torch.float32)
        keep = (known.shape[1] * torch.cos(share * math.pi * 0.5)).floor()
        left = hidden.sum(1, keepdim=True)
        count = torch.minimum(keep.to(left.device), left - 1).clamp(min=1).long()
        temperature *= 1 - ratio
        noise = chance.uniform(chosen.shape).to(chosen.device)
        gumbel = -torch.log((-torch.log(noise.clamp(min=1e-20))).clamp(min=1e-20))
        certain = torch.where(hidden, chosen.clamp(min=1e-20).log(), KNOWN)
        certain = certain + temperature * gumbel
        cut = certain.sort(1).values.gather(1, count.clamp(max=certain.shape[1] - 1))
        remask = certain < cut
        yield DecodingStep(
            index=index,
            total=steps,
            temperature=temperature,
            probabilities=probabilities,
            chosen=torch.where(hidden, chosen, torch.finfo(torch.float32).max),
            kept_masked=count[:, 0],
            remask=remask,
            codes=sampled,
        )
        codes, hidden = sampled, remask


def training_mask(u: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """What a lesson hides, (hidden [B, N], share [B]); ``u`` [B] and ``order`` [B, N] are uniform.

    The share is cos(pi u / 2); at least one code is hidden (Show-o, section 3.3).
    """
    share = torch.cos(u * math.pi * 0.5).clip(0)
    count = (order.shape[-1] * share).round().clamp(min=1)
    rank = order.argsort(dim=-1)
    return rank < count[:, None], share
