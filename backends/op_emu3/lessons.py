"""What learning needs of a lesson, and losses that hold one lesson's graph at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from omnipersona_cli.backend import Task, Turn

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson with its pictures as codes [rows, columns]: ``picture`` is what a question is about,
    ``codes`` are painted, ``free`` [rows, columns] is what an edit changed."""

    task: Task
    request: Turn
    answer: str
    picture: Tensor | None
    codes: Tensor | None
    free: Tensor | None


def settled(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same value and the same gradients to ``parameters``, with its graph freed.

    A picture of 512 pixels is 4,163 positions in each of 32 layers: the graphs of a whole batch fit
    nowhere. It must be called where the experts are still switched on, because layers that keep no
    activations run again on the way back.
    """
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    if not loss.requires_grad or not moving:
        return loss
    gradients = torch.autograd.grad(loss, moving, allow_unused=True)
    kept = loss.detach()
    for value, gradient in zip(moving, gradients, strict=True):
        if gradient is not None:
            product = (value * gradient).sum()
            kept = kept + (product - product.detach())  # zero, with the gradient of the loss
    return kept


def few_at_a_time(items: Sequence[T], lengths: Sequence[int], most: int) -> Iterator[Sequence[T]]:
    """Neighbours whose padded batch has at most ``most`` positions, and at least one of them."""
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index > start and longest * (index - start + 1) > most:
            yield items[start:index]
            start, longest = index, length
    if start < len(items):
        yield items[start:]
