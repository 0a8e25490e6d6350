"""Activation checkpointing: what a layer can compute again is not kept for the way back.

A step of learning keeps, of each position, what every layer needs for its gradient: twenty times
what goes into the layer. Here only that is kept, and the layer runs once more on the way back (Chen
et al. 2016, arXiv 1604.06174): the same bits for a tenth of the memory. Where weights are frozen,
the way back costs as much as the way there, so that a step takes half as long again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(layers: Iterable[nn.Module], *, least: int = 0) -> None:
    """From now on, each of ``layers`` keeps its inputs [B, L, d] alone wherever gradients are on,
    from ``least`` positions L on.

    A layer must give the same twice: no dropout, and a cache that it reads and does not grow. What
    is switched on around it, as low-rank experts are, must be on again on the way back.
    """
    for layer in layers:
        layer.forward = _forgetful(layer.forward, least)


def _forgetful(forward: Callable[..., Any], least: int) -> Callable[..., Any]:
    @wraps(forward)
    def run(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled() or (least and inputs[0].shape[1] < least):
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    return run
