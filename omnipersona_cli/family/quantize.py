"""Weights in 8 or 4 bits, by bitsandbytes: a fraction of the memory, and another model by a little.

``int8`` is LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339), ``nf4`` the 4-bit normal float of
QLoRA (Dettmers et al. 2023, arXiv 2305.14314). Both pass gradients on to what goes into a layer.
What was quantised is kept beside, in the file that it came from, so that both can be compared
(`Quantized.undone`): how far the gradients of concept tokens agree says whether learning them makes
sense.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from omnipersona_cli.backend import Quantize
from omnipersona_cli.errors import MissingError, UsageError
from omnipersona_cli.family.offload import offload


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Which linear layers are in ``kind``: where each sits, and how it was."""

    kind: Quantize
    places: tuple[tuple[nn.Module, str], ...]
    plain: tuple[nn.Linear, ...]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside, the layers are what they were."""
        now = [getattr(parent, name) for parent, name in self.places]
        try:
            for (parent, name), linear in zip(self.places, self.plain, strict=True):
                setattr(parent, name, linear)
            yield
        finally:
            for (parent, name), linear in zip(self.places, now, strict=True):
                setattr(parent, name, linear)


def check_quantize(kind: Quantize, *, offload: bool) -> None:
    """MissingError without the library, UsageError with what it does not go together with."""
    if offload:
        raise UsageError(
            "--quantize and --offload are two ways to the same end", hint="leave out one of them"
        )
    if find_spec("bitsandbytes") is None:
        raise MissingError(
            f"--quantize {kind} needs the Python package 'bitsandbytes'",
            hint="pip install 'omnipersona[quantize]'",
        )


def refuse_quantize(kind: Quantize, backend: str) -> None:
    """UsageError for a backend that quantises nothing."""
    if kind:
        raise UsageError(
            f"{backend} has no large expert that only understands, and {kind} spoils painting",
            hint=f"leave out --quantize; what else saves memory: op backends show {backend}",
        )


def quantize(
    module: nn.Module, names: Iterable[str], kind: Quantize, *, device: str, dtype: torch.dtype
) -> Quantized:
    """Put the linear layers ``names`` of ``module``, whose weights are in the computer's memory or
    mapped from a file in whatever dtype that has, on ``device`` in ``kind``, one after the other;
    what is beside them is in ``dtype``."""
    places, plain = [], []
    for name in names:
        path, _, leaf = name.rpartition(".")
        parent = module.get_submodule(path)
        linear = parent.get_submodule(leaf)
        assert isinstance(linear, nn.Linear)  # for the type checker: the names are of such
        setattr(parent, leaf, _quantized(linear, kind, device, dtype))
        places.append((parent, leaf))
        plain.append(linear)
    # where they are compared, they visit the device one by one
    offload(plain, lambda value: value.to(device=device, dtype=dtype))
    return Quantized(kind=kind, places=tuple(places), plain=tuple(plain))


def _quantized(linear: nn.Linear, kind: Quantize, device: str, dtype: torch.dtype) -> nn.Module:
    # it tells of each cast, each time, and while it is imported of kernels that nobody asked for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    library: Any = bitsandbytes.nn
    sizes = (linear.in_features, linear.out_features)
    own: Tensor = linear.weight.detach().to(dtype)
    if kind == "nf4":
        made = library.Linear4bit(*sizes, quant_type="nf4", compute_dtype=dtype, device="meta")
        made.weight = library.Params4bit(own, requires_grad=False, quant_type="nf4")
        # Else, on processors with AVX512-BF16, the first answer would lay the weights out anew for
        # a kernel that passes no gradients on and takes sizes in steps of 64 and 32 alone.
        made.support_avx512bf16_for_cpu = False
    else:
        made = library.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
        made.weight = library.Int8Params(own, requires_grad=False, has_fp16_weights=False)
    made.bias = None
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)
    placed: nn.Module = made.to(device)
    return placed.requires_grad_(False)
