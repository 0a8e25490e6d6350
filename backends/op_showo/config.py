"""Sizes and ids of a Show-o model; the defaults are those of the released 512-pixel checkpoint.

Sources: Show-o (Xie et al. 2024), sections 3.1 and 3.2; the released config.json; phi-1.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NEW_TOKENS = (
    "[PAD]",
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)
"""What Show-o adds to the text vocabulary of phi-1.5, in the order of the ids."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
"""What the CLIP variants read before the picture: 28 tokens of phi-1.5."""


SHORTEST_TEXT = 4
"""T of a prompt with one word in it: its markers take three places."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """phi-1.5, with a LayerNorm over each head's q and k that phi-1.5 itself does not have."""

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    intermediate_size: int = 8192
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048

    def __post_init__(self) -> None:
        _check_counts(
            self,
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """One half of the image tokenizer: a level's width is ``ch`` times its entry of ``ch_mult``."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 4, 4)
    num_res_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)

    def __post_init__(self) -> None:
        _check_counts(self, "ch", "ch_mult", "num_res_blocks")
        if len(self.ch_mult) != len(self.num_res_blocks):
            raise ValueError("ch_mult and num_res_blocks must have one entry a level")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """MAGVIT-v2 for pictures: ``bits`` channels, each of which becomes one bit of a code."""

    bits: int = 13
    encoder: CoderConfig = field(default_factory=CoderConfig)
    decoder: CoderConfig = field(
        default_factory=lambda: CoderConfig(ch_mult=(1, 1, 2, 2, 4), num_res_blocks=(4, 4, 3, 4, 3))
    )
    groups: int = 32
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_counts(self, "bits", "groups")
        for half in (self.encoder, self.decoder):
            if half.ch % self.groups:
                raise ValueError(f"{half.ch} channels do not divide into {self.groups} groups")

    @property
    def downsample(self) -> int:
        """Pixels along one side of an image code."""
        return int(2 ** (len(self.encoder.ch_mult) - 1))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids: text, Show-o's ten new tokens, image codes, and the mask in the last row."""

    llm_vocab_size: int = 50295
    codebook_size: int = 8192
    bos: int = 50256  # phi's end-of-text is bos, eos, sot and eot

    def __post_init__(self) -> None:
        _check_counts(self, "llm_vocab_size", "codebook_size", "bos")
        if not 0 <= self.bos < self.llm_vocab_size:
            raise ValueError("the end-of-text token must be a text token")

    @property
    def eos(self) -> int:
        """End of a text."""
        return self.bos

    @property
    def image_offset(self) -> int:
        """The id of image code 0."""
        return self.llm_vocab_size + len(NEW_TOKENS)

    @property
    def mask(self) -> int:
        """The id that stands for an image code not known yet."""
        return self.image_offset + self.codebook_size

    @property
    def size(self) -> int:
        """Rows of the embedding table and of the head."""
        return self.mask + 1

    def special(self, token: str) -> int:
        """The id of one of `NEW_TOKENS`."""
        return self.llm_vocab_size + NEW_TOKENS.index(token)


@dataclass(frozen=True, kw_only=True)
class ShowoConfig:
    """Everything that fixes the tensors and the arithmetic. ``text_length`` is T of the prompts;
    ``resolution`` is in pixels; ``clip_width`` is 0 for the variants without CLIP."""

    llm: DecoderConfig = field(default_factory=DecoderConfig)
    vq: TokenizerConfig = field(default_factory=TokenizerConfig)
    vocab: Vocabulary = field(default_factory=Vocabulary)
    text_length: int = 128
    resolution: int = 512
    clip_width: int = 0

    def __post_init__(self) -> None:
        _check_counts(self, "text_length", "resolution")
        if self.text_length < SHORTEST_TEXT:
            raise ValueError(f"a text of {self.text_length} tokens leaves no room for words")
        if self.vocab.codebook_size != 2**self.vq.bits:
            raise ValueError(f"{self.vq.bits} bits do not count {self.vocab.codebook_size} codes")
        if self.resolution % self.vq.downsample:
            raise ValueError(f"resolution must be a multiple of {self.vq.downsample}")
        length = self.text_length + self.image_tokens + 3
        if length > self.llm.max_position_embeddings:
            raise ValueError(f"{length} positions do not fit {self.llm.max_position_embeddings}")

    @property
    def side(self) -> int:
        """Image codes along one side of a picture."""
        return self.resolution // self.vq.downsample

    @property
    def image_tokens(self) -> int:
        """N, image codes of a picture."""
        return self.side**2

    @classmethod
    def from_released(
        cls,
        values: Mapping[str, Any],
        *,
        llm: DecoderConfig | None = None,
        vq: TokenizerConfig | None = None,
        clip_width: int = 1024,
    ) -> ShowoConfig:
        """Read a released config.json, with phi's and the image tokenizer's own sizes beside it.

        Raises ValueError for sizes that contradict each other, KeyError and TypeError for a file
        of another kind.
        """
        tokenizer = vq or TokenizerConfig()
        vocab = Vocabulary(
            llm_vocab_size=values["llm_vocab_size"],
            codebook_size=values["codebook_size"],
            bos=values.get("bos_token_id", min(50256, values["llm_vocab_size"] - 1)),
        )
        side = math.isqrt(values["num_vq_tokens"])
        if side**2 != values["num_vq_tokens"]:
            raise ValueError(
                f"num_vq_tokens is {values['num_vq_tokens']}, which is not a square number"
            )
        for name, expected in (
            ("vocab_size", vocab.size),
            ("mask_token_id", vocab.mask),
            ("num_new_special_tokens", len(NEW_TOKENS)),
        ):
            if values.get(name, expected) != expected:
                raise ValueError(f"{name} is {values[name]}, which should be {expected}")
        return cls(
            llm=llm or DecoderConfig(),
            vq=tokenizer,
            vocab=vocab,
            text_length=values.get("max_seq_length", 128),
            resolution=side * tokenizer.downsample,
            clip_width=clip_width if values.get("w_clip_vit") else 0,
        )


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Sizes of the language model, from phi's config.json; what is absent is phi-1.5's."""
    known = DecoderConfig.__dataclass_fields__
    return DecoderConfig(**{name: values[name] for name in known if name in values})


def tokenizer_config(values: Mapping[str, Any]) -> TokenizerConfig:
    """Sizes of the image tokenizer; what is absent takes the released value."""

    def half(name: str, default: CoderConfig) -> CoderConfig:
        given = values.get(name, {})
        return CoderConfig(
            ch=given.get("ch", default.ch),
            ch_mult=tuple(given.get("ch_mult", default.ch_mult)),
            num_res_blocks=tuple(given.get("num_res_blocks", default.num_res_blocks)),
        )

    default = TokenizerConfig()
    return TokenizerConfig(
        bits=values.get("codebook_bits", default.bits),
        encoder=half("encoder", default.encoder),
        decoder=half("decoder", default.decoder),
        groups=values.get("group_norm_groups", default.groups),
        eps=values.get("group_norm_eps", default.eps),
    )


def _check_counts(config: object, *names: str) -> None:
    """ValueError where a field, or an entry of it, is not a whole number above 0."""
    for name in names:
        value = getattr(config, name)
        for count in value if isinstance(value, tuple) else (value,):
            if type(count) is not int or count < 1:
                raise ValueError(f"{name} is {value!r}, which should be a count")
