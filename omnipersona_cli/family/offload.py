"""Weights that wait in the computer's memory and are on the card only while they are used.

A model that is larger than its card runs layer by layer: before a module computes, its weights are
copied to the card, afterwards the copy is let go. What a request does not use never moves: text
leaves BAGEL's generation expert where it is. Numbers, kernels and so results are the same to the
bit; what it costs is the copying. The weights are brought into memory of their own, never left in a
mapped file, from which they might be read again and again without anybody saying so.

Learning needs `omnipersona_cli.family.recompute` beside it: what a backward pass keeps of the
weights would hold all copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from omnipersona_cli.errors import UsageError
from omnipersona_cli.family.recompute import recompute

Move = Callable[[Tensor], Tensor]
"""A copy of a tensor where it is computed with."""


def offload(layers: Iterable[nn.Module], move: Move) -> None:
    """From now on, each module in ``layers`` has its weights moved by ``move`` while it runs."""
    for layer in layers:
        for module in layer.modules():
            if next(module.parameters(recurse=False), None) is not None:
                _stream(module, move)


def keep_home(model: nn.Module, layers: Iterable[nn.Module], device: str) -> None:
    """``model`` on ``device``, but the weights of its ``layers`` in the computer's memory, from
    where they are moved as they are used; learning computes them again."""
    check_offload(device)
    layers = list(layers)
    waiting = {id(value) for layer in layers for value in layer.parameters()}
    for value in model.parameters():
        value.data = at_home(value.data, device) if id(value) in waiting else value.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    stream(layers, device)


def stream(layers: Iterable[nn.Module], device: str) -> None:
    """`offload` to a card, and learning that does not keep what it moved."""
    layers = list(layers)
    offload(layers, lambda value: value.to(device, non_blocking=True))
    recompute(layers)


def at_home(value: Tensor, device: str) -> Tensor:
    """A tensor in the computer's memory, out of any mapped file, from where a card copies fast."""
    if device.startswith("cuda"):
        return value.cpu().pin_memory()
    return value.cpu().clone()


def check_offload(device: str) -> None:
    """UsageError where a card has no memory of its own to spare."""
    if not device.startswith("cuda"):
        raise UsageError(
            f"--offload spares a card's own memory, and {device} computes in the computer's",
            hint="leave out --offload",
        )


def _stream(module: nn.Module, move: Move) -> None:
    waiting: dict[str, nn.Parameter] = {}

    def fetch(_: nn.Module, __: Any) -> None:
        for name, value in module._parameters.items():
            if value is not None:
                waiting[name] = value
                # another tensor, not other numbers in this one: a graph may hold it
                module._parameters[name] = move(value.detach())  # type: ignore[assignment]

    def release(_: nn.Module, __: Any, ___: Any) -> None:
        module._parameters.update(waiting)
        waiting.clear()

    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(release, always_call=True)
