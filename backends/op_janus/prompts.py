"""What a Janus reads, as input rows of its language model: questions and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Task, Turn
from omnipersona_cli.family.deep import joined_rows
from omnipersona_cli.family.language import CausalLM, Question
from omnipersona_cli.family.tokens import Piece, conversation, introduced, written

USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
BOI, EOI = "<begin_of_image>", "<end_of_image>"
PROMPT = 100
"""Positions of a prompt with its concepts, where memory is reckoned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourcePicture:
    """A picture to be edited natively: SigLIP's features of it [n, d], and the rows of its codes
    [N, d]."""

    features: Tensor
    codes: Tensor


def question(
    llm: CausalLM,
    turns: Sequence[Turn],
    concepts: Sequence[ConceptTokens],
    features: Tensor | None,
) -> Question:
    """Rows of a question, about the picture of these ``features`` [n, d]."""
    names = [concept.name for concept in concepts]
    introduction = [*introduced(names, "understand"), "\n\n"] if names else []
    before: list[Piece] = [str(llm.tokenizer.bos_token), *introduction, USER]
    after: list[Piece] = [*conversation(turns, names), ASSISTANT]
    picture = None if features is None else (BOI, features, f"{EOI}\n")
    return llm.question(before, after, concepts, picture)


def request(
    llm: CausalLM,
    turn: Turn,
    concepts: Sequence[ConceptTokens],
    task: Task,
    source: SourcePicture | None = None,
    *,
    detailed: bool = True,
) -> Tensor:
    """A prompt [P, d] up to BOI. ``detailed`` shows a source's codes, else padding stands in their
    places."""
    names = [concept.name for concept in concepts]
    introduction = [*introduced(names, task), " "] if names else []
    start: list[Piece] = [str(llm.tokenizer.bos_token), USER]
    asked: list[Piece] = [*introduction, *written(turn, names), ASSISTANT, BOI]
    if source is None:
        return llm.rows([*start, *asked], concepts)
    first = llm.rows([*start, BOI], concepts)
    codes = source.codes if detailed else _padding(llm, len(source.codes))
    parts = [first, source.features.to(first), llm.rows([EOI, BOI], concepts), codes]
    return joined_rows([*parts, llm.rows([EOI, *asked], concepts)])


def without(llm: CausalLM, rows: Tensor) -> Tensor:
    """A prompt of the same length that says nothing: all but BOS and BOI are padding."""
    ends = rows[:, : llm.table.embedding_dim]
    return torch.cat([ends[:1], _padding(llm, len(rows) - 2), ends[-1:]])


def _padding(llm: CausalLM, count: int) -> Tensor:
    row: Tensor = llm.table(torch.tensor(llm.tokenizer.pad_token_id, device=llm.device))
    return row.expand(count, -1)
