"""Painting in pretraining: a context is read once, and its picture is drawn from many noises.

Reading a context costs as much as painting one picture, so it is read once, and its keys and
values serve several noised copies of the picture. It keeps its graph: that is how the concept
encoder and both experts learn to use concept tokens, and how an edit learns to carry over what its
source shows.

Rows half-way through the decoder are also aligned with what the ViT sees at their place in the
finished picture (representation alignment, Yu et al. 2025, arXiv 2410.06940): it says which kind,
which colour, what is worn, long before the pixels do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op_bagel.cache import Cache
from op_bagel.config import BagelConfig
from op_bagel.model import Bagel
from op_bagel.packing import Packed
from op_bagel.segments import Latent, Segment
from op_nano.shape import CONFIG
from pretraining.curriculum import (
    GRID,
    Group,
    Look,
    Paint,
    Pool,
    Taught,
)

CELLS = GRID[0] * GRID[1]
ROOM = 32
"""Contexts are padded to a multiple of this, so that few shapes are compiled."""

NOISED, SHOWN_NOISED = 0.4, 1.0
"""Mean logit of the time (1 is noise alone) to which copies are noised, and that of a picture whose
source or concept is shown: what is to be carried over is learned where little else is seen."""

Forward = Callable[[Packed, Cache], tuple[Tensor, Tensor]]
"""Noised copies behind their contexts -> velocity [M, n, latent width], rows [M, n, D]."""


class Aligner(nn.Module):
    """Rows of the decoder [..., D] -> what the ViT would see there [..., d_vit]; for pretraining
    alone. ``mean`` and ``std`` are those of the pool's ViT rows."""

    def __init__(self, config: BagelConfig = CONFIG) -> None:
        super().__init__()
        width, features = config.llm.hidden_size, config.vit.hidden_size
        self.guess = nn.Sequential(nn.Linear(width, 256), nn.SiLU(), nn.Linear(256, features))

    def forward(self, rows: Tensor, features: Tensor) -> Tensor:
        """1 - cosine [...] between the guess from ``rows`` and the standardised ``features``."""
        return 1 - F.cosine_similarity(self.guess(rows), features, dim=-1)


def forward_of(bagel: Bagel) -> Forward:
    """The model as a function of noised copies, in a form that compiles. Rows are those half-way
    through the decoder."""
    middle = bagel.config.llm.num_hidden_layers // 2

    def forward(packed: Packed, cache: Cache) -> tuple[Tensor, Tensor]:
        outputs = bagel(packed, cache, hidden=True)
        rows = outputs.hidden[middle].view(packed.batch, CELLS + 2, -1)[:, 1:-1]
        return outputs.velocity.view(packed.batch, CELLS, -1), rows

    return forward


def fill(bagel: Bagel, pool: Pool, samples: Sequence[Taught]) -> list[list[Segment]]:
    """The samples with every `Look` filled in by one run of the connector, and no `Paint`."""
    looks = [part.row for sample in samples for part in sample if isinstance(part, Look)]
    features = iter(())
    if looks:
        rows = pool.vit[torch.tensor(looks)].to(bagel.device).float()
        place = bagel.vit_pos_embed(torch.arange(CELLS, device=bagel.device))
        features = iter(bagel.connector(rows) + place)
    return [
        [
            replace(part, features=next(features)) if isinstance(part, Look) else part
            for part in sample
            if not isinstance(part, Paint)
        ]
        for sample in samples
    ]


@dataclass(frozen=True, kw_only=True)
class PaintLosses:
    """Losses of noised copies: squared error [M] and misalignment [M]; behind a concept or not."""

    mse: Tensor
    misaligned: Tensor
    behind: Tensor


def paint(
    bagel: Bagel,
    aligner: Aligner,
    forward: Forward,
    pool: Pool,
    groups: Sequence[Group],
    concepts: Cache,
    *,
    noises: int,
    generator: torch.Generator,
) -> PaintLosses:
    """Every `Paint` of the groups, from ``noises`` noises each, behind its context and, where its
    group has them, its concept of ``concepts``."""
    samples = [sample for group in groups for sample in group.samples]
    which = torch.tensor(
        [i for group in groups for i in group.concepts or [-1] * len(group.samples)]
    )
    cache = read(bagel, pool, samples, which, concepts)
    at = torch.tensor([sample[-1].row for sample in samples])  # type: ignore[union-attr]
    again = torch.arange(len(samples)).repeat_interleave(noises)
    clean = pool.latents[at].float()[again]
    noise = torch.randn(clean.shape, generator=generator)
    sources = [any(isinstance(part, Latent) for part in sample) for sample in samples]
    shown = torch.tensor(sources) | (which >= 0)
    logit = torch.where(shown, SHOWN_NOISED, NOISED)[again]
    time = torch.sigmoid(logit + 1.1 * torch.randn(len(again), generator=generator))
    noised = (1 - time[:, None, None]) * clean + time[:, None, None] * noise
    layout = bagel.drawing(len(again), GRID)
    packed = replace(
        layout, latents=noised.flatten(0, 1).to(bagel.device), times=time.to(bagel.device)
    )
    velocity, rows = forward(packed, pick(cache, again.to(bagel.device)))
    target = ((pool.vit[at].float() - pool.mean) / pool.std)[again].to(bagel.device)
    wanted = (noise - clean).to(bagel.device)
    return PaintLosses(
        mse=(velocity - wanted).square().mean((1, 2)),
        misaligned=aligner(rows, target).mean(1),
        behind=which[again] >= 0,
    )


def read(
    bagel: Bagel, pool: Pool, samples: Sequence[Taught], which: Tensor, concepts: Cache
) -> Cache:
    """The contexts of ``samples`` as one cache: first the turn of concept ``which`` (with its
    graph; masked where -1), then the rest, padded to a multiple of `ROOM`."""
    which = which.to(bagel.device)
    before = pick(concepts, which.clamp(min=0))
    known = (which >= 0)[:, None] & before.real_rows()
    positions = torch.where(which >= 0, before.positions, 0)
    before = replace(before, mask=known, positions=positions)
    contexts = fill(bagel, pool, samples)
    some = torch.tensor([i for i, context in enumerate(contexts) if context], device=bagel.device)
    grown = bagel.prefill(*(context for context in contexts if context), cache=pick(before, some))
    length = grown.length - before.length
    room = -(-length // ROOM) * ROOM

    def padded(rows: Tensor) -> Tensor:
        whole = rows.new_zeros(len(contexts), room, *rows.shape[2:])
        whole[some, :length] = rows[:, before.length :]
        return whole

    rest = [(padded(k), padded(v)) for k, v in zip(grown.keys, grown.values, strict=True)]
    mask = torch.cat((known, padded(grown.real_rows())), dim=1)
    positions = positions.index_copy(0, some, grown.positions)
    return Cache(
        keys=tuple(torch.cat((b, k), dim=1) for b, (k, _) in zip(before.keys, rest, strict=True)),
        values=tuple(
            torch.cat((b, v), dim=1) for b, (_, v) in zip(before.values, rest, strict=True)
        ),
        positions=positions,
        mask=mask,
    )


def pick(cache: Cache, index: Tensor) -> Cache:
    """The contexts of ``index`` [n], with repetition."""
    return Cache(
        keys=tuple(keys.index_select(0, index) for keys in cache.keys),
        values=tuple(values.index_select(0, index) for values in cache.values),
        positions=cache.positions.index_select(0, index),
        mask=None if cache.mask is None else cache.mask.index_select(0, index),
    )
