"""What Lance takes of memory, from its shapes; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from omnipersona_cli.backend import Opening
from omnipersona_cli.family.footprint import (
    Footprint,
    Part,
    convolved,
    counted,
    gated_layers,
    layers_in,
    stored_shapes,
)
from omnipersona_cli.family.weights import folder_of
from op_bagel.footprint import WORK, lessons_of, normed, passes_of
from op_lance import INFO

PROMPT = 120
"""Positions of a concept's introduction, the template and a request."""
WORDS = 151_936
"""Rows of the text table in the released model."""
CHANNELS, FOLDED = 256, 2
"""Channels of the decoder at its finest level, whose sides are a half of the picture's."""
MAPS = 7.5
"""How many such maps the decoder holds where it doubles its sides for the last time, with twice as
many channels: what goes into the level (1) and comes out of its blocks (1/2), that doubled (2), its
convolution (2), and the copy that this makes of what it reads (2)."""
LESSON = 512
"""Pixels of the sides of a square picture that is learned from, where nobody says otherwise."""
STRIDE, TOKEN = 16, 28
"""Pixels along a side of a latent token, and of one of the tower's."""
SEEN = 7 / 8
"""A side of what the tower sees, as a share of what the autoencoder does."""

RELEASED = gated_layers(count=36, width=2048, inner=11008, queries=2048, keys=256)
EXPERT, TEXT, AROUND, TOWER = 2_774_782_976, 622_329_856, 13_310_000, 668_684_288
"""Numbers of the released model: an expert, embeddings and head, what stands around the latents,
the vision tower."""
AUTOENCODER, IN_FILE = 252_125_020, 704_688_668
"""Numbers of what single pictures use of the autoencoder, and of its file, which is in float32."""


def footprint(opening: Opening, size: tuple[int, int] | None = None) -> Footprint:
    """Of the checkpoint where it is on this computer, else of the released one."""
    name = opening.model or INFO.default_model
    folder = _folder(folder_of(name, INFO, single=True, revisions=opening.revisions))
    shapes = stored_shapes(folder) if folder is not None else {}
    layers = layers_in(shapes, "language_model.model.layers.") or RELEASED
    width, height = size or INFO.sizes[0]
    wide, high = INFO.sizes[0]  # a picture is edited in its own shape, at this area
    side = opening.lesson_size or LESSON
    small, small_features = (side // STRIDE) ** 2, _features(side, side)
    return Footprint(
        model=name,
        here=bool(shapes),
        libraries=0.2,
        parts=_parts(folder, shapes, layers.count * layers.linear),
        layers=normed(layers),
        passes=passes_of(
            (width // STRIDE) * (height // STRIDE),
            (wide // STRIDE) * (high // STRIDE),
            _features(wide, high),
            prompt=PROMPT,
            words=WORDS,
            branches=2,
        ),
        lessons=lessons_of(small, small_features, prompt=PROMPT, words=WORDS),
        checkpoints=True,
        pieces=True,
        whole=True,
        batch=INFO.batch,
        pictures={
            "gen": convolved(width * height // FOLDED**2, CHANNELS, MAPS),
            "edit": convolved(wide * high // FOLDED**2, CHANNELS, MAPS),
            "learn": convolved((side // FOLDED) ** 2, CHANNELS, MAPS),
        },
        stored=4,
        streamed=4 * WORDS * layers.width,
        on_cpu="bfloat16",
    )


def _folder(place: Path | None) -> Path | None:
    """Where the large file is."""
    if place is None or place.is_file():
        return place and place.parent
    return place / "Lance_3B" if (place / "Lance_3B").is_dir() else place


def _features(width: int, height: int) -> int:
    """Tokens of the tower for a picture that is painted at this size."""
    return round(width * SEEN) // TOKEN * (round(height * SEEN) // TOKEN)


def _parts(
    folder: Path | None, shapes: dict[str, tuple[int, ...]], linear: int
) -> tuple[Part, ...]:
    und, gen, text, around, tower = EXPERT, EXPERT, TEXT, AROUND, TOWER
    autoencoder = AUTOENCODER
    if folder is not None and shapes:
        of_gen = {name: it for name, it in shapes.items() if "_moe_gen" in name}
        gen = counted(of_gen)
        text = counted(shapes, "language_model.model.embed_tokens", "language_model.lm_head")
        und = counted(shapes, "language_model") - gen - text
        around = counted(shapes) - und - gen - text
        tower = counted(stored_shapes(folder.parent / "Qwen2.5-VL-ViT")) or TOWER
        torch_file = folder.parent / "Wan2.2_VAE.pth"
        if torch_file.is_file():
            autoencoder = torch_file.stat().st_size // 4 * AUTOENCODER // IN_FILE
    return (
        Part(name="understanding expert", numbers=und, layered=und, linear=linear),
        Part(name="embeddings and head", numbers=text),
        Part(name="vision tower", numbers=tower, stored=2, reads=("ask", "edit", "learn")),
        Part(name="generation expert", numbers=gen, layered=gen, activities=WORK),
        Part(name="around the latents", numbers=around, activities=WORK),
        Part(
            name="autoencoder",
            numbers=autoencoder,
            size=4,
            stored=4,
            activities=("gen", "edit", "learn"),
        ),
    )
