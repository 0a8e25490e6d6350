"""Emu3: one vocabulary of words and image codes; one checkpoint answers, another paints."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.hookspecs import hookimpl

CHAT, GEN = "BAAI/Emu3-Chat-hf", "BAAI/Emu3-Gen-hf"

INFO = BackendInfo(
    name="emu3",
    summary="Emu3 8B: photographs up to 960 pixels wide, on a GPU of 48 GB.",
    opens="op_emu3.backend:open_backend",
    footprint="op_emu3.footprint:footprint",
    tasks={"understand": "native", "generate": "native", "edit": "masked"},
    weights={"understand": CHAT, "generate": GEN, "edit": GEN},
    default_model=f"{CHAT}+{GEN}",
    models=(CHAT, GEN),
    sizes=(
        (720, 720), (960, 544), (544, 960), (832, 624), (624, 832),
        (512, 512), (680, 384), (384, 680), (592, 440), (440, 592),
    ),
    lesson_sizes=(256, 512),
    pictures="photographs",
    licence="Apache-2.0",
    memory_gb=40.0,
    steps=8100,
    guidance=3.0,
    learn_steps=1000,
    learn_rate=1e-3,
    batch=4,
    deep_layers=31,
    experts=True,
    fast="several codes are drawn ahead and checked in one pass (same distribution)",
    estimates=True,
    notes=(
        "each checkpoint is a download of about 35 GB; a concept is learned on both of a pair",
        "--model CHAT+GEN names a pair of your own, --model FOLDER a folder that holds both; one "
        "checkpoint alone does what its name says, and everything where it says nothing",
        "a picture is looked at and learned from at about 512x512 pixels; `op learn --size N` "
        "takes fewer, and it was not trained on such pictures",
        "painting takes a step for each 8x8 pixels, so that --steps has no say",
        "an edit repaints a region: --mask, --box, or where none is given, one that is looked for",
    ),
)  # fmt: skip


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """Emu3: the pair of checkpoints that its authors released for transformers."""
    return (INFO,)
