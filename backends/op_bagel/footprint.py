"""What BAGEL takes of memory, from its shapes; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omnipersona_cli.backend import Opening, Task
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
)
from omnipersona_cli.family.weights import folder_of
from op_bagel import INFO

PROMPT = 100
"""Positions of a concept's turn and a request."""
WORDS = 152_064
"""Rows of the text table in the released model."""
CHANNELS, MAPS = 128, 6.0
"""Channels of the autoencoder at full size, and how many maps of them it holds (measured)."""
NOISES = 2
"""Times at which a picture is noised in one lesson."""
LESSON = 512
"""Pixels of the shorter side of a picture that is learned from, where nobody says otherwise."""
SIDES = 512, 1024
"""Pixels that the shorter side of an edited picture has at least, and the longer one at most."""
LARGEST_SEEN = 980
"""Pixels of the longer side of a picture that is looked at."""
PATCH, STRIDE = 14, 16
"""Pixels of a patch that is seen, and of a latent token."""
WORK: tuple[Activity, ...] = ("ask", "gen", "edit", "learn")
"""Verbs that read everything: a question about a concept reads the generation expert for its `gen`
rows, once for all questions, and with it what painting needs."""

RELEASED = gated_layers(count=28, width=3584, inner=18944, queries=3584, keys=512)
REST, SIGHT, GENERATION, AUTOENCODER = 1_527_090_144, 437_095_328, 28_912_128, 83_819_683
"""Numbers of the released model: what understanding needs besides its expert, of that the vision
tower, what painting needs besides its own expert, and the autoencoder."""


def footprint(opening: Opening, size: tuple[int, int] | None = None) -> Footprint:
    """Of the checkpoint where it is on this computer, else of the released one."""
    name = opening.model or INFO.default_model
    place = folder_of(name, INFO, single=True, revisions=opening.revisions)
    folder = place if place is None or place.is_dir() else place.parent
    shapes = stored_shapes(folder) if folder is not None else {}
    layers = normed(layers_in(shapes, "language_model.model.layers.") or RELEASED)
    width, height = size or INFO.sizes[0]
    wide, high = _edited(width, height)
    side = opening.lesson_size or LESSON
    small, small_features = (side // STRIDE) ** 2, (side // PATCH) ** 2
    return Footprint(
        model=name,
        here=bool(shapes),
        libraries=0.2,
        parts=_parts(shapes, layers),
        layers=layers,
        passes=passes_of(
            (width // STRIDE) * (height // STRIDE),
            (wide // STRIDE) * (high // STRIDE),
            min((LARGEST_SEEN // PATCH) ** 2, (wide // PATCH) * (high // PATCH)),
            prompt=PROMPT,
            words=WORDS,
            branches=3,
        ),
        lessons=lessons_of(small, small_features, prompt=PROMPT, words=WORDS),
        checkpoints=True,
        pieces=True,
        whole=True,
        stretches=SIDES[1] / side,
        batch=INFO.batch,
        pictures={
            "gen": convolved(width * height, CHANNELS, MAPS),
            "edit": convolved(wide * high, CHANNELS, MAPS),
            "learn": convolved(side * side, CHANNELS, MAPS),
        },
        streamed=2 * WORDS * layers.width,
        on_cpu="bfloat16",
    )


def _edited(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture is edited."""
    least, most = SIDES
    scale = max(least / min(width, height), min(1.0, most / max(width, height)))
    return min(most, round(width * scale)), min(most, round(height * scale))


def passes_of(
    painted: int, edited: int, features: int, *, prompt: int, words: int, branches: int
) -> dict[Activity, tuple[Pass, ...]]:
    """Passes of the lineage: ``painted`` latent tokens, or ``edited`` ones, ``features`` of the
    vision tower, after ``prompt`` positions, and ``branches`` of guidance in an edit."""
    context = edited + features + prompt
    read = Pass(
        positions=features + prompt,
        picture=features,
        cached=features + prompt,
        scores=words,
        masked=True,
    )
    return {
        "ask": (read,),
        "gen": (Pass(positions=painted, rows=2, cached=painted + 2 * prompt, masked=True),),
        "edit": (
            Pass(positions=context, cached=context, masked=True),
            Pass(positions=edited, rows=branches, cached=2 * context + edited, masked=True),
        ),
    }


def lessons_of(painted: int, features: int, *, prompt: int, words: int) -> dict[Task, Taught]:
    """Lessons of the lineage, of a picture of ``painted`` latent tokens and ``features``."""
    return {
        "understand": Taught(positions=features + prompt, scored=4, scores=words, masked=True),
        "generate": Taught(positions=NOISES * painted + prompt, masked=True),
        "edit": Taught(positions=(NOISES + 1) * painted + features + prompt, masked=True),
    }


def normed(layers: Layers) -> Layers:
    """With the norms of queries and keys, which are computed in float32."""
    return replace(layers, kept_exact=layers.kept_exact + layers.queries + layers.keys)


def _parts(shapes: Mapping[str, tuple[int, ...]], layers: Layers) -> tuple[Part, ...]:
    expert = layers.count * layers.linear
    rest, tower, painting, pictures = REST, SIGHT, GENERATION, AUTOENCODER
    und, gen = expert, expert
    wide = shapes.get("language_model.model.embed_tokens.weight", (WORDS, layers.width))
    table = wide[0] * wide[1]
    if shapes:
        pictures = counted(shapes, "encoder.", "decoder.")
        of_gen = {name: it for name, it in shapes.items() if "_moe_gen" in name}
        around = counted(shapes, "vae2llm", "llm2vae", "time_embedder", "latent_pos_embed")
        und = counted(
            {name: it for name, it in shapes.items() if name not in of_gen},
            "language_model.model.layers.",
        )
        gen, painting = counted(of_gen), around
        rest = counted(shapes) - pictures - und - gen - around
        tower = counted(shapes, "vit_model", "connector", "vit_pos_embed")
    return (
        Part(
            name="understanding expert",
            numbers=und,
            layered=und,
            linear=expert,
            reads=WORK,
        ),
        Part(name="text table", numbers=table),
        Part(name="head and tables", numbers=rest - tower - table, reads=WORK),
        Part(name="vision tower", numbers=tower, reads=("ask", "edit", "learn")),
        Part(
            name="generation expert",
            numbers=gen,
            layered=gen,
            activities=WORK,
            once=("ask",),
        ),
        Part(name="around the latents", numbers=painting, activities=WORK),
        Part(name="autoencoder", numbers=pictures, size=4, stored=4, activities=WORK),
    )
