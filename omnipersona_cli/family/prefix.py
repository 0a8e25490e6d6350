"""The beginning that several requests share is read once: a picture with a concept before it.

A picture is hundreds of positions, a question about it ten, and "yes" one. Questions and answers
about a picture go on from the keys and values that reading it left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from omnipersona_cli.backend import ConceptTokens

Run = Callable[..., Tensor]
"""The language model: (rows [B, L, d] or wide ones, past_key_values, use_cache) -> last hidden
states [B, L, d]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """Rows [P, d] that were read, and the keys and values [1, heads, P, width] of each layer."""

    rows: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]


class SharedPrefix:
    """What one language model read last. ``text`` is its configuration.

    A prefix is always read by itself, whether it is remembered or not, so that an answer has the
    same bits the first time and the second.
    """

    def __init__(self, text: Any) -> None:
        self.text = text
        self._last: _Read | None = None

    @torch.no_grad()
    def read(
        self, rows: Tensor, run: Run, *, count: int = 1, concepts: Sequence[ConceptTokens] = ()
    ) -> DynamicCache:
        """A cache for ``count`` requests that begin with ``rows`` [P, d], an empty one without
        rows. Nothing is remembered of concepts with experts, which change the keys and values of
        the same rows."""
        if not len(rows):
            return DynamicCache(config=self.text)
        kept = self._last
        if kept is None or kept.rows.shape != rows.shape or not torch.equal(kept.rows, rows):
            cache = DynamicCache(config=self.text)
            run(rows[None], past_key_values=cache, use_cache=True)
            grown = [cast(DynamicLayer, layer) for layer in cache.layers]
            layers = tuple((cast(Tensor, one.keys), cast(Tensor, one.values)) for one in grown)
            kept = _Read(rows=rows.detach().clone(), layers=layers)
        self._last = None if any(tokens.has_experts for tokens in concepts) else kept
        found = DynamicCache(config=self.text)
        for number, (keys, values) in enumerate(kept.layers):
            shape = (count, -1, -1, -1)
            found.update(keys.expand(shape), values.expand(shape), number)
        return found
