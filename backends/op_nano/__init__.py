"""nano: BAGEL small, pretrained on drawn cartoons, its weights in the package."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo, FreeSizes
from omnipersona_cli.hookspecs import hookimpl

INFO = BackendInfo(
    name="nano",
    summary="BAGEL at a thousandth of its size, for cartoons; needs no download.",
    opens="op_nano.backend:open_backend",
    footprint="op_nano.footprint:footprint",
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
    fact_tokens=8,
    fact_rate=0.1,
    unknown_answer="nothing",  # it was never taught to say that it does not know
    deep_layers=5,  # all but the first
    replay_leads="grammar",
    replay_examples=2,
    fast="a solver of second order in 10 steps instead of 24",
    threads=1,  # its tensors are so small that threads mostly wait for each other
    estimates=True,
)


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """The embedded backend."""
    return (INFO,)
