"""A random Janus of 512 x 8 layers, between the tests' and the released ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from op_janus import INFO
from op_janus.backend import JanusBackend

WORDS = 102_400
"""Rows of the released text head."""


class Bytes:
    """Texts as bytes: sizes matter here, meanings do not."""

    bos_token, eos_token_id, pad_token_id = "^", 1, 2

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """One id a byte."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of bytes."""
        return bytes(ids).decode(errors="replace")

    def __len__(self) -> int:
        return 256


def mid_janus(*, side: int, device: str, released_encoders: bool = False) -> JanusBackend:
    """``side`` pixels are (side / 16)^2 codes; bfloat16 where it is not the processor.

    SigLIP and the image tokenizer are small like the language model, or of the released sizes,
    which are the same for all released language models.
    """
    width = 512
    tower = (
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        if released_encoders
        else {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6}
    )
    painter = (
        {"base_channels": 128, "num_res_blocks": 2}
        if released_encoders
        else {"base_channels": 64, "num_res_blocks": 1}
    )
    made: Any = JanusConfig(
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama", "vocab_size": WORDS, "hidden_size": width,
            "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 8, "max_position_embeddings": 4096,
        },
        vision_config={
            **tower, "image_size": side, "patch_size": 16, "projection_dim": width, "depth": 2,
            "num_image_tokens": (side // 16) ** 2,
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 16_384, "latent_channels": 256, **painter,
            "projection_dim": width, "image_token_embed_dim": width, "num_hidden_layers": 2,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    janus = JanusForConditionalGeneration(made).to(
        device, torch.float32 if device == "cpu" else torch.bfloat16
    )
    janus.model.vqmodel.float()
    return JanusBackend(
        info=INFO,
        model="random",
        fingerprint="mid@random",
        janus=janus,
        tokenizer=cast(PreTrainedTokenizerFast, Bytes()),
    )
