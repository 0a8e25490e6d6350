"""Sizes of a Lance model; the defaults are those of the released 3B checkpoint.

Source: Lance release (arXiv 2605.18678), configuration files and the checkpoint's shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from op_bagel.config import BagelConfig, DecoderConfig, OwnEncoders, SpecialTokens
from op_lance.vae import WanConfig

DECODER = DecoderConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=128,
    mrope_section=(16, 24, 24),
    tokenizer_length=151665,
)


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The vision tower: Qwen2.5-VL's. `out_hidden_size` is the width of the language model."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    out_hidden_size: int = 2048

    @property
    def multiple(self) -> int:
        """Pixels along one side of a merged token; picture sides are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patch_width(self) -> int:
        """Numbers in one patch row."""
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class LanceConfig:
    """Everything that fixes the tensors and the arithmetic of a model.

    `anchor` is the frame position at which the first picture for the tower stands, where it is
    moved there. `understanding_anchor` says whether that happens where nothing is painted: the
    released training does it, the released answering does not. `recount` says how guidance counts
    what stands behind the prompt that it leaves out (`op_lance.layout.painting_contexts`).
    """

    llm: DecoderConfig = DECODER
    tower: TowerConfig = field(default_factory=TowerConfig)
    vae: WanConfig = field(default_factory=WanConfig)
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    max_latent_size: int = 64
    latent_frames: int = 1
    anchor: int = 1000
    understanding_anchor: bool = False
    recount: bool = False
    timestep_shift_train: float = 4.0
    timestep_freq_dim: int = 256

    @property
    def asking_anchor(self) -> int | None:
        """Where the first picture stands that is asked about; None: where it comes."""
        return self.anchor if self.understanding_anchor else None

    @property
    def mixture(self) -> BagelConfig:
        """The decoder and what stands around the latents: a BAGEL without encoders of its own."""
        return BagelConfig(
            llm=self.llm,
            special_tokens=self.special_tokens,
            latent_patch_size=1,
            max_latent_size=self.max_latent_size,
            latent_frames=self.latent_frames,
            timestep_shift_train=self.timestep_shift_train,
            timestep_freq_dim=self.timestep_freq_dim,
            encoders=OwnEncoders(latent_channels=self.vae.z_dim, downsample=self.vae.downsample),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LanceConfig:
        """Read a nested config (llm, vit, vae, lance, special_tokens); what is absent takes the 3B
        value. Names that are no field are passed over."""
        lance = values.get("lance", {})
        renamed = {
            "max_latent_size": lance.get("max_latent_size"),
            "latent_frames": lance.get("max_latent_frames"),
            "anchor": lance.get("position_anchor_vit"),
            "timestep_shift_train": lance.get("timestep_shift_train"),
            "timestep_freq_dim": lance.get("timestep_freq_dim"),
        }
        parts: dict[str, Any] = {
            "llm": DecoderConfig(**_fields(DecoderConfig, values.get("llm", {}))),
            "tower": TowerConfig(**_fields(TowerConfig, values.get("vit", {}))),
            "vae": WanConfig(**_fields(WanConfig, values.get("vae", {}))),
            "special_tokens": SpecialTokens(
                **_fields(SpecialTokens, values.get("special_tokens", {}))
            ),
        }
        return cls(**parts, **{name: v for name, v in renamed.items() if v is not None})


def _fields(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that are fields, lists as tuples."""
    found = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
