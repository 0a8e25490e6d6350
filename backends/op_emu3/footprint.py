"""What Emu3 takes of memory, from its shapes; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
from omnipersona_cli.family.weights import folder_of, place_of
from op_emu3 import INFO, layout

PROMPT = 150
"""Positions of a prompt with its concept, or of what is unwanted."""
WORDS, CODES = 184_622, 32_768
"""Rows of the table, and image codes."""
LOOKED_AT = (512, 512)
"""Pixels of a picture that is looked at, and of one that is learned from where nobody says
otherwise."""
CHANNELS, MAPS = 256, 6.0
"""Channels of the image tokenizer at full size, and how many maps of them it holds (measured)."""
RELEASED = gated_layers(count=32, width=4096, inner=14336, queries=4096, keys=1024)
PICTURES = 270_740_359
"""Numbers of the image tokenizer: alike in all released models."""


def footprint(opening: Opening, size: tuple[int, int] | None = None) -> Footprint:
    """Of the checkpoints where they are on this computer, else of the released pair."""
    name = opening.model or INFO.default_model
    folders = _folders(name, opening.revisions)
    shapes = stored_shapes(folders[0]) if folders else {}
    layers = next(
        (
            found
            for start in ("model.text_model.layers.", "text_model.model.layers.")
            if (found := layers_in(shapes, start))
        ),
        RELEASED,
    )
    answers: tuple[Activity, ...] = ("ask", "gen", "edit", "learn")
    paints: tuple[Activity, ...] = ("gen", "edit", "learn")
    parts = _named(_parts(shapes, layers), "", answers)
    if len(folders) == 2 or (not folders and "+" in name):
        parts = (
            *_named(parts, " that answers", answers),
            *_named(parts, " that paints", paints),
        )
    width, height = size or INFO.sizes[0]
    side = opening.lesson_size
    learned_from = (side, side) if side else LOOKED_AT
    area = min(layout.AREAS, key=lambda trained: abs(trained - width * height))
    rows, columns = layout.grid_for((width, height), area)
    edited = layout.length((rows, columns))
    looked_at, painted, codes = (
        _positions(it) for it in (LOOKED_AT, (width, height), learned_from)
    )
    whole, lesson = looked_at + PROMPT, codes + PROMPT
    read = Pass(positions=whole, cached=whole, scores=WORDS)
    return Footprint(
        model=name,
        here=bool(shapes),
        parts=parts,
        layers=layers,
        passes={
            "ask": (read, Pass(positions=whole, rows=2, scored=8, scores=WORDS)),
            "gen": (Pass(positions=PROMPT, rows=2, cached=painted + PROMPT, scores=CODES),),
            "edit": (
                Pass(positions=edited + PROMPT, rows=2, cached=edited + PROMPT, scores=CODES),
            ),
        },
        lessons={
            "understand": Taught(positions=lesson, scored=4, scores=WORDS),
            "generate": Taught(positions=lesson, scored=codes, scores=CODES),
            "edit": Taught(positions=lesson, scored=codes, scores=CODES),
        },
        batch=INFO.batch,
        pictures={
            "ask": convolved(LOOKED_AT[0] * LOOKED_AT[1], CHANNELS, MAPS),
            "gen": convolved(width * height, CHANNELS, MAPS),
            "edit": convolved(rows * columns * layout.SIDE**2, CHANNELS, MAPS),
            "learn": convolved(LOOKED_AT[0] * LOOKED_AT[1], CHANNELS, MAPS),
        },
        stored=stored_size(folders[0] if folders else None, shapes, 4),
        checkpointed=True,
        pieces=True,
        wide=True,
    )


def _positions(size: tuple[int, int]) -> int:
    return layout.length((size[1] // layout.SIDE, size[0] // layout.SIDE))


def _folders(name: str, revisions: Mapping[str, str]) -> list[Path]:
    """The checkpoints that are here: one or two."""
    folder = place_of(name, INFO)
    if folder is not None and folder.is_dir() and not (folder / "config.json").exists():
        return sorted(path.parent for path in folder.glob("*/config.json"))[:2]
    found = (folder_of(one, INFO, revisions=revisions) for one in name.split("+"))
    return [one for one in found if one is not None]


def _parts(shapes: Mapping[str, tuple[int, ...]], layers: Layers) -> tuple[Part, ...]:
    others = (2 * WORDS + 2 * layers.count + 1) * layers.width
    text, pictures = layers.count * layers.linear + others, PICTURES
    if shapes:
        pictures = counted(shapes, "model.vqmodel.", "vqmodel.")
        text = counted(shapes) - pictures
    return (
        Part(name="language model", numbers=text, layered=layers.count * layers.linear),
        Part(name="image tokenizer", numbers=pictures, size=4),
    )


def _named(
    parts: tuple[Part, ...], what: str, activities: tuple[Activity, ...]
) -> tuple[Part, ...]:
    """The parts of one checkpoint of a pair, which is read when a verb first needs it."""
    return tuple(
        Part(
            name=f"{part.name}{what}",
            numbers=part.numbers,
            size=part.size,
            layered=part.layered,
            activities=activities,
        )
        for part in parts
    )
