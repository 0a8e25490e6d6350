"""showo: Show-o, one transformer that reads causally and paints by unmasking image codes."""

from __future__ import annotations

from collections.abc import Sequence

from omnipersona_cli.backend import BackendInfo
from omnipersona_cli.hookspecs import ImporterInfo, hookimpl

INFO = BackendInfo(
    name="showo",
    summary="Show-o 1.3B, for photographs: understands, paints, repaints regions.",
    opens="op_showo.loading:open_backend",
    tasks={"understand": "native", "generate": "native", "edit": "masked"},
    default_model="showlab/show-o-512x512",
    models=(
        "showlab/show-o-512x512",
        "showlab/show-o",
        "showlab/show-o-w-clip-vit-512x512",
        "showlab/show-o-w-clip-vit",
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
        ),
    )
