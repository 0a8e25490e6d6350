"""lance: Lance-3B, of BAGEL's lineage: asks, paints and edits with six billion parameters."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo, FreeSizes
from omnipersona_cli.hookspecs import hookimpl

INFO = BackendInfo(
    name="lance",
    summary="Lance-3B, for photographs: BAGEL's scheme in half of its memory, edits natively.",
    opens="op_lance.loading:open_backend",
    footprint="op_lance.footprint:footprint",
    tasks={"understand": "native", "generate": "native", "edit": "native"},
    default_model="bytedance-research/Lance",
    models=("bytedance-research/Lance",),
    files=(
        "Lance_3B/*.safetensors",
        "Lance_3B/*.json",
        "Lance_3B/*.txt",
        "Qwen2.5-VL-ViT/*.safetensors",
        "Qwen2.5-VL-ViT/*.json",
        "Wan2.2_VAE.pth",
        "LICENSE",
    ),
    sizes=((768, 768), (896, 672), (672, 896), (1024, 576), (576, 1024), (512, 512)),
    free_sizes=FreeSizes(step=16, largest=1024),
    lesson_sizes=(256, 512),
    pictures="photographs",
    licence="Apache-2.0; its vision tower: Qwen Research License",
    memory_gb=15.5,
    steps=30,
    guidance=4.0,
    fast="a solver of second order in 12 steps instead of 30",
    estimates=True,
    most_images=8,  # 576 tokens each
    deep_layers=35,
    notes=(
        "code, model card and autoencoder (Wan2.2) say Apache-2.0; vision tower and tokenizer are "
        "Qwen2.5-VL-3B's, which Qwen licenses for research: read both licences before you pass it "
        "on or use it for money",
        "the autoencoder's file is a pickle: it is read as numbers alone, and refused where it "
        "holds code",
        "not covered: videos (Lance_3B_Video is neither fetched nor opened), and pictures as "
        "references",
    ),
)


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """Lance at the size that its authors released, for pictures."""
    return (INFO,)
