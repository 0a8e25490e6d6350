"""Answers: choosing and streaming their tokens, and the loss of given ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omnipersona_cli.family.deep import joined_rows

IGNORED = -100
"""The label of a position that is not asked for."""


def choose(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The next token from scores [V]: the likeliest at temperature 0, else one that is drawn."""
    scores = scores.float().cpu()
    if temperature <= 0:
        return int(scores.argmax())
    return int(torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator))


def answered(
    scores_after: Callable[[int | None], Tensor],
    *,
    end: int,
    most: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Token ids of an answer, at most ``most``, without its ``end``.

    ``scores_after(token)`` reads one more token, none at first, and gives the scores [V] of the
    next one; it runs without gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    token: int | None = None
    for _ in range(most):
        with torch.no_grad():
            scores = scores_after(token)
        token = choose(scores, temperature, generator)
        if token == end:
            return
        yield token


def stream(ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Pieces of text as ids arrive. A piece waits for the rest of a letter that several tokens
    spell, and for text that later tokens may still change."""
    known: list[int] = []
    shown = ""
    for token in ids:
        known.append(token)
        text = decode(known)
        if text.startswith(shown) and text != shown and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text


def replaced(pieces: Iterable[str], old: str, new: str) -> Iterator[str]:
    """The pieces of a text with ``new`` for ``old``, which may come in several pieces."""
    held = ""
    for piece in pieces:
        held = (held + piece).replace(old, new)
        begun = (length for length in range(len(old) - 1, 0, -1) if held.endswith(old[:length]))
        end = len(held) - next(begun, 0)
        if end:
            yield held[:end]
        held = held[end:]
    if held:
        yield held


def padded(rows: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """Rows [L_i, ...] as one batch [n, L, ...], padded on the right, where nothing that is asked
    for can see it."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def with_answer(
    asked: Tensor, answer: Tensor, table: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Input rows [L, d] of a prompt ``asked`` [P, d] and an answer's ids [A], and labels [L]."""
    rows = joined_rows([asked, table(answer[:-1])])
    return rows, F.pad(answer, (len(asked) - 1, 0), value=IGNORED)


def cross_entropies(
    states: Tensor, labels: Sequence[Tensor], head: Callable[[Tensor], Tensor]
) -> Tensor:
    """Cross-entropies [K] of all labels that are asked for, row by row; ``states`` [n, L, d] are
    the padded rows' last ones. The head runs on labelled rows alone."""
    wanted = padded(labels, IGNORED)
    at = wanted >= 0
    return F.cross_entropy(head(states[at]).float(), wanted[at], reduction="none")


def mean_losses(losses: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """The mean cross-entropy [n] of each answer from those [K] of all their tokens; float32."""
    parts = torch.split(losses, [len(ids) for ids in answers])
    return torch.stack([part.mean() for part in parts]).float()


def log_probabilities(losses: Tensor, answers: Sequence[Tensor]) -> Tensor:
    """The log-probability [n] of each answer from the cross-entropies [K] of all their tokens;
    float32, on the CPU."""
    parts = torch.split(losses, [len(ids) for ids in answers])
    return torch.stack([-part.sum() for part in parts]).float().cpu()
