"""What Janus takes of memory, from its shapes; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

from omnipersona_cli.backend import Opening
from omnipersona_cli.family.footprint import (
    Activity,
    Footprint,
    Layers,
    Part,
    Pass,
    Taught,
    convolved,
    counted,
    gated_layers,
    layers_in,
    stored_shapes,
    stored_size,
)
from omnipersona_cli.family.weights import folder_of
from op_janus import INFO

VERBS: tuple[Activity, ...] = ("ask", "gen", "edit", "learn")
PROMPT = 100
"""Positions of a prompt with its concept."""
WORDS, CODES, SEEN = 102_400, 16_384, 576
"""Rows of the text table, image codes, and positions of a picture: alike in all released models."""
SIGHT, PAINTER = 303_688_704, 71_883_403
"""Numbers of SigLIP and of the image tokenizer: alike in all released models."""
CHANNELS, MAPS = 128, 6.0
"""Channels of the image tokenizer at full size, and how many maps of them it holds (measured)."""

SMALL = gated_layers(count=24, width=2048, inner=5632, queries=2048, keys=2048)
LARGE = gated_layers(count=30, width=4096, inner=11008, queries=4096, keys=4096)


def footprint(opening: Opening, size: tuple[int, int] | None = None) -> Footprint:
    """Of the checkpoint where it is on this computer, else of the released one of that name."""
    name = opening.model or INFO.default_model
    folder = folder_of(name, INFO, revisions=opening.revisions)
    shapes = stored_shapes(folder) if folder is not None else {}
    layers = next(
        (
            found
            for start in ("model.language_model.layers.", "language_model.model.layers.")
            if (found := layers_in(shapes, start))
        ),
        SMALL if name.endswith("1B") else LARGE,
    )
    features = shapes.get("model.vision_model.embeddings.position_embedding.weight", (SEEN,))[0]
    native = "janus-4o" in name.lower()
    source = 2 * features if native else 0
    whole = PROMPT + features
    read = Pass(positions=whole, cached=whole, scores=WORDS)
    rows = 3 if native else 2
    return Footprint(
        model=name,
        here=bool(shapes),
        parts=_parts(shapes, layers),
        layers=layers,
        passes={
            "ask": (read, Pass(positions=whole, rows=2, scored=8, scores=WORDS)),
            "gen": (Pass(positions=PROMPT, rows=2, cached=whole, scores=CODES),),
            "edit": (
                Pass(positions=whole + source, rows=rows, cached=whole + source, scores=CODES),
            ),
        },
        lessons={
            "understand": Taught(positions=whole, scored=4, scores=WORDS),
            "generate": Taught(positions=whole, scored=features, scores=CODES),
            "edit": Taught(positions=whole + source, scored=features, scores=CODES),
        },
        checkpoints=True,
        pieces=True,
        wide=True,
        batch=INFO.batch,
        stored=stored_size(folder, shapes, 2),
        pictures=dict.fromkeys(
            ("gen", "edit", "learn"), convolved(features * 16 * 16, CHANNELS, MAPS)
        ),
    )


def _parts(shapes: Mapping[str, tuple[int, ...]], layers: Layers) -> tuple[Part, ...]:
    wide = layers.width
    linear = layers.count * layers.linear
    words = WORDS * wide
    if shapes:
        text_rows = next(
            (it for n, it in shapes.items() if n.endswith("embed_tokens.weight")), (0,)
        )
        words = text_rows[0] * wide
        painter = counted(shapes, "model.vqmodel.", "gen_vision_model.")
        text = counted(shapes, "model.language_model.", "language_model.model.")
        tower = counted(shapes, "model.vision_model.", "vision_model.")
        heads = counted(shapes) - painter - text - tower
    else:
        painter, tower, text = PAINTER, SIGHT, words + linear + (2 * layers.count + 1) * wide
        heads = words + (3 * wide + 1024 + 8 + CODES + 5) * wide + CODES * 9
    return (
        Part(name="text table", numbers=words),
        Part(
            name="language model and heads",
            numbers=text + heads - words,
            layered=linear,
            reads=VERBS,
        ),
        Part(name="vision tower", numbers=tower, reads=("ask", "edit", "learn")),
        Part(name="image tokenizer", numbers=painter, size=4),
    )
