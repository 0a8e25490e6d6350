"""A frozen language model of transformers that reads text and pictures, and answers.

It reads rows of input embeddings: those of text and of concept tokens, and those of a picture in
whatever way its family has them (vision features, or embeddings of codes). A question is two parts,
the first of which all questions about a picture share; it is read once (`prefix`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from omnipersona_cli.backend import ConceptTokens, Task, Turn
from omnipersona_cli.family import experts
from omnipersona_cli.family.deep import joined_rows, run_layers
from omnipersona_cli.family.pieces import in_pieces, settled
from omnipersona_cli.family.prefix import SharedPrefix
from omnipersona_cli.family.text import (
    answered,
    cross_entropies,
    log_probabilities,
    mean_losses,
    padded,
    stream,
    with_answer,
)
from omnipersona_cli.family.tokens import Piece, embedded, spelled

Question = tuple[Tensor, Tensor]
"""Rows up to where the answer begins: those [P, d] that every question about the picture shares,
none without a picture, and the others [L, d]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson for a model that answers in text and paints in codes.

    ``picture`` is what the model has of the picture that it looks at, ``codes`` are those to be
    painted, and ``free``, of the same shape, says which of them count: those that an edit changed,
    else all. ``source`` are the codes of the picture to be edited, where the model sees them.
    """

    task: Task
    request: Turn
    answer: str
    picture: Tensor | None
    codes: Tensor | None
    free: Tensor | None
    source: Tensor | None = None


Ask = Callable[[PreparedLesson, ConceptTokens], Question]
"""A lesson's question, with the concept that it is about."""


