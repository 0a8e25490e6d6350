"""What the backends of this lineage share: BAGEL's own, and those of models that came from it.

How they paint is in `op_bagel.painting`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from omnipersona_cli.backend import ConceptTokens, Task, Turn
from omnipersona_cli.family.deep import wide_rows
from omnipersona_cli.family.pieces import in_pieces, settled
from omnipersona_cli.family.tokens import kmeans, trainable
from op_bagel.cache import Cache
from op_bagel.model import Bagel, Outputs
from op_bagel.packing import pack
from op_bagel.pictures import Grid
from op_bagel.sampling import training_time
from op_bagel.segments import Noise, Sample

NOISES = 2
"""Times at which a picture to be drawn is noised in one lesson: the context is shared."""

INTRODUCED = 8
"""Sets of concepts whose rows are kept as keys and values, for every prompt that follows."""


class Tokenizer(Protocol):
    """A tokenizer. ``unnamed`` is how a mention without tokens is read."""

    unnamed: str

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


# -- lessons ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson after every frozen encoder has run. ``request`` has its mentions at ``at``."""

    task: Task
    request: list[int]
    at: list[int]
    answer: list[int]
    features: Tensor | None  # [n, D] features of the picture looked at
    source: Tensor | None  # [n, latent width], the picture to edit
    target: Tensor | None
    grid: Grid
    looked: Grid = (0, 0)  # rows and columns of the features, for a model that counts them


Run = Callable[[Sequence[PreparedLesson], ConceptTokens], tuple[Outputs, Tensor]]
"""What the heads say of lessons after a concept, and the lesson of each token to be drawn [M]. The
tokens are such that only the part of the lessons' own expert may move."""


def ids_of(
    turn: Turn, tokenizer: Tokenizer, names: Container[str] | None = None
) -> tuple[list[int], list[tuple[int, str]]]:
    """Token ids of a turn, a placeholder per mention, and where which name stands. Mentions of
    others than ``names``, where those are given, are plain text."""
    ids: list[int] = []
    at: list[tuple[int, str]] = []
    done = 0
    for span in sorted(turn.spans, key=lambda one: one.start):
        if names is not None and span.name not in names:
            continue
        ids += tokenizer.encode(turn.text[done : span.start])
        at.append((len(ids), span.name))
        ids += tokenizer.encode(tokenizer.unnamed)[:1]
        done = span.end
    return ids + tokenizer.encode(turn.text[done:]), at


