"""How long learning takes here: measured on a lesson of each task, told before it begins.

A large backbone on a processor learns for days, and nobody should find that out by waiting.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, OnStep, Task
from omnipersona_cli.engine.batches import Groups, group_of, shares
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.registry import DEFAULT_BACKEND

LONG = 2 * 3600.0
"""Seconds from which on something quicker is named."""

SHORT = 60.0
"""Seconds that nobody needs to be told of."""

WARM = 1.0
"""A lesson that takes fewer seconds is measured again as a batch: the first time is slower, and a
batch of small lessons costs less than its lessons."""

READING = 0.4
"""What a lesson costs in a check, where there is no way back, of what it costs in a step."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds: of an encoded picture, of an optimiser step, of a lesson in a check."""

    picture: float
    step: float
    reading: float


def measured(
    backend: Backend,
    start: ConceptTokens,
    material: Material,
    hyper: Hyperparameters,
    *,
    on_step: OnStep | None = None,
) -> Pace | None:
    """The pace of learning ``material``, by one lesson of each task; None without lessons. The
    tokens are left alone."""
    lessons = [lesson for lesson in material.lessons if lesson.task in backend.info.tasks]
    if not lessons:
        return None
    share = shares(hyper.batch_size, _grouped(lessons))
    chosen: dict[Task, Lesson] = {}
    for task in share:
        mine = [lesson for lesson in lessons if lesson.task == task]
        chosen[task] = max(mine, key=lambda lesson: lesson.image is not None)
    pictures = sum(len(_pictures(lesson)) for lesson in chosen.values())
    encoding, step = 0.0, 0.0
    for number, (task, lesson) in enumerate(chosen.items()):
        began = time.perf_counter()
        ready = backend.prepare([lesson])
        encoding += time.perf_counter() - began
        alone = _seconds(backend, start, ready, hyper)
        if alone < WARM:
            step += _seconds(backend, start, list(ready) * share[task], hyper)
        else:
            step += alone * share[task]
        if on_step is not None:
            on_step(number + 1, len(chosen))
    reading = READING * step / sum(share.values())
    return Pace(picture=encoding / max(pictures, 1), step=step, reading=reading)


def whole(
    pace: Pace, material: Material, hyper: Hyperparameters, *, checks: int, checked: int
) -> float:
    """Seconds of encoding, steps and ``checks`` checks of ``checked`` lessons each."""
    pictures = {id(one) for lesson in (*material.lessons, *material.held_out)
                for one in _pictures(lesson)}  # fmt: skip
    steps = hyper.steps * pace.step + checks * checked * pace.reading
    return len(pictures) * pace.picture + steps


def told(seconds: float, hyper: Hyperparameters, pace: Pace, backend: str) -> Iterator[str]:
    """Sentences for a person; none where it does not take long."""
    if seconds < SHORT:
        return
    yield (
        f"learning takes about {spoken(seconds)} here: {hyper.steps:,} steps of "
        f"{hyper.batch_size} lessons at {spoken(pace.step)} a step; the report card comes after it"
    )
    if seconds < LONG:
        return
    fewer = max(1, min(hyper.steps // 2, int(hyper.steps * SHORT * 60 / seconds)))
    smaller = "" if backend == DEFAULT_BACKEND else f", a smaller backend (-b {DEFAULT_BACKEND})"
    yield (
        f"quicker: fewer steps (--steps {fewer} takes about an hour), smaller batches "
        f"(--batch-size {max(1, hyper.batch_size // 2)}), no samples for the card "
        f"(--samples 0){smaller}, or a GPU; Ctrl-C stops it, and --resume goes on"
    )


def spoken(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min", "2 days 5 h": as exact as a guess is."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} day{'s' if days > 1 else ''} {hours} h"


def _seconds(
    backend: Backend, start: ConceptTokens, ready: Sequence[object], hyper: Hyperparameters
) -> float:
    began = time.perf_counter()
    own = copy_of(start, trainable=True)
    losses = backend.loss(ready, own, seed=hyper.seed, at_once=hyper.lessons_at_once)  # type: ignore[arg-type]
    total = torch.stack(list(losses.values())).sum()
    torch.autograd.backward(total)
    float(total.detach())  # waits for a device that works on its own
    return time.perf_counter() - began


def _grouped(lessons: Sequence[Lesson]) -> Groups:
    groups: dict[str, list[object]] = {}
    for lesson in lessons:
        groups.setdefault(group_of(lesson), []).append(lesson)
    found: Mapping[str, list[object]] = groups
    return found  # type: ignore[return-value]  # how many there are is all that is asked


def _pictures(lesson: Lesson) -> list[object]:
    return [one for one in (lesson.image, lesson.target) if one is not None]
