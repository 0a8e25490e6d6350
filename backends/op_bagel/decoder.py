"""The decoder of BAGEL: Qwen2.5's with norms of queries and keys, and two experts in every layer.

The kind of a row picks one of them, attention is shared by all rows. The rows of each expert
(`und`, `gen`) stay one dense tensor through the layers; they meet only in attention, in a padded
layout. Without generation rows the generation expert is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnipersona_cli.family.deep import added
from op_bagel.config import DecoderConfig
from op_bagel.packing import Packed

Soft = tuple[Tensor, tuple[Tensor, ...]]
"""Learned rows of one expert [n, D], and their deep tokens [n, D] at layers 1, 2, …"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The decoder's rows: `und` [Nu, D] and `gen` [Ng, D], None where there are none."""

    und: Tensor
    gen: Tensor | None

    def deepened(self, layer: int, und: Soft, gen: Soft) -> Rows:
        """What ``layer`` reads: deep tokens are added to the learned rows, the last of each."""
        return Rows(
            und=_deepened(self.und, layer, und),
            gen=None if self.gen is None else _deepened(self.gen, layer, gen),
        )

    def read(self, packed: Packed) -> Tensor:
        """[N, D] in reading order, sample after sample."""
        both = self.und if self.gen is None else torch.cat((self.und, self.gen))
        return both.index_select(0, packed.order)


def _deepened(rows: Tensor, layer: int, soft: Soft) -> Tensor:
    inputs, deep = soft
    if not 1 <= layer <= len(deep):
        return rows
    first = len(rows) - len(inputs)
    return torch.cat((rows[:first], added(rows[first:], inputs, deep[layer - 1])))


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Where the rows of one forward pass sit in attention."""

    batch: int
    length: int
    gather: Tensor
    place: Tensor
    cos: Tensor  # [N, 1, Dh / 2]
    sin: Tensor
    mask: Tensor | None  # [B, 1, L, P + L]
    apart: tuple[int, ...] | None  # rows of each sample where each attends alone

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions, half layout: [N, heads, Dh] -> the same."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)

    def arrange(self, x: Tensor) -> Tensor:
        """Rows [N, heads, Dh] at their places in the padded batch [B, L, heads, Dh]."""
        return x.index_select(0, self.gather).view(self.batch, self.length, *x.shape[1:])


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32, cast back, then scaled."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class ExpertsAttention(nn.Module):
    """One attention over all rows. Each expert has its own projections into it and out of it."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.head_dim = c.head_dim
        width = c.hidden_size
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim

        # Understanding expert
        self.q_proj = nn.Linear(width, wide)
        self.k_proj = nn.Linear(width, narrow)
        self.v_proj = nn.Linear(width, narrow)
        self.o_proj = nn.Linear(wide, width, bias=False)
        self.q_norm = head_norm(c)
        self.k_norm = head_norm(c)

        # Generation expert
        self.q_proj_moe_gen = nn.Linear(width, wide)
        self.k_proj_moe_gen = nn.Linear(width, narrow)
        self.v_proj_moe_gen = nn.Linear(width, narrow)
        self.o_proj_moe_gen = nn.Linear(wide, width, bias=False)
        self.q_norm_moe_gen = head_norm(c)
        self.k_norm_moe_gen = head_norm(c)

    def understanding_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed und rows [n, D] -> q [n, H, Dh], k and v [n, Hkv, Dh], before rotation."""
        q = self.q_proj(x).view(len(x), self.heads, self.head_dim)
        k = self.k_proj(x).view(len(x), self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(len(x), self.kv_heads, self.head_dim)
        return self.q_norm(q), self.k_norm(k), v

    def generation_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed gen rows [n, D] -> q [n, H, Dh], k and v [n, Hkv, Dh], before rotation."""
        q = self.q_proj_moe_gen(x).view(len(x), self.heads, self.head_dim)
        k = self.k_proj_moe_gen(x).view(len(x), self.kv_heads, self.head_dim)
        v = self.v_proj_moe_gen(x).view(len(x), self.kv_heads, self.head_dim)
        return self.q_norm_moe_gen(q), self.k_norm_moe_gen(k), v

    def attend_apart(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rows: Sequence[int]
    ) -> Tensor:
        """As `attend`, but sample by sample, so that nothing is computed for padding: sample b has
        `rows[b]` rows of its own, and nothing in its past is padding."""
        length, past = q.shape[1], k.shape[1] - q.shape[1]
        found = []
        for b, n in enumerate(rows):
            own, all_of_it = slice(b, b + 1), past + n
            visible = mask[own, :, :n, :all_of_it]
            one = self.attend(q[own, :n], k[own, :all_of_it], v[own, :all_of_it], visible)
            found.append(F.pad(one, (0, 0, 0, length - n)))
        return torch.cat(found)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, L, H, Dh] over k, v [B, P + L, Hkv, Dh] -> [B * L, H * Dh]."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        shared = self.heads != self.kv_heads
        if shared and mask is not None and q.device.type != "cpu":
            # Fused CUDA kernels take a mask or shared heads, not both; on Apple's GPUs both
            # together end the process in some versions of torch (pytorch/pytorch#149132).
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
            shared = False
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        return out.transpose(1, 2).reshape(-1, self.heads * self.head_dim)


