"""Batches in pieces: a loss that holds the graph of a few lessons at a time.

The backbone is frozen, so that all a batch has to keep until its end are gradients of a few rows of
tokens. The graph behind a piece is used up and freed before the next piece is read: a batch needs
the memory of its largest piece, and its gradients are those of the whole but for rounding.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnipersona_cli.family.device import ACTIVATIONS, GIB

T = TypeVar("T")

ROOM = 1.5
"""GiB that a processor's pieces may keep for their way back: there a larger one is no faster."""

SHARE = 0.1
"""The share of an accelerator's memory that a piece may keep; by the size of the card and not by
what is free, so that a run that is taken up again is cut into the same pieces."""


def settled(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same value and the same gradients to ``parameters``, with the graph behind it freed.

    It must be called where a concept's experts are still switched on, because layers that keep no
    activations run again on the way back.
    """
    moving = [one for one in {id(it): it for it in parameters}.values() if one.requires_grad]
    if not loss.requires_grad or not moving:
        return loss
    gradients = torch.autograd.grad(loss, moving, allow_unused=True)
    if loss.device.type == "cpu":
        give_back()
    kept = loss.detach()
    for value, gradient in zip(moving, gradients, strict=True):
        if gradient is not None:
            product = (value * gradient).sum()
            kept = kept + (product - product.detach())  # zero, with the gradient of the loss
    return kept


def give_back() -> None:
    """Return to the system what is free: glibc keeps freed tensors of up to 32 MB in its heap, in
    holes that the next ones do not fill, and a process grows by a gigabyte in a few lessons. Other
    libraries have no such function, and need none."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _c_library() -> Any:
    """The C library that this process runs on; None where it cannot be asked (Windows)."""
    return ctypes.CDLL(None) if os.name == "posix" else None


def in_pieces(
    items: Sequence[T], lengths: Sequence[int], *, most: int, at_once: int = 0
) -> Iterator[Sequence[T]]:
    """Neighbours in pieces of ``at_once`` items; where that is 0, pieces whose padded batch has at
    most ``most`` positions. A piece has at least one item; ``lengths`` are in positions."""
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        count = index - start
        if count and (count >= at_once if at_once else longest * (count + 1) > most):
            yield items[start:index]
            start, longest = index, length
    if start < len(items):
        yield items[start:]


def most_positions(text: Any, device: str, *, size: int = 2) -> int:
    """How many positions of a language model of the configuration ``text``, with numbers of
    ``size`` bytes, one piece may have on ``device``."""
    room = ROOM * GIB
    if device.startswith("cuda"):
        room = SHARE * torch.cuda.get_device_properties(device).total_memory
    kept = ACTIVATIONS * (size / 2) * text.hidden_size * text.num_hidden_layers
    return max(1, int(room / kept))
