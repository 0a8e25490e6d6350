"""Show-o's transformer: phi with q/k LayerNorm under a mask of our own, and soft rows beside it.

Sources: Show-o, section 3.2; transformers' PhiForCausalLM. Positions count from 0 over the whole
row, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PhiConfig, PhiForCausalLM
from transformers.cache_utils import DynamicLayer

from omnipersona_cli.family.deep import level, run_layers
from op_showo.config import ShowoConfig

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""For each layer, keys and values [B, heads, P, head_dim]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtraVocabulary:
    """The concept tokens of one prompt, as ids after those of the vocabulary: input rows [k, d], or
    wide ones (`omnipersona_cli.family.deep`), and for those that the model may generate the head's
    rows: weight [m, d], bias [m]."""

    rows: Tensor
    head: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """What was read so far. ``key`` true [B, P] where later rows may look."""

    layers: KeyValues
    key: Tensor

    @property
    def length(self) -> int:
        """How many positions were read."""
        return self.key.shape[1]

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def expand(self, count: int) -> Prefix:
        """The same for ``count`` rows; nothing is copied."""
        layers = tuple(
            (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in self.layers
        )
        return Prefix(layers=layers, key=self.key.expand(count, -1))


class Behind(DynamicCache):
    """A cache that is read and does not grow: a layer may run twice on it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix with these behind them."""
        held = (
            cast("DynamicLayer", self.layers[layer_idx]) if layer_idx < len(self.layers) else None
        )
        if held is None or not held.is_initialized:
            return key_states, value_states
        keys, values = cast(Tensor, held.keys), cast(Tensor, held.values)
        return torch.cat((keys, key_states), dim=-2), torch.cat((values, value_states), dim=-2)


def stack(prefixes: Sequence[Prefix]) -> Prefix:
    """Prefixes of one length as the rows of one batch."""
    layers = tuple(
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
        for layer in zip(*(prefix.layers for prefix in prefixes), strict=True)
    )
    return Prefix(layers=layers, key=torch.cat([prefix.key for prefix in prefixes]))


class Showo(nn.Module):
    """Tensor names are the released ones: ``showo.*``, and ``mm_projector.*`` with CLIP."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.config = config
        self.showo = PhiForCausalLM(phi_config(config))
        self.mm_projector: nn.Sequential | None = None
        if config.clip_width:
            self.mm_projector = nn.Sequential(
                nn.Linear(config.clip_width, config.llm.hidden_size),
                nn.GELU(),
                nn.Linear(config.llm.hidden_size, config.llm.hidden_size),
            )

    @property
    def table(self) -> Tensor:
        """The embedding table [vocab, d]."""
        weight: Tensor = self.showo.model.embed_tokens.weight
        return weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.table.device

    def embed(self, ids: Tensor, soft: ExtraVocabulary | None = None) -> Tensor:
        """[..., L] ids -> rows [..., L, d], wide ones where soft rows are in them that are; ids
        beyond the table are soft rows."""
        ids = ids.to(self.device)
        size = self.config.vocab.size
        rows = F.embedding(ids.clamp(max=size - 1), self.table)
        if soft is None or not bool((ids >= size).any()):
            return rows
        rows, own = level([rows, soft.rows.to(rows)])
        return torch.where((ids >= size)[..., None], own[(ids - size).clamp(min=0)], rows)

    def forward(
        self, rows: Tensor, attend: Tensor, prefix: Prefix | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Rows [B, L, d], or wide ones -> last hidden states [B, L, d], and all keys and values,
        prefix first
        (those of the prefix alone where gradients are on: nobody goes on from there).

        ``attend`` [B, 1, L, P + L] is true where a query may look at a key.
        """
        length = 0 if prefix is None else prefix.length
        cache = (Behind if torch.is_grad_enabled() else DynamicCache)(config=self.showo.config)
        if prefix is not None:
            for number, (keys, values) in enumerate(prefix.layers):
                DynamicCache.update(cache, keys, values, number)
        places = torch.arange(length, length + rows.shape[1], device=rows.device)[None]
        states = run_layers(
            self.showo.model,
            rows,
            attention_mask=attend.to(rows.device).expand(len(rows), -1, -1, -1),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        grown = (cast("DynamicLayer", layer) for layer in cache.layers)
        layers = tuple(
            (cast(Tensor, layer.keys), cast(Tensor, layer.values))
            for layer in grown
            if layer.is_initialized
        )
        return states, layers

    def read(
        self,
        rows: Tensor,
        attend: Tensor,
        prefix: Prefix | None = None,
        *,
        key: Tensor | None = None,
    ) -> tuple[Tensor, Prefix]:
        """`forward`, and the keys and values of all; ``key`` [B, L] says which of the new positions
        later rows may see (all)."""
        hidden, layers = self(rows, attend, prefix)
        if key is None:
            key = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        key = key.to(rows.device)
        if prefix is not None:
            key = torch.cat((prefix.key, key), dim=1)
        return hidden, Prefix(layers=layers, key=key)

    def follow(self, rows: Tensor, prefix: Prefix) -> tuple[Tensor, Prefix]:
        """Read on causally: each row sees all of the prefix and its own past."""
        length = rows.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()
        attend = torch.cat(
            (
                prefix.key[:, None, None, :].expand(-1, 1, length, -1),
                causal[None, None].expand(len(rows), 1, -1, -1),
            ),
            dim=-1,
        )
        return self.read(rows, attend, prefix)

    def logits(self, hidden: Tensor, soft: ExtraVocabulary | None = None) -> Tensor:
        """[..., d] -> [..., vocab + m]; the soft rows' columns come last."""
        scores: Tensor = self.showo.lm_head(hidden)
        if soft is None or not len(soft.head):
            return scores
        own = F.linear(hidden, soft.head.to(hidden), soft.bias.to(hidden))
        return torch.cat((scores, own), dim=-1)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., codes]: the image codes' columns alone."""
        vocab = self.config.vocab
        codes = slice(vocab.image_offset, vocab.image_offset + vocab.codebook_size)
        head = self.showo.lm_head
        return F.linear(hidden, head.weight[codes], head.bias[codes])

    def losses(self, hidden: Tensor, labels: Tensor, soft: ExtraVocabulary | None = None) -> Tensor:
        """Cross-entropy [n] at the positions whose label is not negative; the head runs there
        alone. ``hidden`` [B, L, d], ``labels`` [B, L]."""
        labels = labels.to(hidden.device)
        at = labels >= 0
        scores = self.logits(hidden[at], soft)
        return F.cross_entropy(scores.float(), labels[at], reduction="none")


def phi_config(config: ShowoConfig) -> PhiConfig:
    """Show-o's decoder for transformers."""
    llm = config.llm
    phi = PhiConfig(
        vocab_size=config.vocab.size,
        hidden_size=llm.hidden_size,
        intermediate_size=llm.intermediate_size,
        num_hidden_layers=llm.num_hidden_layers,
        num_attention_heads=llm.num_attention_heads,
        num_key_value_heads=llm.num_attention_heads,
        hidden_act="gelu_pytorch_tanh",  # phi's gelu_new in one kernel, which keeps a quarter
        layer_norm_eps=llm.layer_norm_eps,
        max_position_embeddings=llm.max_position_embeddings,
        qk_layernorm=True,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": llm.rope_theta,
            "partial_rotary_factor": llm.partial_rotary_factor,
        },
        bos_token_id=None,
        eos_token_id=None,
    )
    phi._attn_implementation = "sdpa"  # without it a mask of our own would go unread
    return phi
