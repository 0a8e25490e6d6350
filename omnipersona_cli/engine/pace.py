"""How long learning takes here: measured on one of everything that it does, told before it begins.

A large backbone on a processor learns for days, and nobody should find that out by waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from omnipersona_cli.backend import Backend, ConceptTokens, Lesson, OnStep, Prompt
from omnipersona_cli.engine.batches import UNDERSTAND_GROUPS, Groups, draw_facts, group_of, shares
from omnipersona_cli.engine.calibrate import recognition_score
from omnipersona_cli.engine.examine import CALIBRATION_NEGATIVES, MOST_LEARNED, PLACES
from omnipersona_cli.engine.material import Material
from omnipersona_cli.engine.memory import NEVER_TOLD, say, sureness
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.language.facts import questions_about
from omnipersona_cli.language.mentions import to_turn
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


PAINTED = 2
"""Steps of a picture that are painted to learn how long all of them take."""

PATIENCE = 20.0
"""Seconds after which one step is enough."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds: of an encoded picture, of an optimiser step, of a lesson in a check, and of one
    batch of facts, of which `REHEARSED` at most follow a step on average."""

    picture: float
    step: float
    reading: float
    facts: float = 0.0


REHEARSED = 2.5
"""Batches of facts after a step where every check finds one wrong: one until the second check, two
until the third, then three (`optimise.rehearsals`)."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Seconds of all of it: ``seconds``, of which ``facts`` are rehearsing them, at most, and
    ``card`` what comes after the last step."""

    seconds: float
    facts: float = 0.0
    card: float = 0.0


def measured(
    backend: Backend,
    start: ConceptTokens,
    material: Material,
    hyper: Hyperparameters,
    *,
    on_step: OnStep | None = None,
) -> Pace | None:
    """The pace of learning ``material``, by one lesson of each task, and one of facts; None without
    lessons. The tokens are left alone."""
    lessons = [lesson for lesson in material.lessons if lesson.task in backend.info.tasks]
    if not lessons:
        return None
    groups = _grouped(lessons)
    chosen: dict[str, tuple[Lesson, float]] = {}
    for task, share in shares(hyper.batch_size, groups).items():
        mine = [group for group in UNDERSTAND_GROUPS if groups.get(group)]
        for kind in mine if task == "understand" else [task]:
            # the sorts of lessons that take alike: with a picture, facts, painting, editing
            sort = "fact" if kind == "fact" else task
            of_sort = [one for one in groups[kind] if isinstance(one, Lesson)]
            first = max(of_sort, key=lambda lesson: lesson.image is not None)
            part = share / len(mine) if task == "understand" else share
            known, count = chosen.get(sort, (first, 0.0))
            chosen[sort] = (known, count + part)
    pictures = sum(len(_pictures(lesson)) for lesson, _ in chosen.values())
    encoding, step = 0.0, 0.0
    each: dict[str, float] = {}
    for number, (name, (lesson, many)) in enumerate(chosen.items()):
        began = time.perf_counter()
        ready = list(backend.prepare([lesson]))
        encoding += time.perf_counter() - began
        each[name] = _seconds(backend, start, ready, hyper)
        if each[name] < WARM:
            batch = max(1, round(many))
            each[name] = _seconds(backend, start, ready * batch, hyper) / batch
        step += each[name] * many
        if on_step is not None:
            on_step(number + 1, len(chosen))
    return Pace(
        picture=encoding / max(pictures, 1),
        step=step,
        reading=READING * step / sum(many for _, many in chosen.values()),
        facts=_rehearsing(groups, hyper, each),
    )


def whole(
    pace: Pace,
    material: Material,
    hyper: Hyperparameters,
    *,
    checks: int,
    checked: int,
    card: float = 0.0,
    preview: float = 0.0,
) -> Whole:
    """Encoding, steps, ``checks`` checks of ``checked`` lessons each with a preview of ``preview``
    seconds, rehearsals, and a report card of ``card`` seconds."""
    pictures = {id(one) for lesson in (*material.lessons, *material.held_out)
                for one in _pictures(lesson)}  # fmt: skip
    facts = REHEARSED * hyper.steps * pace.facts
    learning = hyper.steps * pace.step + checks * (checked * pace.reading + preview)
    seconds = len(pictures) * pace.picture + learning + facts + card
    return Whole(seconds=seconds, facts=facts, card=card)


@torch.no_grad()
def painting(backend: Backend, start: ConceptTokens) -> float:
    """Seconds of one picture, by its first steps; 0 where the backend does not paint."""
    if "generate" not in backend.info.tasks:
        return 0.0
    times, left = [time.perf_counter()], 0

    def painted(done: int, total: int) -> None:
        nonlocal left
        times.append(time.perf_counter())
        left = total - done
        if done >= PAINTED or times[-1] - times[0] > PATIENCE:
            raise _Enough

    prompt = Prompt(turns=(to_turn(f"<{start.name}> {PLACES[0]}"),), concepts=(start,))
    try:
        for _ in backend.gen(
            prompt, size=None, steps=None, guidance=None, seeds=(0,), on_step=painted
        ):
            times.append(time.perf_counter())
    except _Enough:
        pass
    # what comes before the first step counts once
    return times[-1] - times[0] + left * (times[-1] - times[-2])


@torch.no_grad()
def examining(
    backend: Backend, start: ConceptTokens, material: Material, *, samples: int, sample: float
) -> float:
    """Seconds of the report card and of what memory is sure of, by one picture that is asked about
    and one question from memory; a sample takes ``sample`` seconds."""
    painted = samples if "generate" in backend.info.tasks else 0
    seconds = (painted + bool(painted)) * sample  # one without the concept
    if "understand" not in backend.info.tasks:
        return seconds
    others = len(material.negatives[:CALIBRATION_NEGATIVES])
    learned = len(material.album.learning[:MOST_LEARNED]) if material.positives_held_out else 0
    asked = len(material.positives) + others + learned + painted
    picture = material.positives[0]
    seconds += asked * _timed(lambda: recognition_score(backend, start, picture))
    if not material.facts:
        return seconds

    def recall() -> None:
        answer = say(backend, start, questions_about(NEVER_TOLD[0], start.name)[0])
        sureness(backend, start, NEVER_TOLD[0], answer or "yes")

    return seconds + (len(material.facts) + len(NEVER_TOLD)) * _timed(recall)


def told(found: Whole, hyper: Hyperparameters, pace: Pace, backend: str) -> Iterator[str]:
    """Sentences for a person; none where it does not take long."""
    if found.seconds < SHORT:
        return
    facts = f", up to {spoken(found.facts)} for facts" if found.facts else ""
    yield (
        f"learning takes about {spoken(found.seconds)} here: {hyper.steps:,} steps of "
        f"{hyper.batch_size} lessons at {spoken(pace.step)} a step{facts}, and "
        f"{spoken(found.card)} for the report card"
    )
    if found.seconds < LONG:
        return
    rest = (found.seconds - found.card) / hyper.steps
    fewer = max(1, min(hyper.steps // 2, int((SHORT * 60 - found.card) / rest)))
    soon = spoken(found.card + rest * fewer)
    smaller = "" if backend == DEFAULT_BACKEND else f", a smaller backend (-b {DEFAULT_BACKEND})"
    yield (
        f"quicker: fewer steps (--steps {fewer} takes about {soon}), smaller batches "
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


def _rehearsing(groups: Groups, hyper: Hyperparameters, each: Mapping[str, float]) -> float:
    """Seconds of one batch of facts, from those of ``each`` sort of lessons."""
    batch = [one for one in draw_facts(groups, hyper, 0, 0) if isinstance(one, Lesson)]
    shown = each.get("understand", 0.0)
    return sum(shown if one.image is not None else each.get("fact", shown) for one in batch)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class _Enough(Exception):
    """Enough of a picture was painted."""


def _grouped(lessons: Sequence[Lesson]) -> Groups:
    groups: dict[str, list[object]] = {}
    for lesson in lessons:
        groups.setdefault(group_of(lesson), []).append(lesson)
    found: Mapping[str, list[object]] = groups
    return found  # type: ignore[return-value]  # how many there are is all that is asked


def _pictures(lesson: Lesson) -> list[object]:
    return [one for one in (lesson.image, lesson.target) if one is not None]
