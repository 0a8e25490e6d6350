"""For authors of backends: the rules that every backend keeps, and a small one to test with."""

from omnipersona_cli.testing.contract import BackendContract
from omnipersona_cli.testing.sketch import (
    SKETCH,
    SketchBackend,
    SketchPlugin,
    drawing,
    open_sketch,
)

__all__ = [
    "SKETCH",
    "BackendContract",
    "SketchBackend",
    "SketchPlugin",
    "drawing",
    "open_sketch",
]
