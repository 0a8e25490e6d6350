"""What learning needs of a lesson."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from omnipersona_cli.backend import Task, Turn


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
