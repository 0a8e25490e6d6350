"""How much memory a model will take, from its shapes, before a number of it is read.

A backend tells its shapes in a `Footprint`; the arithmetic here is the same for all. What is
counted, and how far it is from what a process was seen to take, is in docs/cards.md;
``benchmarks/memory.py`` measures it anew. Nothing heavy is imported: `op backends show` uses this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from omnipersona_cli.backend import Quantize, Task
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.reading import Origin, read_tensor_header

GIB = 2**30

Activity = Literal["open", "ask", "gen", "edit", "learn"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)

Kind = Literal["cpu", "cuda", "mps"]

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
QUANTIZED: Mapping[str, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a quantised number with its share of the scales (nf4: one in float32 for each 64)."""

PROCESS: Mapping[Kind, float] = {"cpu": 0.25, "cuda": 0.75, "mps": 0.75}
"""GiB of Python and torch on a processor; of libraries and their workspaces on a card."""

READING = 0.15
"""GiB that configurations, tokenizers and the tensor at hand take while a model is opened, where no
tensor at hand is counted by its own size."""
ROOM = 1.5
"""GiB that the pieces of a batch may keep for their way back (`omnipersona_cli.family.pieces`)."""
SHARE = 0.1
"""The same on a CUDA card, as a share of its memory."""
SLACK = 1.18
"""What a step keeps, over what its layers are counted to keep: autograd's own notes (a twelfth,
seen by hooks on saved tensors) and what the allocator cannot use again (a tenth)."""
TOKENS = 32
"""Tokens of a concept in each layer that has some."""
COPIES = 5
"""Themselves, their gradient, two moments and the best so far."""
PICTURES = 30
"""Pictures that learning looks at: ten photos and twenty others."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model: its ``numbers``, and the ``activities`` for which it is in memory.

    A number has ``size`` bytes in memory and ``stored`` bytes in its file; 0 are those of the dtype
    and of the model's other files. Where both are the same, a processor leaves the part in the
    file, mapped, and it takes room for those activities alone that read it (``reads``; None: all);
    those that read it ``once`` need no room for it, for the system takes the pages back.
    ``layered`` numbers are those of layers, which may be offloaded, ``linear`` those of linear maps
    that may be quantised.
    """

    name: str
    numbers: int
    size: int = 0
    stored: int = 0
    layered: int = 0
    linear: int = 0
    activities: tuple[Activity, ...] = ACTIVITIES
    reads: tuple[Activity, ...] | None = None
    once: tuple[Activity, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The language model's layers: how many, their width, the inner width of the MLP, the widths
    of all queries and of all keys, and the numbers of a layer's linear weights.

    ``kept`` and ``kept_exact`` are the numbers that one layer keeps of one position for the way
    back, where its weights are frozen: in the dtype, and in float32 whatever the dtype is.
    """

    count: int
    width: int
    inner: int
    queries: int
    keys: int
    linear: int
    kept: int
    kept_exact: int

    def cached(self, size: int) -> int:
        """Bytes of keys and values of one position, in all layers."""
        return 2 * self.keys * size * self.count

    def kept_bytes(self, size: int) -> int:
        """Bytes that one layer keeps of one position for the way back."""
        return self.kept * size + self.kept_exact * 4

    def working(self, size: int) -> int:
        """Bytes of one position at the widest place of a layer, which is its MLP."""
        return size * (3 * self.inner + 3 * self.width) + 4 * self.width


def gated_layers(*, count: int, width: int, inner: int, queries: int, keys: int) -> Layers:
    """Layers as Llama has them. Frozen linear maps keep nothing: what is kept are the three factors
    of the gated MLP, queries, keys, values and what attention gives, and the inputs of both norms,
    which are computed in float32."""
    return Layers(
        count=count,
        width=width,
        inner=inner,
        queries=queries,
        keys=keys,
        linear=2 * width * (queries + keys) + 3 * width * inner,
        kept=3 * inner + 2 * queries + 2 * keys,
        kept_exact=2 * width,
    )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Sequences that run through the layers together: ``rows`` of ``positions`` new ones each,
    while keys and values of ``cached`` positions a row are held. ``scored`` positions in all get
    scores over ``scores`` entries. With ``masked``, attention has a mask for every pair. Each
    picture after the first, where a question is about several, adds ``picture`` positions."""

    positions: int
    picture: int = 0
    rows: int = 1
    cached: int = 0
    scored: int = 1
    scores: int = 0
    masked: bool = False


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A lesson, as far as memory goes: ``positions`` that carry a gradient, ``context`` those
    before them that carry none, ``scored`` how many get scores over ``scores`` entries."""

    positions: int
    context: int = 0
    scored: int = 1
    scores: int = 0
    masked: bool = False


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What memory depends on, of one model at one size of pictures. Where the model is not
    ``here``, on this computer, its sizes are those of the released one.

    ``passes`` are the widest ones of each verb, of which the largest counts; ``lessons`` are those
    of each task, ``batch`` how many a step has. ``pictures`` are the bytes that the pictures'
    encoder or decoder takes. Of each picture that learning looks at, ``remembered`` bytes are kept,
    ``remember`` at most. ``stored`` is the size of a number in the files, which stay mapped where
    the dtype is theirs; ``streamed`` are the bytes of the largest tensor, where each is given back
    once it is read. ``libraries`` are GiB of what it imports besides torch. ``dtypes`` are what it
    runs in, the usual one first, ``on_cpu`` the usual one of a processor where that is always the
    same; a ``small`` one runs
    there wherever nothing else is asked. ``checkpoints`` says that it can learn without keeping
    what layers can compute again, ``checkpointed`` that it always does, ``pieces`` that it holds a
    few lessons of a batch at a time, ``whole`` that it holds all of them where these have room and
    else those of one task, ``wide`` that deep tokens travel beside every position of a
    lesson and not beside their own alone (`omnipersona_cli.family.deep`). Lessons are those of a
    square picture; one of another shape makes them larger by its ratio, at most ``stretches``
    times.
    """

    model: str
    here: bool
    parts: tuple[Part, ...]
    layers: Layers
    passes: Mapping[Activity, tuple[Pass, ...]]
    lessons: Mapping[Task, Taught]
    batch: int
    pictures: Mapping[Activity, int] = field(default_factory=dict)
    remembered: int = 0
    remember: int = 0
    stored: int = 2
    streamed: int = 0
    libraries: float = 0.15
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    on_cpu: str = ""
    small: bool = False
    checkpointed: bool = False
    pieces: bool = False
    whole: bool = False
    checkpoints: bool = False
    wide: bool = False
    stretches: float = 1.0

    def stretched(self, ratio: float) -> Footprint:
        """With lessons of a picture whose sides have this ``ratio``, 1 or more."""
        by = min(ratio, self.stretches)
        if by <= 1:
            return self
        lessons = {
            task: replace(it, positions=round(it.positions * by), context=round(it.context * by))
            for task, it in self.lessons.items()
        }
        learn = round(self.pictures.get("learn", 0) * by)
        return replace(self, lessons=lessons, pictures={**self.pictures, "learn": learn})


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a person may choose that memory depends on. ``at_once`` lessons of a batch are held at a
    time, 0 as many as `ROOM` and `SHARE` allow; ``depth`` layers after the first have tokens of
    their own; ``card`` is the GiB of the device; a question is about ``images`` pictures."""

    kind: Kind = "cpu"
    dtype: str = "bfloat16"
    batch: int = 0
    at_once: int = 0
    depth: int = 0
    activation_checkpointing: bool = False
    offload: bool = False
    quantize: Quantize = ""
    card: float = 0.0
    pictures: int = PICTURES
    images: int = 1


def needed(what: Footprint, verb: Activity, means: Means, *, pages: bool = False) -> float:
    """The most GiB that ``verb`` will take, opening included; with ``pages`` also those of a file
    that is mapped while its numbers are brought to another dtype, or read once. The system counts
    them as the process's, and takes them back where others need them."""
    opening = _opening(what, verb, means, pages)
    weights = _weights(what, verb, means, pages)
    if verb == "open":
        reading = READING * GIB if means.kind == "cpu" and not what.small else 0.0
        return max(opening, weights + reading) / GIB + _process(what, means)
    # learning answers and paints in its checks, and edits in none
    used: list[Activity] = ["ask", "gen"] if verb == "learn" else [verb]
    asked: list[Activity] = [one for one in used if one in what.passes]
    moments = [_moment(what, one, means) for part in asked for one in what.passes[part]]
    moments += [what.pictures.get(one, 0) for one in (*asked, verb)]
    held = 0
    if verb == "learn":
        moments.append(_step(what, means))
        held = min(what.remember, what.remembered * means.pictures)
        held += means.depth * TOKENS * what.layers.width * 4 * COPIES
    return max(opening, weights + held + max(moments)) / GIB + _process(what, means)


def _process(what: Footprint, means: Means) -> float:
    """GiB that are there before any weight is."""
    return PROCESS[means.kind] + (what.libraries if means.kind == "cpu" else 0.0)


def _weights(what: Footprint, verb: Activity, means: Means, pages: bool) -> int:
    """Bytes of the weights that stay; with ``pages`` also those of files beside them."""
    total = 0
    for part in what.parts:
        size, stored = part.size or SIZES[means.dtype], part.stored or what.stored
        small = part.linear if means.quantize else 0
        mapped = means.kind == "cpu" and size == stored
        read = part.activities if part.reads is None else part.reads
        passing = mapped and verb in part.once and not pages
        if verb in (read if mapped else part.activities) and not passing:
            away = part.layered if means.offload else 0
            numbers = part.numbers - away + away // what.layers.count - small
            total += numbers * size + round(small * QUANTIZED.get(means.quantize, 0))
        if pages and part.size and not mapped and means.kind == "cpu":
            total += part.numbers * stored  # read from a file that stays mapped for the others
    return total


def offloaded(what: Footprint, means: Means) -> float:
    """GiB of the computer's memory that offloaded layers wait in."""
    return sum(part.layered for part in what.parts) * SIZES[means.dtype] / GIB


def _opening(what: Footprint, verb: Activity, means: Means, pages: bool) -> int:
    """Bytes at the widest moment of reading."""
    read = 0
    if pages and means.kind == "cpu" and SIZES[means.dtype] != what.stored:
        if what.streamed:  # the largest tensor comes first, and no verb adds one as large
            return _weights(what, "open", means, pages) + what.streamed
        parts = (part for part in what.parts if verb in part.activities and not part.size)
        read = sum(part.numbers * what.stored for part in parts)
    return _weights(what, verb, means, pages) + read


def _moment(what: Footprint, one: Pass, means: Means) -> float:
    """Bytes of a pass without gradients: keys and values, the widest layer, scores, the mask."""
    size, more = SIZES[means.dtype], one.picture * (means.images - 1)
    new, cached = one.rows * (one.positions + more), one.cached + more
    taken = what.layers.cached(size) * one.rows * cached + what.layers.working(size) * new
    taken += one.scored * one.scores * (size + 8)
    if one.masked:
        taken += new * max(one.positions + more, cached) * (1 + size)
    return taken


def _step(what: Footprint, means: Means) -> float:
    """Bytes of a learning step: what is kept of the lessons that are held at a time, and the way
    back of those of one task through a layer and the head."""
    batch = shares(means.batch or what.batch, tuple(what.lessons))
    kept = {task: _kept(what, one, means) for task, one in what.lessons.items()}
    way = {task: _way_back(what, one, means) for task, one in what.lessons.items()}
    if not what.pieces:
        whole = sum(count * kept[task] for task, count in batch.items())
        return whole + max(count * way[task] for task, count in batch.items())
    plain = replace(means, depth=0, activation_checkpointing=False, offload=False, quantize="")
    room = (SHARE * means.card if means.kind == "cuda" else ROOM) * GIB
    each = {task: _kept(what, what.lessons[task], plain) for task in batch}
    count_all = sum(batch.values())
    fits = sum(count * each[task] for task, count in batch.items()) <= room
    if what.whole and (means.at_once >= count_all if means.at_once else fits):
        return sum(count * (kept[task] + way[task]) for task, count in batch.items())
    pieces = []
    for task, count in batch.items():
        most = means.at_once or max(1, int(room / each[task]))
        pieces.append(min(count, most) * (kept[task] + way[task]))
    return max(pieces)


def _kept(what: Footprint, one: Taught, means: Means) -> float:
    """Bytes that are kept of one lesson for its way back."""
    size, layers = SIZES[means.dtype], what.layers
    kept = layers.kept_bytes(size) * one.positions
    kept += 4 * layers.keys * size * one.context  # beside the others' and beside the new ones
    total: float
    if _again(what, means):
        total = float(layers.width * size * one.positions * layers.count)
    else:
        total = kept * layers.count * SLACK
    if what.wide:  # what is added at each layer, lesson by lesson and in the padded batch
        total += 2 * means.depth * layers.width * size * one.positions
    if one.masked:
        total += one.positions * (one.positions + one.context) * (1 + size)
    return total + one.scored * one.scores * 4


def _again(what: Footprint, means: Means) -> bool:
    """Whether learning computes layers again."""
    asked = means.activation_checkpointing or means.offload or bool(means.quantize)
    return what.checkpointed or (asked and what.checkpoints)


def _way_back(what: Footprint, one: Taught, means: Means) -> float:
    """Bytes that the way back of one lesson takes besides: a layer and its gradients, or those of
    the scores, whichever are more."""
    size, layers = SIZES[means.dtype], what.layers
    layer = layers.working(size) * one.positions
    if _again(what, means):
        layer += layers.kept_bytes(size) * one.positions + 4 * layers.keys * size * one.context
    return max(layer, one.scored * one.scores * (size + 8))


def shares(batch: int, tasks: Sequence[Task]) -> dict[Task, int]:
    """Lessons of each task in a batch: about half of them understanding, as learning draws them."""
    painting = [task for task in tasks if task != "understand"]
    if not painting:
        return dict.fromkeys(tasks, batch)
    half = math.ceil(batch / 2) if "understand" in tasks else 0
    found: dict[Task, int] = {"understand": half} if half else {}
    rest = max(batch - half, len(painting))
    for index, task in enumerate(painting):
        found[task] = rest // len(painting) + (index < rest % len(painting))
    return found


def convolved(pixels: int, channels: int, maps: float, size: int = 4) -> int:
    """Bytes that a convolutional encoder or decoder takes at its finest level: ``maps`` of
    ``channels`` each, alive at once."""
    return round(pixels * channels * maps * size)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the safetensors files of a folder, from their headers;
    empty where there are none, or one is broken: opening will say so."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header, _, _ = read_tensor_header(path, Origin(name=str(path)))
            for name, entry in header.items():
                if name != "__metadata__":
                    found[name] = tuple(entry["shape"])
        except (PersonaError, KeyError, TypeError):
            return {}
    return found


def stored_size(folder: Path | None, shapes: Mapping[str, tuple[int, ...]], usual: int) -> int:
    """Bytes of a number in the files of a folder; ``usual`` where there are none."""
    numbers = counted(shapes)
    if folder is None or not numbers:
        return usual
    return round(sum(path.stat().st_size for path in folder.glob("*.safetensors")) / numbers)


def counted(shapes: Mapping[str, tuple[int, ...]], *starts: str) -> int:
    """Numbers in the tensors whose names begin with one of ``starts``; in all, without any."""
    return sum(
        math.prod(shape) for name, shape in shapes.items() if not starts or name.startswith(starts)
    )


def layers_in(shapes: Mapping[str, tuple[int, ...]], start: str) -> Layers | None:
    """Llama's layers by the shapes of their weights, whose names begin with ``start`` and a number;
    None where there are none."""
    first = f"{start}0."
    query, key = (shapes.get(f"{first}self_attn.{it}_proj.weight") for it in "qk")
    gate = shapes.get(f"{first}mlp.gate_proj.weight")
    if query is None or key is None or gate is None:
        return None
    count = len(
        {name.removeprefix(start).partition(".")[0] for name in shapes if name.startswith(start)}
    )
    return gated_layers(count=count, width=query[1], inner=gate[0], queries=query[0], keys=key[0])