def unnamed_ids(turn: Turn, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a turn that no concept is known for: each mention is `Tokenizer.unnamed`."""
    pieces, done = [], 0
    for span in sorted(turn.spans, key=lambda one: one.start):
        pieces += [turn.text[done : span.start], tokenizer.unnamed]
        done = span.end
    return tokenizer.encode("".join([*pieces, turn.text[done:]]))


def noised(target: Tensor, grid: Grid, shift: float, draw: torch.Generator) -> list[Noise]:
    """``target`` [n, latent width] at some random times, each with its noise."""
    found = []
    for _ in range(NOISES):
        t = training_time(torch.randn((), generator=draw), shift)
        noise = torch.randn(target.shape, generator=draw).to(target.device)
        found.append(Noise(target, grid, float(t), noise))
    return found


def task_losses(
    lessons: Sequence[PreparedLesson],
    tokens: ConceptTokens,
    run: Run,
    *,
    most: int,
    at_once: int,
) -> dict[Task, Tensor]:
    """Cross-entropy of answers; flow-matching error of pictures (paper, section 3.2): means, by
    task, of all that is labelled or drawn.

    The whole batch runs at once where ``most`` positions hold it, or ``at_once`` lessons do, else
    piece by piece.
    """
    pieces = _pieces(lessons, most, at_once)
    if len(pieces) == 1:
        whole = _losses(lessons, tokens, run)
        return {task: losses.mean() for task, losses in whole.items()}
    sums: dict[Task, list[Tensor]] = {}
    counts: dict[Task, int] = {}
    for piece in pieces:
        for task, losses in _losses(piece, tokens, run).items():
            sums.setdefault(task, []).append(settled(losses.sum(), tokens.parameters()))
            counts[task] = counts.get(task, 0) + losses.numel()
    return {task: torch.stack(parts).sum() / counts[task] for task, parts in sums.items()}


def _pieces(
    lessons: Sequence[PreparedLesson], most: int, at_once: int
) -> list[Sequence[PreparedLesson]]:
    """The whole batch where it fits, else neighbours of one task."""
    lengths = [_positions(lesson) for lesson in lessons]
    if len(lessons) <= at_once or (not at_once and sum(lengths) <= most):
        return [lessons]
    found: list[Sequence[PreparedLesson]] = []
    for _, group in groupby(lessons, key=lambda lesson: lesson.task):
        mine = list(group)
        lengths = [_positions(lesson) for lesson in mine]
        found += in_pieces(mine, lengths, most=most, at_once=at_once)
    return found


def _positions(lesson: PreparedLesson) -> int:
    """How long a lesson is, without its words."""
    pictures = 0 if lesson.features is None else len(lesson.features)
    pictures += 0 if lesson.source is None else len(lesson.source)
    return pictures + (0 if lesson.target is None else NOISES * len(lesson.target))


def _losses(
    lessons: Sequence[PreparedLesson], tokens: ConceptTokens, run: Run
) -> dict[Task, Tensor]:
    """Cross-entropies [K] of answers' tokens and squared errors [M, latent width] of what is
    drawn, by task."""
    found: dict[Task, Tensor] = {}
    asked = [lesson for lesson in lessons if lesson.task == "understand"]
    if asked:
        outputs, _ = run(asked, tokens.with_still("gen"))
        found["understand"] = outputs.ce
    painted = [lesson for lesson in lessons if lesson.task != "understand"]
    if painted:
        outputs, lesson_of = run(painted, tokens.of_looks().with_still("und"))
        tasks: tuple[Task, ...] = ("generate", "edit")
        for task in tasks:
            of_task = torch.tensor([one.task == task for one in painted], device=lesson_of.device)
            mine = of_task[lesson_of]
            if mine.any():
                found[task] = outputs.mse[mine]
    return found


def answer_losses(
    model: Bagel,
    lessons: Sequence[PreparedLesson],
    *,
    context: Callable[[PreparedLesson], Cache | None],
    sample: Callable[[PreparedLesson], Sample],
) -> Tensor:
    """The mean cross-entropy of each lesson's answer [n]. Lessons about one picture go on from one
    ``context`` with it; ``sample`` is what comes after that."""
    of_picture: dict[int, list[int]] = {}
    for number, lesson in enumerate(lessons):
        of_picture.setdefault(id(lesson.features), []).append(number)
    found = torch.zeros(len(lessons), device=model.device)
    for numbers in of_picture.values():
        mine = [lessons[number] for number in numbers]
        packed = pack([sample(one) for one in mine], model.config, model.device)
        losses = model(packed, context(mine[0])).ce.float()
        sums = losses.new_zeros(len(mine)).index_add(0, packed.label_sample, losses)
        found[numbers] = sums / packed.label_sample.bincount(minlength=len(mine))
    return found


# -- where tokens start ----------------------------------------------------------------------------


def started_tokens(
    name: str,
    encoded: Iterable[tuple[Tensor, Tensor]],
    model: Bagel,
    *,
    understand: int,
    generate: int,
    seed: int,
    norm_limit: float,
) -> ConceptTokens:
    """Tokens that start from k-means centres of what both experts see: ``encoded`` are features
    [n, D] and latent tokens [m, latent width] of each photo, as these enter the generation expert.
    """
    with torch.inference_mode():
        features, latents = (torch.cat(rows) for rows in zip(*encoded, strict=True))
        rows = model.vae2llm(latents.to(model.dtype))
    und = kmeans(features.float(), understand, seed)
    gen = kmeans(rows.float(), generate, seed)
    return fresh_tokens(name, und.mean(0, keepdim=True), und, gen, norm_limit=norm_limit)


def fresh_tokens(
    name: str, identifier: Tensor, und: Tensor, gen: Tensor, *, norm_limit: float
) -> ConceptTokens:
    """Trainable float32 copies, inside the ball that packs promise."""
    rows = (trainable(part, limit=0.9 * norm_limit) for part in (identifier, und, gen))
    identifier, und, gen = rows
    return ConceptTokens(name=name, id=identifier, und=und, gen=gen)


# -- what is kept between calls --------------------------------------------------------------------


class Introductions:
    """Keys and values of the rows that introduce concepts, which ``read`` gives: kept, by what is
    in the rows, for every prompt that follows."""

    def __init__(self, read: Callable[[Sequence[ConceptTokens]], Cache]) -> None:
        self._read = read
        self._kept: OrderedDict[bytes, Cache] = OrderedDict()

    def of(self, concepts: Sequence[ConceptTokens]) -> Cache | None:
        """None without concepts."""
        if not concepts:
            return None
        rows = [
            row
            for one in concepts
            for row in (one.id, wide_rows(one, "und"), wide_rows(one, "gen"))
        ]
        digest = blake2b(digest_size=16)
        for row in rows:
            digest.update(repr(row.shape).encode() + row.detach().float().cpu().numpy().tobytes())
        key = digest.digest()
        cache = self._kept.pop(key, None)
        if cache is None:
            cache = self._read(concepts)
        self._kept[key] = cache
        if len(self._kept) > INTRODUCED:
            self._kept.popitem(last=False)
        return cache
