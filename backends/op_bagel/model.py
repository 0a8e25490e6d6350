"""BAGEL: one decoder that reads pictures and text, and generates both, at any size.

Tensor names and shapes are those of the released `ema.safetensors`.

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

from omnipersona_cli.family.deep import check_layers, parted
from op_bagel.cache import Cache
from op_bagel.config import BagelConfig
from op_bagel.decoder import Frame, LanguageModel, RMSNorm, Rows, Soft
from op_bagel.packing import Packed, pack
from op_bagel.pictures import Grid, position_ids, sincos_table, sincos_table_3d
from op_bagel.segments import Noise, Sample, Text
from op_bagel.vit import TwoLinears, VisionModel

GEN = "_moe_gen"
"""What the released names of the generation expert's tensors add to the understanding expert's."""


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
