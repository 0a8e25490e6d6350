"""What nano takes of memory, from its shapes; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from omnipersona_cli.backend import Opening
from omnipersona_cli.family.footprint import (
    Footprint,
    Part,
    Pass,
    Taught,
    convolved,
    counted,
    gated_layers,
    stored_shapes,
)
from op_bagel.footprint import NOISES, normed
from op_nano import INFO

WEIGHTS = Path(__file__).parent / "weights"
LAYERS = gated_layers(count=6, width=128, inner=384, queries=128, keys=64)
PICTURE, PROMPT = 16, 80
"""Positions of a picture, and of a concept's turn with a request."""
CHANNELS, MAPS = 16, 6.0
"""Channels of the autoencoder at full size, and how many maps of them it holds."""


def footprint(opening: Opening, size: tuple[int, int] | None = None) -> Footprint:
    """Of the embedded weights, or of a folder's; its pictures have one size while they are made."""
    name = opening.model or "embedded"
    shapes = stored_shapes(WEIGHTS if name == "embedded" else Path(name))
    width, height = INFO.sizes[0]
    whole = 2 * PICTURE + PROMPT
    return Footprint(
        model=name,
        here=True,
        parts=(Part(name="all", numbers=counted(shapes)),),
        layers=normed(LAYERS),
        passes={
            "ask": (Pass(positions=whole, cached=whole),),
            "gen": (Pass(positions=PICTURE, rows=2, cached=whole),),
            "edit": (Pass(positions=whole, rows=3, cached=2 * whole),),
        },
        lessons={
            "understand": Taught(positions=PICTURE + PROMPT),
            "generate": Taught(positions=NOISES * PICTURE + PROMPT),
            "edit": Taught(positions=(NOISES + 2) * PICTURE + PROMPT),
        },
        checkpoints=True,
        pieces=True,
        batch=INFO.batch,
        pictures=dict.fromkeys(("gen", "edit", "learn"), convolved(width * height, CHANNELS, MAPS)),
        dtypes=("float32",),
        small=True,
        libraries=0.0,
        stored=4,
    )
