"""What an Emu3 reads, as input rows of its language model: questions, requests, answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Task, Turn
from omnipersona_cli.family.language import Question
from omnipersona_cli.family.tokens import Piece, conversation, introduced, written
from op_emu3 import layout
from op_emu3.loading import LoadedCheckpoint


def question(
    model: LoadedCheckpoint,
    turns: Sequence[Turn],
    concepts: Sequence[ConceptTokens],
    codes: Tensor | None,
) -> Question:
    """Rows of a question, about the picture of ``codes`` [rows, columns]."""
    names = [concept.name for concept in concepts]
    introduction = [*introduced(names, "understand"), " "] if names else []
    before: list[Piece] = [layout.BOS, layout.SYSTEM, *introduction, "USER: "]
    after: list[Piece] = [*conversation(turns, names), " ASSISTANT:"]
    picture = None
    if codes is not None:
        opening = layout.opening((codes.shape[0], codes.shape[1]))
        picture = opening, model.llm.table(lines_of(model, codes)), f"{layout.EOF}{layout.EOI}"
    return model.llm.question(before, after, concepts, picture)


def request(
    model: LoadedCheckpoint,
    turn: Turn,
    concepts: Sequence[ConceptTokens],
    task: Task,
    grid: tuple[int, int],
) -> Tensor:
    """Rows [P, d] up to where the codes begin."""
    names = [concept.name for concept in concepts]
    introduction = [*introduced(names, task), " "] if names else []
    pieces = [
        layout.BOS,
        *introduction,
        *written(turn, names),
        layout.QUALITY,
        layout.opening(grid),
    ]
    return model.llm.rows(pieces, concepts)


def wordless(model: LoadedCheckpoint, grid: tuple[int, int], text: str) -> Tensor:
    """Rows of a request that no concept is in: nothing, or what is unwanted.

    It opens a picture like any other, or the branch would continue a text.
    """
    return model.llm.rows([layout.BOS, text, layout.opening(grid)], ())


def lines_of(model: LoadedCheckpoint, codes: Tensor) -> Tensor:
    """Token ids [rows * (columns + 1)] of codes [rows, columns], an end after each line."""
    return (
        F.pad(codes + model.first, (0, 1), value=model.end_of_line).flatten().to(model.llm.device)
    )