def head_norm(c: DecoderConfig) -> nn.Module:
    """The norm of queries or keys, over one head, where the model has such norms."""
    return RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()


class MLP(nn.Module):
    """down(silu(gate) * up), no biases."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer: attention that all rows share, then an MLP; each expert has its own
    weights for both (a mixture of transformers)."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = ExpertsAttention(c)

        # Understanding expert
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

        # Generation expert
        self.mlp_moe_gen = MLP(c)
        self.input_layernorm_moe_gen = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(
        self,
        rows: Rows,
        frame: Frame,
        past: tuple[Tensor, Tensor] | None,
        keep: tuple[Tensor, Tensor] | None,
    ) -> tuple[Rows, Tensor, Tensor]:
        """Next rows, and the keys and values [B, P + L, Hkv, Dh] that they attended to.

        With `keep` (indices of und rows, of gen rows) only those rows come out.
        """
        und, gen = rows.und, rows.gen

        # Each expert norms its own rows and projects them to queries, keys and values.
        q, k, v = self.self_attn.understanding_heads(self.input_layernorm(und))
        if gen is not None:
            of_gen = self.self_attn.generation_heads(self.input_layernorm_moe_gen(gen))
            q, k, v = (torch.cat(both) for both in zip((q, k, v), of_gen, strict=True))

        # Rotary positions; then every row goes to its place in its sample, after the cache.
        q = frame.arrange(frame.rotate(q).to(v.dtype))
        k = frame.arrange(frame.rotate(k).to(v.dtype))
        v = frame.arrange(v)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
        if keep is not None and not len(keep[0]) and not len(keep[1]):
            return Rows(und=und[:0], gen=None), k, v  # the keys and values were all that is needed

        # One attention over the rows of both experts.
        if frame.apart is None or frame.mask is None:
            attended = self.self_attn.attend(q, k, v, frame.mask)
        else:
            attended = self.self_attn.attend_apart(q, k, v, frame.mask, frame.apart)

        # Back to two streams. In the last layer, only the rows that a head reads go on.
        und_place, gen_place = frame.place[: len(und)], frame.place[len(und) :]
        if keep is not None:
            und, und_place = und.index_select(0, keep[0]), und_place.index_select(0, keep[0])
            if gen is not None:
                gen, gen_place = gen.index_select(0, keep[1]), gen_place.index_select(0, keep[1])

        # Understanding expert: output projection, MLP, each added to its rows.
        und = und + self.self_attn.o_proj(attended.index_select(0, und_place))
        und = und + self.mlp(self.post_attention_layernorm(und))

        # Generation expert: the same with its own weights.
        if gen is not None and len(gen):
            gen = gen + self.self_attn.o_proj_moe_gen(attended.index_select(0, gen_place))
            gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return Rows(und=und, gen=gen), k, v


class Transformer(nn.Module):
    """Token embedding, the layers and one closing norm per expert."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(c.hidden_size, c.rms_norm_eps)


class LanguageModel(nn.Module):
    """The decoder and the text head (the embedding itself where tied)."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.model = Transformer(c)
        self.lm_head: nn.Linear | None = None
        if not c.tie_word_embeddings:
            self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def logits(self, x: Tensor) -> Tensor:
        """Normed und rows [n, D] -> [n, vocab]."""
        if self.lm_head is None:
            return F.linear(x, self.model.embed_tokens.weight)
        out: Tensor = self.lm_head(x)
        return out
