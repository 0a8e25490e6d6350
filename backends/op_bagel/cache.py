"""What contexts left behind: keys and values, which grow and are shared, padded or put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Cache:
    """The key-value cache of B contexts: per layer keys (normed, rotated), values [B, P, Hkv, Dh].

    `positions` [B] is the next rotary position, equal on all axes; `mask` [B, P] marks the real
    rows, None where all are. A cache never changes: appending to it gives a new one.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Tensor
    mask: Tensor | None = None

    @property
    def batch(self) -> int:
        return int(self.positions.shape[0])

    @property
    def length(self) -> int:
        """Rows held, padding included."""
        return int(self.keys[0].shape[1])

    def expand(self, batch: int) -> Cache:
        """One context shared by `batch` samples, without copying it."""
        if self.batch == batch:
            return self
        if self.batch != 1:
            raise ValueError(f"{self.batch} contexts cannot serve {batch} samples")
        return Cache(
            keys=tuple(k.expand(batch, -1, -1, -1) for k in self.keys),
            values=tuple(v.expand(batch, -1, -1, -1) for v in self.values),
            positions=self.positions.expand(batch),
            mask=None if self.mask is None else self.mask.expand(batch, -1),
        )

    @staticmethod
    def stack(caches: Sequence[Cache]) -> Cache:
        """Contexts of any lengths as one batch; shorter ones are padded and masked."""
        if len(caches) == 1:
            return caches[0]
        longest = max(cache.length for cache in caches)
        ragged = any(cache.length != longest or cache.mask is not None for cache in caches)
        layers = range(len(caches[0].keys))

        def padded(rows: Tensor) -> Tensor:
            return F.pad(rows, (0, 0, 0, 0, 0, longest - rows.shape[1]))

        return Cache(
            keys=tuple(torch.cat([padded(c.keys[i]) for c in caches]) for i in layers),
            values=tuple(torch.cat([padded(c.values[i]) for c in caches]) for i in layers),
            positions=torch.cat([cache.positions for cache in caches]),
            mask=torch.cat([F.pad(c.real_rows(), (0, longest - c.length)) for c in caches])
            if ragged
            else None,
        )

    def beginning(self, earlier: Cache) -> Cache:
        """`earlier`, which this cache was grown from, in the memory of this one."""
        rows = earlier.length
        return replace(
            earlier,
            keys=tuple(k[:, :rows] for k in self.keys),
            values=tuple(v[:, :rows] for v in self.values),
        )

    def at(self, position: int) -> Cache:
        """The same contexts, but what follows them starts at `position`."""
        return replace(self, positions=torch.full_like(self.positions, position))

    def real_rows(self) -> Tensor:
        """[B, P] bool: which rows are no padding."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.batch, self.length, dtype=torch.bool, device=self.positions.device)
