"""toy: a world of cartoon characters that code draws: `op toy`, a benchmark, its judge, negatives.

Everything in it is known exactly, so that whatever a model does with it can be measured. nano is
pretrained on this world (see `pretraining/` in the repository).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omnipersona_cli.hookspecs import CommandInfo, DatasetInfo, JudgeInfo, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image


@hookimpl
def op_commands() -> Sequence[CommandInfo]:
    """`op toy`, for trying everything without a camera."""
    return (
        CommandInfo(
            name="toy",
            summary="Draw a new cartoon character's photo folder.",
            command="op_toy.photos:command",
        ),
    )


@hookimpl
def op_datasets() -> Sequence[DatasetInfo]:
    """A benchmark of characters that pretraining never met."""
    return (
        DatasetInfo(
            name="toy",
            summary="Cartoon characters with facts, questions, prompts and edits.",
            writes="op_toy.dataset:write_set",
        ),
    )


@hookimpl
def op_judges() -> Sequence[JudgeInfo]:
    """The judge of that benchmark."""
    return (
        JudgeInfo(
            name="toy",
            summary="Reads attributes off cartoons; for sets whose truth is known.",
            judge="op_toy.judge:ToyJudge",
        ),
    )


@hookimpl
def op_negatives(
    kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
) -> Sequence[Image]:
    """For nano: other characters of its world, some of which differ in one thing only."""
    if backend != "nano":
        return ()
    from op_toy.lookalikes import negatives

    return negatives(kind=kind, count=count, seed=seed, photos=photos)
