"""BAGEL: one decoder that reads pictures and text, and generates both, at any size.

Every decoder layer holds two experts, one for understanding and one for generation; the kind of a
row picks one, attention is shared by all rows. The rows of each expert (`und`, `gen`) stay one
dense tensor through the layers; they meet only in attention, in a padded layout. Tensor names and
shapes are those of the released `ema.safetensors`; without generation rows the generation expert is
never read.

Source: BAGEL release ("Emerging Properties in Unified Multimodal Pretraining", arXiv 2505.14683),
modelling code; Qwen2.5 decoder with q/k norms, SigLIP picture encoder, rectified flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnipersona_cli.family.deep import added, check_layers, parted
from op_bagel.config import BagelConfig, DecoderConfig
from op_bagel.packing import Noise, Packed, Sample, Text, pack
from op_bagel.pictures import Grid, position_ids, sincos_table, sincos_table_3d
from op_bagel.vit import TwoLinears, VisionModel

Soft = tuple[Tensor, tuple[Tensor, ...]]
"""Learned rows of one expert [n, D], and their deep tokens [n, D] at layers 1, 2, …"""

GEN = "_moe_gen"
"""What the released names of the generation expert's tensors add to the understanding expert's."""


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
class Outputs:
    """What the heads compute; a head without rows gives an empty tensor.

    `hidden` holds the rows in reading order: before layer 0, after each layer, after the norms.
    """

    ce: Tensor  # [K] cross-entropy of each label
    velocity: Tensor  # [M, latent width] at the noised tokens
    mse: Tensor  # [M] mean over the channels; empty without a target
    logits: Tensor | None = None  # [K, vocab]
    hidden: tuple[Tensor, ...] = ()


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


class TimeEmbedder(nn.Module):
    """Times [n] in [0, 1], not multiplied by 1000 -> [n, D]."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.width = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def features(self, t: Tensor) -> Tensor:
        """[n] -> [n, features] float32: cosines, then sines."""
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        return torch.cat((angle.cos(), angle.sin()), dim=-1)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        out: Tensor = self.mlp(self.features(t).to(dtype))
        return out


