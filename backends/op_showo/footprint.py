"""What Show-o takes of memory, from its shapes; imports nothing heavy."""

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
    stored_shapes,
    stored_size,
)
from omnipersona_cli.family.weights import folder_of
from op_showo import CLIP, INFO

VERBS: tuple[Activity, ...] = ("ask", "gen", "edit", "learn")
TEXT, ASKED = 130, 60
"""Positions of a request that is painted, and of a concept with a question."""
WORDS = 58_498
"""Rows of the table and of the head."""
ENCODER, DECODER, TOWER = 55_545_680, 39_947_833, 303_507_456
"""Numbers of the image tokenizer's halves, and of CLIP's vision tower where it looks."""
CHANNELS, MAPS = 128, 6.0
"""Channels of the image tokenizer at full size, and how many maps of them it holds (measured)."""
REMEMBER = 2 << 30
"""Bytes of what reading pictures leaves behind that are kept."""


def footprint(opening: Opening, size: tuple[int, int] | None = None) -> Footprint:
    """Of the checkpoint where it is on this computer, else of the released one of that name."""
    name = opening.model or INFO.default_model
    folder = folder_of(name, INFO, revisions=opening.revisions)
    shapes = stored_shapes(folder) if folder is not None else {}
    layers = _layers(shapes)
    side = 512 if "512" in name or name not in INFO.models else 256  # it paints that size alone
    codes = (side // 16) ** 2
    observed, whole = codes + 3, codes + 2 + TEXT
    pickled = 0
    if folder is not None and not shapes:  # no shapes without reading it; the release is in float32
        pickled = sum(path.stat().st_size for path in folder.glob("pytorch_model*.bin")) // 4
    released = layers.count * (layers.linear + 10 * layers.width) + 2 * WORDS * 2048
    text = counted(shapes) or pickled or released
    words = shapes.get("showo.model.embed_tokens.weight", (WORDS, layers.width))
    table = min(text, words[0] * words[1])
    parts = [
        Part(name="text table", numbers=table),
        Part(
            name="language model",
            numbers=text - table,
            layered=min(text - table, layers.count * layers.linear),
            reads=VERBS,
        ),
        *_tokenizer(folder),
    ]
    if name in CLIP:
        parts.append(Part(name="vision tower", numbers=TOWER))
    maps = convolved(side * side, CHANNELS, MAPS)
    earlier = layers.cached(2) * observed  # keys and values of a picture that was read before
    read = Pass(positions=observed, cached=observed, masked=True)
    return Footprint(
        model=name,
        here=bool(shapes or pickled),
        parts=tuple(parts),
        layers=layers,
        passes={
            "ask": (read, Pass(positions=ASKED, rows=2, cached=2 * (observed + ASKED), scored=2)),
            "gen": (
                Pass(
                    positions=codes + 2, rows=2, cached=whole, masked=True, scored=2 * codes,
                    scores=2 ** 13,
                ),
            ),
            "edit": (
                Pass(
                    positions=codes + 2, rows=2, cached=whole, masked=True, scored=2 * codes,
                    scores=2 ** 13,
                ),
            ),
        },
        lessons={
            "understand": Taught(
                positions=ASKED, context=observed, scored=4, scores=WORDS, masked=True
            ),
            "generate": Taught(positions=whole, scored=codes, scores=WORDS, masked=True),
            "edit": Taught(positions=whole, scored=codes, scores=WORDS, masked=True),
        },
        checkpoints=True,
        pieces=True,
        wide=True,
        batch=INFO.batch,
        pictures={"ask": maps + earlier, "gen": maps, "edit": maps + earlier, "learn": maps},
        remembered=earlier,
        remember=REMEMBER,
        stored=stored_size(folder, shapes, 4),
    )  # fmt: skip


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> Layers:
    """phi's: one norm before attention and MLP, both of which add to the same rows, and a norm of
    queries and keys. A plain MLP keeps what goes into its activation."""
    start = "showo.model.layers."
    inner, width = shapes.get(f"{start}0.mlp.fc1.weight", (8192, 2048))
    count = len({it.removeprefix(start).partition(".")[0] for it in shapes if it.startswith(start)})
    return Layers(
        count=count or 24,
        width=width,
        inner=inner,
        queries=width,
        keys=width,
        linear=4 * width * width + 2 * width * inner,
        kept=inner + 6 * width + width,
        kept_exact=0,
    )


def _tokenizer(folder: Path | None) -> tuple[Part, Part]:
    """The two halves of the image tokenizer beside the model; of the released one where it is
    elsewhere."""
    shapes: Mapping[str, tuple[int, ...]] = {}
    for place in () if folder is None else (folder / "magvitv2", folder.parent / "magvitv2"):
        shapes = shapes or stored_shapes(place)
    encoder = counted(shapes, "encoder.", "quantize.") or ENCODER
    decoder = counted(shapes, "decoder.") or DECODER  # also where they are pickled
    return (
        Part(
            name="image encoder", numbers=encoder, size=4, stored=4, reads=("ask", "edit", "learn")
        ),
        Part(
            name="image decoder", numbers=decoder, size=4, stored=4, reads=("gen", "edit", "learn")
        ),
    )
