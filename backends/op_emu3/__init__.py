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
    tasks={"understand": "native", "generate": "native", "edit": "masked"},
    weights={"understand": CHAT, "generate": GEN, "edit": GEN},
    default_model=f"{CHAT}+{GEN}",
    models=(CHAT, GEN),
    sizes=(
        (720, 720), (960, 544), (544, 960), (832, 624), (624, 832),
        (512, 512), (680, 384), (384, 680), (592, 440), (440, 592),
    ),
    pictures="photographs",
    licence="Apache-2.0",
    memory_gb=40.0,
    steps=8100,
    guidance=3.0,
    learn_steps=1000,
    learn_rate=1e-3,
    batch=4,
)  # fmt: skip


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """Emu3: the pair of checkpoints that its authors released for transformers."""
    return (INFO,)
