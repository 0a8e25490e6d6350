"""Deep tokens: what a concept adds to its rows at the input of later layers.

Learned input embeddings fade on their way through the layers (DCoAR, arXiv 2508.07341; deep prompt
tuning, arXiv 2110.07602). With depth K a concept has further tokens, one for each of its rows at
each of the layers 1 to K, that are added to what those layers read there. States grow from layer
to layer, a hundredfold in some models, so that a token is measured by its row: one that is as long
as the input embedding adds as much as there is (`added`).

They travel beside the rows that they belong to. A *wide* row [d (1 + K)] is an input embedding with
what is added to it at layers 1, 2, … behind it, so that whatever places, pads, repeats or remembers
rows does so with their deep tokens too. Rows of different widths are brought to one (`level`), and
just before the layers they are taken apart again (`parted`). Rows as wide as the model are what
they always were: nothing here touches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnipersona_cli.backend import ConceptTokens, Part
from omnipersona_cli.errors import SlotError


def wide_rows(tokens: ConceptTokens, part: Part) -> Tensor:
    """One part's rows with its deep tokens behind them. Rows for facts have none."""
    rows = tokens.und if part == "und" else tokens.gen
    deep = tokens.deep(part)
    if not deep:
        return rows
    parts = [rows]
    for layer in range(1, 1 + max(deep)):
        own = deep.get(layer, rows[:0])
        if len(own) > len(rows):
            raise SlotError(
                f"<{tokens.name}> has {len(own)} tokens for layer {layer}, and {len(rows)} rows",
                hint=f"learn it again: op learn PHOTOS --name {tokens.name} --force",
            )
        parts.append(F.pad(own, (0, 0, 0, len(rows) - len(own))))
    return torch.cat(parts, dim=1)


def level(rows: Iterable[Tensor]) -> list[Tensor]:
    """Rows [..., w_i] at the width of the widest: layers at which nothing is added get zeros."""
    given = list(rows)
    widest = max((one.shape[-1] for one in given), default=0)
    return [
        one if one.shape[-1] == widest else F.pad(one, (0, widest - one.shape[-1])) for one in given
    ]


def joined_rows(rows: Iterable[Tensor], dim: int = 0) -> Tensor:
    """Rows of any widths behind each other, along ``dim``."""
    return torch.cat(level(rows), dim=dim)


def parted(rows: Tensor, width: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rows [..., d (1 + K)] as input embeddings [..., d], and what is added at layers 1 to K."""
    inputs, *deep = torch.split(rows, width, dim=-1)
    return inputs, tuple(deep)


def added(states: Tensor, inputs: Tensor, deep: Tensor) -> Tensor:
    """States [..., d] of rows whose input embeddings are ``inputs``, with deep tokens added at the
    scale to which those have grown; the scale counts as a constant."""
    with torch.no_grad():
        grown, length = (it.float().norm(dim=-1, keepdim=True) for it in (states, inputs))
        scale = torch.where(length > 0, grown / length, 0.0)  # padding has no length
    found: Tensor = _Added.apply(states, deep.to(states), scale.to(states))  # type: ignore[no-untyped-call]
    return found


class _Added(torch.autograd.Function):
    """states + deep * scale, of which a checkpoint sees nothing that is kept: a layer that is
    computed again on the way back gives its own states alone, and needs no more."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, deep: Tensor, scale: Tensor) -> Tensor:
        ctx.scale = scale
        return states + deep * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        return gradient, gradient * ctx.scale, None


def run_layers(language: nn.Module, rows: Tensor, **more: Any) -> Tensor:
    """Last hidden states [B, L, d] of a language model of transformers, from rows [B, L, ≥ d]."""
    text: Any = language
    inputs, deep = parted(rows, text.config.hidden_size)
    with _adding(text.layers, inputs, deep):
        states: Tensor = language(inputs_embeds=inputs, **more).last_hidden_state
    return states


@contextmanager
def _adding(layers: Sequence[nn.Module], inputs: Tensor, deep: Sequence[Tensor]) -> Iterator[None]:
    """``deep`` [B, L, d] in turn added to what layers 1, 2, … read: what the layer before gives."""
    check_layers(len(deep), len(layers))
    handles = [
        layer.register_forward_hook(_hook(inputs, tokens))
        for layer, tokens in zip(layers, deep, strict=False)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(inputs: Tensor, deep: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _, __, states: added(states, inputs, deep)


def check_layers(depth: int, layers: int) -> None:
    """SlotError where there are tokens for layers that a model of so many ``layers`` has not."""
    if depth >= layers:
        raise SlotError(
            f"the concept has tokens for layer {depth}, and the last one here is {layers - 1}",
            hint="learn it again here: op learn PHOTOS --name NAME --force",
        )
