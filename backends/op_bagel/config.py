"""Sizes of a BAGEL model; the defaults are those of the released 7B checkpoint.

Source: BAGEL release, config files and the checkpoint's shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from op_bagel.vae import VAEConfig

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "silu")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model: Qwen2.5 shapes, every layer weight held twice.

    Rotary positions have three axes: frame, row, column. `mrope_section` counts the frequencies
    that turn with each of them; without it all axes are equal, which is BAGEL's single position.
    With it, picture tokens stand at their row and column. `tokenizer_length` is how many rows of
    the vocabulary the tokenizer uses, where the others take no part in the softmax.
    """

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    qk_norm: bool = True
    tie_word_embeddings: bool = False
    mrope_section: tuple[int, ...] = ()
    tokenizer_length: int | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.hidden_size % 4 or self.head_dim % 2:
            raise ValueError("hidden_size must be a multiple of 4 and head_dim even")
        if self.mrope_section:
            if len(self.mrope_section) != 3 or sum(self.mrope_section) != self.head_dim // 2:
                raise ValueError(
                    f"mrope_section must be three counts of {self.head_dim // 2} in all"
                )

    @property
    def axes(self) -> tuple[int, ...]:
        """Which axis of a position each of the head_dim / 2 frequencies turns with."""
        if not self.mrope_section:
            return (0,) * (self.head_dim // 2)
        return tuple(axis for axis, count in enumerate(self.mrope_section) for _ in range(count))


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The picture encoder: SigLIP shapes. `num_hidden_layers` counts the layers that run."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 980
    patch_size: int = 14
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.hidden_act!r}; known: {ACTIVATIONS}")
        if self.image_size % self.patch_size or self.hidden_size % self.num_attention_heads:
            raise ValueError("image_size must split in patches and hidden_size in heads")

    @property
    def side(self) -> int:
        """Cells along one side of the position tables, which is also their row stride."""
        return self.image_size // self.patch_size

    @property
    def patch_width(self) -> int:
        """Numbers in one patch row."""
        return self.patch_size**2 * self.num_channels


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of the four tokens that frame turns and pictures."""

    bos_token_id: int = 151644
    eos_token_id: int = 151645
    start_of_image: int = 151652
    end_of_image: int = 151653


@dataclass(frozen=True, kw_only=True)
class OwnEncoders:
    """Of a model of BAGEL's lineage whose vision tower and autoencoder are other modules: the tower
    gives features that are ready for the language model, the autoencoder `latent_channels` numbers
    for each cell of `downsample` pixels."""

    latent_channels: int
    downsample: int


@dataclass(frozen=True, kw_only=True)
class BagelConfig:
    """Everything that fixes the tensors and the arithmetic of a model.

    `timestep_shift_train` is the time shift of training draws; `timestep_freq_dim` the features
    of the time embedder; `max_latent_size` the side of the latent position table. With `encoders`
    neither `vit` nor `vae` is used. `latent_frames` counts the frames of a latent table that has
    them as an axis; 0 is BAGEL's own table.
    """

    llm: DecoderConfig = field(default_factory=DecoderConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    latent_patch_size: int = 2
    max_latent_size: int = 64
    connector_act: str = "gelu_pytorch_tanh"
    interpolate_pos: bool = False
    timestep_shift_train: float = 1.0
    timestep_freq_dim: int = 256
    encoders: OwnEncoders | None = None
    latent_frames: int = 0

    def __post_init__(self) -> None:
        if self.connector_act not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.connector_act!r}; known: {ACTIVATIONS}")

    @property
    def latent_width(self) -> int:
        """Numbers in one latent token."""
        channels = self.vae.z_channels if self.encoders is None else self.encoders.latent_channels
        return self.latent_patch_size**2 * channels

    @property
    def stride(self) -> int:
        """Pixels along one side of a latent token; picture sides are multiples of it."""
        own = self.vae if self.encoders is None else self.encoders
        return own.downsample * self.latent_patch_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BagelConfig:
        """Read the nested config that `to_dict` writes; what is absent takes the 7B value.

        Raises ValueError for what is not implemented (rotary ViT, another decoder activation)
        and where a stated table side disagrees with the ViT's.
        """
        llm, vit, bagel = (dict(values.get(name, {})) for name in ("llm", "vit", "bagel"))
        if llm.get("hidden_act", "silu") != "silu" or llm.get("rope_scaling") or vit.get("rope"):
            raise ValueError("only silu, unscaled rotary positions and a ViT without them exist")
        if "head_dim" not in llm and "hidden_size" in llm:
            llm["head_dim"] = llm["hidden_size"] // llm["num_attention_heads"]
        if "num_hidden_layers_used" in vit:
            vit["num_hidden_layers"] = vit["num_hidden_layers_used"]
        parts: dict[str, Any] = {
            "llm": DecoderConfig(**_known(DecoderConfig, llm)),
            "vit": ViTConfig(**_known(ViTConfig, vit)),
            "vae": VAEConfig.from_dict(values.get("vae", {})),
            "special_tokens": SpecialTokens(
                **_known(SpecialTokens, values.get("special_tokens", {}))
            ),
        }
        config = cls(**parts, **{k: v for k, v in _known(cls, bagel).items() if k not in parts})
        side = bagel.get("vit_max_num_patch_per_side", config.vit.side)
        if side != config.vit.side:
            raise ValueError(f"vit_max_num_patch_per_side {side} is not {config.vit.side}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that `from_dict` reads back."""
        values = asdict(self)
        names = ("llm", "vit", "vae", "special_tokens")
        nested = {name: values.pop(name) for name in names}
        nested["vae"] = self.vae.to_dict()
        return {**nested, "bagel": values}


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in cls.__dataclass_fields__ if name in values}
