"""Drawing codes several in one forward, each with exactly the chance that it has alone.

Speculative Jacobi decoding (arXiv 2410.01699): behind the codes that are certain stand drafts, all
of them are read in one forward, and each is held against the chances that it has behind the codes
before it. A draft stays with probability min(1, chance now / chance under which it was drawn), else
it is drawn again from what the chances gained since. The same rule renews the drafts that are not
certain yet, which changes as few of them as can be (maximal coupling, arXiv 2510.24211).

Nothing is trained, and codes have the distribution of codes that are drawn one by one: nothing
before a draft depends on it, so that, whatever came to stand there, it is a fair draw under its own
chances, and stays one when it is renewed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from omnipersona_cli.backend import OnStep

WINDOW = 16
"""Drafts that are held against their chances in one forward."""


class Reader(Protocol):
    """A model that reads codes behind a prompt, and remembers them."""

    def read(self, codes: Sequence[int]) -> Tensor:
        """Codes, read and remembered -> the chances [n, V] of what follows each of them."""

    def forget(self, count: int) -> None:
        """The ``count`` codes that were read last are not remembered any more."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """All codes, and how many forwards it took to read them, the prompt's included."""

    codes: list[int]
    forwards: int


@torch.no_grad()
def draw_ahead(
    reader: Reader,
    first: Tensor,
    given: Sequence[int | None],
    *,
    generator: torch.Generator,
    window: int = WINDOW,
    on_step: OnStep | None = None,
) -> Drawn:
    """Codes in the places of ``given``, the first of which has the chances ``first`` [V].

    A place is None where a code is to be drawn, else what stands there, which may lie outside the
    chances' V (an end of a line). The ``generator`` is one of the processor, so that a seed means
    the same on every device. ``on_step`` hears how many codes are certain.
    """
    fixed = [-1 if code is None else code for code in given]
    count = max((place + 1 for place, code in enumerate(fixed) if code < 0), default=0)
    codes = _drawn(first[None], fixed[:1], generator) if count else []  # what is certain
    drafts: list[int] = []  # what may stand behind it
    under, last = first[None][:0], first[None]  # chances of the drafts, and those at the end
    forwards = 1
    while len(codes) < count:
        begin, end = len(codes), len(codes) + len(drafts)
        ahead = fixed[end : _end_of_window(fixed, begin, end, count, window)]
        last = last.expand(len(ahead), -1)
        drafts, under = drafts + _drawn(last, ahead, generator), torch.cat([under, last])
        chances = reader.read([codes[-1], *drafts[:-1]])
        forwards += 1
        renewed = _renewed(drafts, under, chances, fixed[begin : begin + len(drafts)], generator)
        pairs = enumerate(zip(drafts, renewed, strict=True), start=1)
        certain = next((place for place, (old, new) in pairs if old != new), len(drafts))
        reader.forget(len(drafts) - certain)
        codes += renewed[:certain]
        drafts, under, last = renewed[certain:], chances[certain:], chances[-1:]
        if on_step is not None:
            on_step(len(codes) if len(codes) < count else len(fixed), len(fixed))
    return Drawn(codes=codes + fixed[count:], forwards=forwards)


def _end_of_window(fixed: Sequence[int], begin: int, end: int, count: int, window: int) -> int:
    """How far drafts reach that hold ``window`` codes to be drawn; some reach to ``end``."""
    room = window - sum(code < 0 for code in fixed[begin:end])
    while end < count and room > 0:
        room -= fixed[end] < 0
        end += 1
    return end


def _drawn(chances: Tensor, fixed: Sequence[int], generator: torch.Generator) -> list[int]:
    """A code under each row of chances [n, V]; what is fixed stays."""
    found = _at(chances, torch.rand(len(fixed), generator=generator).to(chances.device))
    return [new if old < 0 else old for old, new in zip(fixed, found.tolist(), strict=True)]


def _renewed(
    drafts: Sequence[int],
    under: Tensor,
    chances: Tensor,
    fixed: Sequence[int],
    generator: torch.Generator,
) -> list[int]:
    """Drafts that were drawn under chances ``under`` [n, V], as drafts drawn under ``chances``."""
    keep, again = torch.rand(2, len(drafts), generator=generator).to(chances.device)
    old = torch.tensor(drafts, device=chances.device)
    at = old.clamp(max=chances.shape[1] - 1)[:, None]  # what is fixed may lie outside
    gained = (chances - under).clamp(min=0)
    stays = keep * under.gather(1, at)[:, 0] < chances.gather(1, at)[:, 0]
    stays |= gained.sum(1) == 0
    renewed = torch.where(stays, old, _at(gained, again)).tolist()
    return [new if code < 0 else code for code, new in zip(fixed, renewed, strict=True)]


def _at(weights: Tensor, chance: Tensor) -> Tensor:
    """Where the running sums of weights [n, V] pass the shares ``chance`` [n] of their sums."""
    sums = weights.cumsum(1)
    wanted = chance[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, wanted, right=True)[:, 0].clamp(max=weights.shape[1] - 1)
