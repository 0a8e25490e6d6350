"""Janus and Janus-Pro: one language model, SigLIP to look, image codes to paint."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.hookspecs import hookimpl

INFO = BackendInfo(
    name="janus",
    summary="Janus-Pro and Janus-4o, for photographs; Janus-4o edits natively.",
    opens="op_janus.loading:open_backend",
    footprint="op_janus.footprint:footprint",
    tasks={"understand": "native", "generate": "native", "edit": "masked"},
    default_model="deepseek-community/Janus-Pro-1B",
    models=(
        "deepseek-community/Janus-Pro-1B",
        "deepseek-community/Janus-Pro-7B",
        "FreedomIntelligence/Janus-4o-7B",
    ),
    sizes=((384, 384),),
    pictures="photographs",
    licence="DeepSeek Model License",
    memory_gb=5.0,
    memory_by_model={
        "deepseek-community/Janus-Pro-7B": 15.3,
        "FreedomIntelligence/Janus-4o-7B": 17.2,
    },
    steps=576,
    guidance=5.0,
    learn_steps=1000,
    learn_rate=1e-3,
    batch=8,
    deep_layers=29,  # of the 7B models; Janus-Pro-1B has 23
    experts=True,
    fast="several codes are drawn ahead and checked in one pass (same distribution)",
    estimates=True,
    notes=(
        "FreedomIntelligence/Janus-4o-7B edits natively; a copy is known by its folder's name.",
    ),
)


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """Janus."""
    return (INFO,)
