"""On which device and in which dtype a backend runs, and how much memory that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from omnipersona_cli.errors import MissingError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What ``--dtype`` may say."""

GIB = 2**30
SPARE = 0.75
"""GiB for pixels, logits and the libraries of a device."""
ACTIVATIONS = 35
"""Bytes that the backward pass keeps in bfloat16 of each position and layer for each unit of width,
counted with torch's hooks on saved tensors on a frozen Llama whose inner width is 2.7 d; 60 in
float32."""


def weights_gb(model: nn.Module, *, size: int = 2, exact: nn.Module | None = None) -> float:
    """GiB of all parameters at ``size`` bytes each, those of ``exact`` at four."""
    numbers = sum(value.numel() for value in model.parameters())
    whole = sum(value.numel() for value in exact.parameters()) if exact is not None else 0
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


def choose_device(device: str, *, best: str = "") -> str:
    """The device to run on. "auto" is ``best`` where a backend names one ("cpu" for a small one),
    else the fastest that is here. Raises MissingError for one that is not."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return best or next((name for name, present in here.items() if present), "cpu")
    if not here.get(device.partition(":")[0], True):
        raise MissingError(f"there is no {device} device here", hint="leave out --device")
    return device


def choose_dtype(
    dtype: str | None, device: str, *, backend: str, known: Sequence[str] = tuple(DTYPES)
) -> torch.dtype:
    """The dtype of the weights. None and "auto" are float32 on the CPU and for a backend that has
    nothing else among ``known``, and bfloat16 on accelerators. Raises UsageError for others."""
    if dtype in (None, "auto"):
        half = device != "cpu" and "bfloat16" in known
        return torch.bfloat16 if half else torch.float32
    if dtype not in known:
        hint = f"--dtype takes {', '.join(known)}" if len(known) > 1 else "leave out --dtype"
        raise UsageError(f"{backend} runs in {' or '.join(known)}, not {dtype}", hint=hint)
    return DTYPES[dtype]
