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


def choose_device(device: str, *, best: str = "") -> str:
    """The device to run on. "auto" is ``best`` where a backend names one ("cpu" for a small one),
    else the fastest that is here. Raises MissingError for one that is not."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return best or next((name for name, present in here.items() if present), "cpu")
    kind, _, number = device.partition(":")
    absent = kind == "cuda" and number and int(number) >= torch.cuda.device_count()
    if absent or not here.get(kind, True):
        raise MissingError(f"there is no {device} device here", hint="leave out --device")
    return device


def has_bfloat16() -> bool:
    """Whether the processor has instructions that multiply in bfloat16 (AVX-512 BF16, AMX, Arm's):
    weights take half the memory there, and a product half the time. Without them, or where torch
    cannot tell, bfloat16 is slower than float32."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(there for name, there in told.items() if "bf16" in name)


def choose_dtype(
    dtype: str | None, device: str, *, backend: str, known: Sequence[str] = tuple(DTYPES)
) -> torch.dtype:
    """The dtype of the weights. None and "auto" are bfloat16 on accelerators and on a processor
    that multiplies in it, float32 on others and for a backend that has nothing else among
    ``known``. Raises UsageError for others."""
    if dtype in (None, "auto"):
        half = "bfloat16" in known and _suits_bfloat16(device)
        return torch.bfloat16 if half else torch.float32
    if dtype not in known:
        hint = f"--dtype takes {', '.join(known)}" if len(known) > 1 else "leave out --dtype"
        raise UsageError(f"{backend} runs in {' or '.join(known)}, not {dtype}", hint=hint)
    return DTYPES[dtype]


def _suits_bfloat16(device: str) -> bool:
    """Apple's GPUs have it from macOS 14 on."""
    if device == "cpu":
        return has_bfloat16()
    return device != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)