class PositionTable(nn.Module):
    """A fixed sin-cos table [places, D]; the checkpoint carries a rounded copy."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(table, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.pos_embed.index_select(0, ids)


class Bagel(nn.Module):
    """The whole model but the autoencoder, which works on pictures alone.

    `forward` takes packed rows, optionally after a cache: for training and scoring. `prefill`
    grows a cache; `next_logits` and `velocity` are the steps of text and picture generation.
    """

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.llm.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.time_embedder = TimeEmbedder(config.timestep_freq_dim, width)
        self.vae2llm = nn.Linear(config.latent_width, width)
        self.llm2vae = nn.Linear(width, config.latent_width)
        side = config.max_latent_size
        self.latent_pos_embed = PositionTable(
            sincos_table_3d(config.latent_frames, side, width)
            if config.latent_frames
            else sincos_table(side, width)
        )
        if config.encoders is None:
            self.vit_model = VisionModel(config.vit)
            self.connector = TwoLinears(config.vit.hidden_size, width, width, config.connector_act)
            self.vit_pos_embed = PositionTable(sincos_table(config.vit.side, width))

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.language_model.model.norm.weight.device

    # --- inputs ---------------------------------------------------------------------------

    def see(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """Pictures as patch rows -> their features [n, D], ready for `Vit(features=...)`."""
        config = self.config
        ids = [
            position_ids(grid, config.vit.side, interpolate=config.interpolate_pos)
            for grid in grids
        ]
        counts = [len(rows) for rows in patches]
        joined = torch.cat(list(patches)).to(self.device)
        features = self._see(joined, torch.cat(ids).to(self.device), counts)
        return list(torch.split(features, counts))

    def _see(self, patches: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        x = self.vit_model.vision_model(patches.to(self.dtype), ids, counts)
        out: Tensor = self.connector(x) + self.vit_pos_embed(ids)
        return out

    def embed(self, packed: Packed) -> Rows:
        """The rows that enter layer 0; learned rows keep their graph."""
        dtype, width = self.dtype, self.config.llm.hidden_size
        und = [self.language_model.model.embed_tokens(packed.text_ids)]
        if packed.patches is not None:
            und.append(self._see(packed.patches, packed.patch_ids, packed.patch_counts))
        und += [x[:, :width].to(dtype) for x in (packed.features, packed.soft_und) if x is not None]
        gen = []
        if packed.latents is not None:
            time = self.time_embedder(packed.times, dtype).index_select(0, packed.latent_image)
            place = self.latent_pos_embed(packed.latent_ids)
            gen.append(self.vae2llm(packed.latents.to(dtype)) + time + place)
        if packed.soft_gen is not None:
            gen.append(packed.soft_gen[:, :width].to(dtype))
        return Rows(und=torch.cat(und), gen=torch.cat(gen) if gen else None)

    # --- layers ---------------------------------------------------------------------------

    def forward(
        self,
        packed: Packed,
        cache: Cache | None = None,
        *,
        rows: Rows | None = None,
        logits: bool = False,
        hidden: bool = False,
    ) -> Outputs:
        """Run a batch, optionally after a cache (of one context, or one per sample).

        The cache may carry a graph: a concept's turn can be computed once for a whole batch.
        `rows` replaces `embed(packed)`. `logits` and `hidden` ask for what `Outputs` says.
        """
        keep = None if hidden else (packed.label_at, packed.noised_at)
        states, last, _ = self._run(packed, cache, rows, keep, hidden)
        return self._heads(packed, last, states, keep is not None, logits)

    def _run(
        self,
        packed: Packed,
        cache: Cache | None,
        rows: Rows | None,
        keep: tuple[Tensor, Tensor] | None,
        trace: bool = False,
    ) -> tuple[list[Tensor], Rows, list[tuple[Tensor, Tensor]]]:
        """States in reading order (where traced), the last rows, and each layer's keys and values
        [B, P + L, Hkv, Dh]."""
        rows = self.embed(packed) if rows is None else rows
        if cache is not None:
            cache = cache.expand(packed.batch)
        frame = self._frame(packed, cache)
        states = [rows.read(packed)] if trace else []
        layers = self.language_model.model.layers
        und, gen = self._soft(packed.soft_und), self._soft(packed.soft_gen)
        grown = []
        for i, layer in enumerate(layers):
            rows = rows.deepened(i, und, gen)
            past = None if cache is None else (cache.keys[i], cache.values[i])
            last = i == len(layers) - 1
            rows, k, v = layer(rows, frame, past, keep if last else None)
            grown.append((k, v))
            if trace:
                states.append(rows.read(packed))
        return states, rows, grown

    def _soft(self, rows: Tensor | None) -> Soft:
        """One expert's learned rows, taken apart."""
        width = self.config.llm.hidden_size
        inputs, deep = parted(torch.zeros(0, width) if rows is None else rows, width)
        check_layers(len(deep), self.config.llm.num_hidden_layers)
        return inputs, deep

    def _frame(self, packed: Packed, cache: Cache | None) -> Frame:
        positions, mask = packed.positions, packed.mask
        if cache is not None:
            positions = positions + cache.positions.index_select(0, packed.sample)[:, None]
            if mask is not None or cache.mask is not None:
                batch, length = packed.batch, packed.length
                old = cache.real_rows()[:, None, None, :].expand(-1, -1, length, -1)
                if mask is None:
                    mask = old.new_ones(batch, 1, length, length)
                mask = torch.cat((old, mask), dim=-1)
        c = self.config.llm
        steps = torch.arange(0, c.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequency = 1.0 / (c.rope_theta ** (steps / c.head_dim))
        axes = torch.tensor(c.axes, device=positions.device)
        angle = positions.float().index_select(1, axes)[:, None, :] * frequency
        return Frame(
            batch=packed.batch,
            length=packed.length,
            gather=packed.gather,
            place=packed.place,
            cos=angle.cos().to(self.dtype),
            sin=angle.sin().to(self.dtype),
            mask=mask,
            apart=packed.apart if cache is None or cache.mask is None else None,
        )

    # --- heads ----------------------------------------------------------------------------

    def _heads(
        self, packed: Packed, rows: Rows, states: list[Tensor], kept: bool, logits: bool
    ) -> Outputs:
        decoder = self.language_model.model
        if not kept:
            normed = Rows(
                und=decoder.norm(rows.und),
                gen=None if rows.gen is None else decoder.norm_moe_gen(rows.gen),
            )
            states = [*states, normed.read(packed)]
        empty = torch.zeros(0, device=rows.und.device)
        ce, mse, scores = empty, empty, None
        velocity = empty.new_zeros(0, self.config.latent_width)
        if len(packed.labels):
            und = rows.und if kept else rows.und.index_select(0, packed.label_at)
            scores = self.language_model.logits(decoder.norm(und))
            known = scores[:, : self.config.llm.tokenizer_length]
            ce = F.cross_entropy(known.float(), packed.labels, reduction="none")
        if len(packed.noised_at):
            assert rows.gen is not None  # for the type checker: noised tokens are rows of gen
            gen = rows.gen if kept else rows.gen.index_select(0, packed.noised_at)
            velocity = self.llm2vae(decoder.norm_moe_gen(gen))
            if packed.target is not None:
                mse = (velocity.float() - packed.target.float()).square().mean(-1)
        return Outputs(
            ce=ce,
            velocity=velocity,
            mse=mse,
            logits=scores if logits else None,
            hidden=tuple(states),
        )

    # --- contexts -------------------------------------------------------------------------

    def empty_cache(self, batch: int = 1) -> Cache:
        """The cache of empty contexts."""
        c = self.config.llm
        shape = (batch, 0, c.num_key_value_heads, c.head_dim)
        none = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return Cache(
            keys=(none,) * c.num_hidden_layers,
            values=(none,) * c.num_hidden_layers,
            positions=torch.zeros(batch, dtype=torch.long, device=self.device),
        )

    def prefill(self, *contexts: Sample, cache: Cache | None = None) -> Cache:
        """Append segments to a cache: one sequence of segments per context.

        One cache may start several contexts. Keeps the graph where gradients are on.
        Raises ValueError for pictures to be generated: those never enter a cache.
        """
        cache = (self.empty_cache() if cache is None else cache).expand(len(contexts))
        if any(isinstance(segment, Noise) for context in contexts for segment in context):
            raise ValueError("a picture to be generated cannot enter a context")
        if not any(contexts):
            return cache
        return self._append(pack(contexts, self.config, self.device), cache)

    def _append(self, packed: Packed, cache: Cache) -> Cache:
        none = packed.place[:0]
        _, _, layers = self._run(packed, cache, None, (none, none))
        return self._grown(packed, cache, layers)

    def _grown(
        self, packed: Packed, cache: Cache, layers: Sequence[tuple[Tensor, Tensor]]
    ) -> Cache:
        """`cache` with the rows of `packed` at its end; `layers` hold the keys and values."""
        mask = None
        steps = torch.arange(packed.length, device=packed.lengths.device)
        real = steps < packed.lengths[:, None]
        if cache.mask is not None or packed.gather.shape != packed.place.shape:
            mask = torch.cat((cache.real_rows(), real), dim=1)
        return Cache(
            keys=tuple(k for k, _ in layers),
            values=tuple(v for _, v in layers),
            positions=cache.positions + packed.advance,
            mask=mask,
        )

    def next_logits(self, ids: Sequence[int], cache: Cache) -> tuple[Tensor, Cache]:
        """Feed one id per context -> logits [B, vocab] float32 of the next, and the grown cache."""
        packed = pack([[Text((i,), raw=True)] for i in ids], self.config, self.device)
        rows = torch.arange(len(ids), device=self.device)
        _, last, layers = self._run(packed, cache, None, (rows, rows[:0]))
        scores = self.language_model.logits(self.language_model.model.norm(last.und))
        return scores.float(), self._grown(packed, cache.expand(len(ids)), layers)

    def drawing(self, batch: int, grid: Grid) -> Packed:
        """The layout of `batch` pictures to be generated; every step of `velocity` takes it."""
        blank = torch.zeros(grid[0] * grid[1], self.config.latent_width)
        return pack([[Noise(blank, grid, 0.0)]] * batch, self.config, self.device)

    def velocity(self, cache: Cache, x: Tensor, t: float | Tensor, layout: Packed) -> Tensor:
        """Noised tokens [B, n, latent width] at time t (a number or [B]) -> velocity, float32.

        `layout` is `drawing(B, grid)`. The cache, of one context or of B, is only read.
        """
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(layout.batch)
        packed = replace(layout, latents=x.flatten(0, 1), times=times)
        outputs: Outputs = self(packed, cache)
        return outputs.velocity.float().view_as(x)


def initialise(model: Bagel, seed: int) -> None:
    """Random weights for training from scratch, the same for the same seed.

    Linear weights are normal with variance 1 / inputs, biases 0, embeddings normal 0.02, norms 1.
    The generation expert starts as a copy of the understanding one, and `llm2vae` at zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: Tensor, std: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                draw(module.weight, module.in_features**-0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                draw(module.weight, 0.02)
            elif isinstance(module, RMSNorm | nn.LayerNorm):
                module.weight.fill_(1.0)
                if isinstance(module, nn.LayerNorm):
                    module.bias.zero_()
        own = dict(model.named_parameters())
        for name, parameter in own.items():
            if GEN in name:  # its twin of the understanding expert
                parameter.copy_(own[name.replace(GEN, "")])
        model.llm2vae.weight.zero_()
        model.llm2vae.bias.zero_()
