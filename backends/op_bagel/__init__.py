"""bagel: ByteDance-Seed's BAGEL, a mixture of two transformer experts with rectified flow."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo, FreeSizes
from omnipersona_cli.hookspecs import hookimpl

INFO = BackendInfo(
    name="bagel",
    summary="BAGEL 7B, for photographs: the paper's own backbone, edits natively.",
    opens="op_bagel.loading:open_backend",
    footprint="op_bagel.footprint:footprint",
    tasks={"understand": "native", "generate": "native", "edit": "native"},
    default_model="ByteDance-Seed/BAGEL-7B-MoT",
    models=("ByteDance-Seed/BAGEL-7B-MoT",),
    files=("*.safetensors", "*.json", "*.txt"),
    sizes=((1024, 1024), (768, 1024), (1024, 768), (512, 512)),
    free_sizes=FreeSizes(step=16, largest=1024),
    lesson_sizes=(256, 512),
    pictures="photographs",
    licence="Apache-2.0",
    memory_gb=32.0,
    steps=49,  # the release counts 50 times, which are 49 steps
    guidance=4.0,
    deep_layers=27,
    fast="a solver of second order in 20 steps instead of 49",
    estimates=True,
    most_images=4,  # up to 4,900 tokens each
)


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """BAGEL at the size that its authors released."""
    return (INFO,)
