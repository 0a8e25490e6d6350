"""showo: Show-o, one transformer that reads causally and paints by unmasking image codes."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo, Component
from omnipersona_cli.hookspecs import ImporterInfo, hookimpl

CLIP = ("showlab/show-o-w-clip-vit-512x512", "showlab/show-o-w-clip-vit")
"""The models that look through CLIP."""

INFO = BackendInfo(
    name="showo",
    summary="Show-o 1.3B, for photographs: understands, paints, repaints regions.",
    opens="op_showo.loading:open_backend",
    footprint="op_showo.footprint:footprint",
    tasks={"understand": "native", "generate": "native", "edit": "masked"},
    default_model="showlab/show-o-512x512",
    models=("showlab/show-o-512x512", "showlab/show-o", *CLIP),
    components=(
        Component(
            repo="showlab/magvitv2",
            what="the image tokenizer",
            files=("*.json", "*.safetensors"),
        ),
        Component(
            repo="microsoft/phi-1_5",
            what="the text tokenizer and sizes, not its weights",
            files=("config.json", "tokenizer*.json"),
        ),
        Component(
            repo="openai/clip-vit-large-patch14-336",
            what="to look; for the two clip-vit models alone",
            files=("config.json", "preprocessor_config.json", "*.safetensors"),
            models=CLIP,
        ),
    ),
    sizes=((512, 512),),
    pictures="photographs",
    licence="Apache-2.0",
    memory_gb=8.0,
    steps=50,
    guidance=5.0,
    learn_steps=1000,
    learn_rate=1e-3,
    batch=8,
    deep_layers=23,
    estimates=True,
    notes=(
        "show-o and show-o-w-clip-vit paint 256x256, in 18 steps with guidance 1.75",
        "an edit repaints a region: --mask, --box, or where none is given, one that is looked for",
        "requests for pictures are read to their 126th token",
        "fetching leaves pytorch_model.bin behind; where a repository has no other weights, "
        "`hf download REPO` brings them, and they are read as numbers alone",
    ),
)


@hookimpl
def op_backends() -> Sequence[BackendInfo]:
    """Show-o at the sizes that its authors released."""
    return (INFO,)


@hookimpl
def op_importers() -> Sequence[ImporterInfo]:
    """The personalisation that was published for it."""
    return (
        ImporterInfo(
            name="unictokens",
            summary="A folder that UniCTokens saved: epoch_N_embed.pt and its two neighbours.",
            backend=INFO.name,
            reads="op_showo.unictokens:read",
            binds="op_showo.loading:base_of",
        ),
    )
