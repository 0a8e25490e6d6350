"""Quantised weights and learning: do the tokens' gradients still point where they should?

Four-bit weights are known to give gradients that teach nothing. So before a concept is learned on
quantised weights, the gradients of a few lessons are taken with them and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

import torch
from torch import Tensor

from omnipersona_cli.backend import Backend, ConceptTokens, Prepared
from omnipersona_cli.concepts.pack import Pack
from omnipersona_cli.engine.batches import Groups
from omnipersona_cli.engine.tokens import copy_of, named_tensors, slot_name
from omnipersona_cli.errors import TaskError

LEAST = 0.95
"""The least cosine of gradients with which learning is begun."""
LESSONS = 4
"""How many lessons are compared, of different groups as far as there are."""


class QuantizedWeights(Protocol):
    """What a backend says of weights that it quantised, as its attribute ``quantized``."""

    @property
    def kind(self) -> str:
        """The number format, as ``--quantize`` has it."""

    def undone(self) -> AbstractContextManager[None]:
        """Inside, the weights are what they were."""


def quantized_by(backend: Backend) -> QuantizedWeights | None:
    """What is quantised of a backend; None where nothing is."""
    return cast("QuantizedWeights | None", getattr(backend, "quantized", None))


def format_of(backend: Backend) -> str:
    """The number format of quantised weights; "" where none are."""
    found = quantized_by(backend)
    return "" if found is None else found.kind


def checked_gradients(
    backend: Backend, groups: Groups, start: ConceptTokens, *, force: bool
) -> tuple[str, ...]:
    """A sentence on how far gradients agree with those of weights as they were; none where nothing
    is quantised. TaskError where they do not agree enough and nobody forces it."""
    quantized = quantized_by(backend)
    if quantized is None:
        return ()
    lessons = [group[0] for group in groups.values() if group][:LESSONS]
    agreed = agreement(backend, quantized, lessons, start)
    told = (
        f"{quantized.kind} and unquantised weights agree in the tokens' gradients: "
        f"cosine {agreed:.3f} on {len(lessons)} lessons"
    )
    if not agreed >= LEAST and not force:  # nan is no agreement
        raise TaskError(
            f"{told}; below {LEAST:g} little is learned",
            hint=(
                "--quantize int8, or --force learns all the same"
                if quantized.kind == "nf4"
                else "leave out --quantize, or --force learns all the same"
            ),
        )
    return (told,)


def agreement(
    backend: Backend,
    quantized: QuantizedWeights,
    lessons: Sequence[Prepared],
    start: ConceptTokens,
) -> float:
    """The cosine between the joint gradients of ``lessons`` with quantised weights and without."""
    with_them = _gradients(backend, lessons, start)
    with quantized.undone():
        without = _gradients(backend, lessons, start)
    one, other = (
        torch.cat([it.flatten() for it in found.values()]) for found in (with_them, without)
    )
    return float(torch.cosine_similarity(one, other, dim=0))


def precision_notes(packs: Mapping[str, Pack], backend: Backend) -> list[str]:
    """A sentence for each concept that was learned with weights in another format than here."""
    here, notes = format_of(backend), []
    for name, pack in packs.items():
        slot = pack.slots.get(slot_name(backend))
        recipe = slot.about.get("recipe") if slot is not None else None
        learned = str(recipe.get("quantize", "")) if isinstance(recipe, dict) else ""
        if learned != here:
            notes.append(
                f"<{name}> was learned with {_said(learned)}, and {backend.info.name} runs with "
                f"{_said(here)}: answers and pictures may differ a little"
            )
    return notes


def _said(kind: str) -> str:
    return f"{kind[:20]} weights" if kind else "unquantised weights"


def _gradients(
    backend: Backend, lessons: Sequence[Prepared], start: ConceptTokens
) -> dict[str, Tensor]:
    tokens = copy_of(start, trainable=True)
    losses = backend.loss(lessons, tokens, seed=0)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    named = named_tensors(tokens)
    return {
        key: (torch.zeros_like(value) if value.grad is None else value.grad).float().cpu()
        for key, value in named.items()
    }
