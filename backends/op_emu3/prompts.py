"""What an Emu3 reads, as input rows of its language model: questions, requests, answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Task, Turn
from omnipersona_cli.family.deep import joined_rows
from omnipersona_cli.family.tokens import Piece, embedded, introduced, spelled, written
from op_emu3 import layout
from op_emu3.loading import LoadedCheckpoint


def rows_of(
    model: LoadedCheckpoint, pieces: Sequence[Piece], concepts: Sequence[ConceptTokens]
) -> Tensor:
    def encode(text: str) -> list[int]:
        return list(model.tokenizer.encode(text, add_special_tokens=False))

    script = spelled(pieces, encode)
    return embedded(script, {concept.name: concept for concept in concepts}, model.table)


def question(
    model: LoadedCheckpoint,
    turns: Sequence[Turn],
    concepts: Sequence[ConceptTokens],
    codes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Rows up to where the answer begins, in two: those [P, d] that every question about the
    picture shares, none without one, and the others [L, d]. ``codes`` [rows, columns] are its."""
    names = [concept.name for concept in concepts]
    introduction = [*introduced(names, "understand"), " "] if names else []
    asked: list[Piece] = []
    for number, turn in enumerate(turns):
        asked += ["\n"] if number else []
        asked += written(turn, names)
    before: list[Piece] = [layout.BOS, layout.SYSTEM, *introduction, "USER: "]
    after: list[Piece] = [*asked, " ASSISTANT:"]
    if codes is None:
        whole = rows_of(model, [*before, *after], concepts)
        return whole[:0], whole
    start = [*before, layout.opening((codes.shape[0], codes.shape[1]))]
    end: list[Piece] = [layout.EOF, layout.EOI, *after]
    picture = model.table(lines_of(model, codes))
    shared = joined_rows([rows_of(model, start, concepts), picture])
    return shared, rows_of(model, end, concepts)


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
    return rows_of(model, pieces, concepts)


def wordless(model: LoadedCheckpoint, grid: tuple[int, int], text: str) -> Tensor:
    """Rows of a request that no concept is in: nothing, or what is unwanted.

    It opens a picture like any other, or the branch would continue a text.
    """
    return rows_of(model, [layout.BOS, text, layout.opening(grid)], ())


def answer(model: LoadedCheckpoint, text: str) -> Tensor:
    ids = list(model.tokenizer.encode(f" {text}", add_special_tokens=False))
    return torch.tensor([*ids, model.end_of_text], device=model.device)


def lines_of(model: LoadedCheckpoint, codes: Tensor) -> Tensor:
    """Token ids [rows * (columns + 1)] of codes [rows, columns], an end after each line."""
    return F.pad(codes + model.first, (0, 1), value=model.end_of_line).flatten().to(model.device)
