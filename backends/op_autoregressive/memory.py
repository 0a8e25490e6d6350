"""How much memory a backbone needs, computed from its configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

GIB = 2**30
SPARE = 0.75
"""GiB for pixels, logits and the libraries of a device."""
ACTIVATIONS = 35
"""Bytes that the backward pass keeps in bfloat16 of each position and layer for each unit of width,
counted with torch's hooks on saved tensors on a frozen Llama whose inner width is 2.7 d; 60 in
float32."""


def weights_gb(model: nn.Module, *, size: int = 2, exact: nn.Module | None = None) -> float:
    """GiB of all parameters at ``size`` bytes each, those of ``exact`` at four."""
    numbers = sum(it.numel() for it in model.parameters())
    whole = sum(it.numel() for it in exact.parameters()) if exact is not None else 0
    return ((numbers - whole) * size + whole * 4) / GIB


def cache_gb(text: Any, *, rows: int, positions: int, size: int = 2) -> float:
    """GiB of keys and values of ``rows`` rows of ``positions`` each, by a text configuration."""
    width: int = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layers: int = text.num_hidden_layers
    return rows * positions * 2 * layers * width * size / GIB


def learning_gb(text: Any, *, lessons: int, positions: int) -> float:
    """GiB that a step keeps for its backward pass, in bfloat16, above what painting needs."""
    kept: int = ACTIVATIONS * text.hidden_size * text.num_hidden_layers
    return lessons * positions * kept / GIB