class CausalLM:
    """``decoder`` are the layers, ``table`` the input embeddings, ``head`` gives scores [..., V] of
    states [..., d]; only the first ``vocabulary`` of them are tokens (None: all are). An answer
    stops before the token ``end``."""

    def __init__(
        self,
        decoder: nn.Module,
        table: nn.Embedding,
        head: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end: int,
        vocabulary: int | None = None,
    ) -> None:
        self.decoder: Any = decoder
        self.table, self.head, self.tokenizer = table, head, tokenizer
        self.end, self.vocabulary = end, vocabulary
        self.prefix = SharedPrefix(self.decoder.config)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.table.weight.device

    # -- rows ----------------------------------------------------------------------------------

    def ids(self, text: str) -> list[int]:
        """Token ids, with no special token that is not written in the text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def rows(self, pieces: Sequence[Piece], concepts: Sequence[ConceptTokens]) -> Tensor:
        """Input embeddings [n, d] of texts and slots."""
        script = spelled(pieces, self.ids)
        return embedded(script, {concept.name: concept for concept in concepts}, self.table)

    def answer(self, text: str) -> Tensor:
        """Token ids of an answer, after a space, and its end."""
        return torch.tensor([*self.ids(f" {text}"), self.end], device=self.device)

    def question(
        self,
        before: Sequence[Piece],
        after: Sequence[Piece],
        concepts: Sequence[ConceptTokens],
        picture: tuple[str, Tensor, str] | None,
    ) -> Question:
        """What stands before and after a ``picture``: the text that opens it, its rows [n, d], and
        the text that closes it."""
        if picture is None:
            whole = self.rows([*before, *after], concepts)
            return whole[:0], whole
        opening, rows, closing = picture
        first = self.rows([*before, opening], concepts)
        return joined_rows([first, rows.to(first)]), self.rows([closing, *after], concepts)

    # -- running -------------------------------------------------------------------------------

    def new_experts(
        self, *, seed: int, tasks: Sequence[str] = ("und", "gen", "edit")
    ) -> dict[str, Tensor]:
        """One LoRA per task, at zero effect: "lora.<task>.<linear>.<A or B>"."""
        return experts.new_experts(self.decoder, experts.LLAMA_LINEARS, tasks=tasks, seed=seed)

    def using(self, task: Task, concepts: Sequence[ConceptTokens]) -> AbstractContextManager[None]:
        """The model under the concepts' experts of this task."""
        extras = [tokens.extra for tokens in concepts]
        return experts.using(self.decoder, experts.LLAMA_LINEARS, extras, task)

    def run(
        self, task: Task, concepts: Sequence[ConceptTokens], rows: Tensor, **more: Any
    ) -> Tensor:
        """Last hidden states [B, L, d] under the concepts' experts of this task."""
        with self.using(task, concepts):
            return run_layers(self.decoder, rows, **more)

    # -- learning ------------------------------------------------------------------------------

    def answers_loss(
        self,
        lessons: Sequence[PreparedLesson],
        tokens: ConceptTokens,
        ask: Ask,
        *,
        lengths: Sequence[int],
        most: int,
        at_once: int,
    ) -> Tensor:
        """The mean cross-entropy of the tokens of all answers, in pieces: `pieces.in_pieces`."""
        answers = [self.answer(lesson.answer) for lesson in lessons]
        count = sum(map(len, answers))
        both = list(zip(lessons, answers, strict=True))
        parts = []
        for piece in in_pieces(both, lengths, most=most, at_once=at_once):
            pairs = [
                with_answer(joined_rows(ask(lesson, tokens)), ids, self.table)
                for lesson, ids in piece
            ]
            with self.using("understand", (tokens,)):
                rows = padded([row for row, _ in pairs])
                states = run_layers(self.decoder, rows, use_cache=False)
                losses = cross_entropies(states, [labels for _, labels in pairs], self.head)
                parts.append(settled(losses.sum() / count, tokens.parameters()))
        return torch.stack(parts).sum()

    @torch.no_grad()
    def answer_losses(
        self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens, ask: Ask
    ) -> Tensor:
        """The mean cross-entropy [n] of each lesson's answer. Lessons about one picture go on from
        one reading of it."""
        of_picture: dict[int, list[int]] = {}
        for number, lesson in enumerate(lessons):
            of_picture.setdefault(id(lesson.picture), []).append(number)
        found = torch.zeros(len(lessons), device=tokens.id.device)
        for numbers in of_picture.values():
            questions = [ask(lessons[number], tokens) for number in numbers]
            answers = [self.answer(lessons[number].answer) for number in numbers]
            asked = [rest for _, rest in questions]
            losses = self._answered(questions[0][0], asked, answers, (tokens,))
            found[numbers] = mean_losses(losses, answers).to(found)
        return found

    # -- answering -----------------------------------------------------------------------------

    def say(
        self,
        question: Question,
        concepts: Sequence[ConceptTokens],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Iterator[str]:
        """The answer as pieces of text, token by token, with a cache."""
        shared, asked = question
        run = partial(self.run, "understand", concepts)
        cache = self.prefix.read(shared, run, concepts=concepts)

        def scores_after(token: int | None) -> Tensor:
            rows = asked
            if token is not None:
                rows = self.table(torch.tensor([token], device=self.device))
            states = run(rows[None], past_key_values=cache, use_cache=True)
            scores: Tensor = self.head(states[0, -1])
            return scores[: self.vocabulary]

        ids = answered(
            scores_after, end=self.end, most=max_tokens, temperature=temperature, seed=seed
        )
        yield from stream(
            ids, lambda known: str(self.tokenizer.decode(known, skip_special_tokens=True)).lstrip()
        )

    @torch.no_grad()
    def score(
        self, question: Question, concepts: Sequence[ConceptTokens], answers: Sequence[str]
    ) -> Tensor:
        """Log-probability of each answer, its end included; the picture is read once for all, and
        for the next question about it."""
        shared, asked = question
        ids = [self.answer(answer) for answer in answers]
        return log_probabilities(self._answered(shared, [asked] * len(ids), ids, concepts), ids)

    def _answered(
        self,
        shared: Tensor,
        asked: Sequence[Tensor],
        answers: Sequence[Tensor],
        concepts: Sequence[ConceptTokens],
    ) -> Tensor:
        """Cross-entropies [K] of answers' tokens, each after ``shared`` [P, d] and its own rows of
        ``asked``."""
        run = partial(self.run, "understand", concepts)
        cache = self.prefix.read(shared, run, count=len(asked), concepts=concepts)
        pairs = [
            with_answer(rows, ids, self.table) for rows, ids in zip(asked, answers, strict=True)
        ]
        rows = padded([row for row, _ in pairs])
        states = run(rows, past_key_values=cache, use_cache=True)
        return cross_entropies(states, [labels for _, labels in pairs], self.head)
