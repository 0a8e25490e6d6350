"""nano: BAGEL small, pretrained on drawn cartoons, its weights in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omnipersona_cli.backend import BackendInfo, FreeSizes
from omnipersona_cli.hookspecs import CommandInfo, DatasetInfo, JudgeInfo, hookimpl

if TYPE_CHECKING:
    from PIL.Image import Image

INFO = BackendInfo(
    name="nano",
    summary="BAGEL at a thousandth of its size, for cartoons; needs no download.",
    opens="op_nano.backend:open_backend",
    tasks={"understand": "native", "generate": "native", "edit": "native"},
    default_model="embedded",
    models=("embedded",),
    sizes=((64, 64),),
    free_sizes=FreeSizes(step=16, largest=64),
    pictures="cartoons",
    licence="Apache-2.0",
    memory_gb=0.5,
    steps=24,
    guidance=4.0,
    learn_steps=80,
    learn_rate=2e-2,
    batch=16,
    replay_examples=2,
)


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """The embedded backend."""
    return (INFO,)


@hookimpl
def op_commands() -> Sequence[CommandInfo]:
    """`op toy`, for trying everything without a camera."""
    return (
        CommandInfo(
            name="toy",
            summary="Draw a new cartoon character's photo folder.",
            command="op_nano.toy:command",
        ),
    )


@hookimpl
def op_datasets() -> Sequence[DatasetInfo]:
    """A benchmark of characters that pretraining never met."""
    return (
        DatasetInfo(
            name="toy",
            summary="Cartoon characters with facts, questions, prompts and edits.",
            writes="op_nano.toyset:write_set",
        ),
    )


@hookimpl
def op_judges() -> Sequence[JudgeInfo]:
    """The judge of that benchmark."""
    return (
        JudgeInfo(
            name="toy",
            summary="Reads attributes off cartoons; for sets whose truth is known.",
            judge="op_nano.verdicts:ToyJudge",
        ),
    )


@hookimpl
def op_negatives(
    kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
) -> Sequence[Image]:
    """Other characters of the cartoon world, some of which differ in one thing only."""
    if backend != INFO.name:
        return ()
    from op_nano.lookalikes import negatives

    return negatives(kind=kind, count=count, seed=seed, photos=photos)
