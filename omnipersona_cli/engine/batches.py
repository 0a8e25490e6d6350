"""Which lessons a step learns from: balanced over the tasks, and a function of seed and step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from omnipersona_cli.backend import Lesson, Prepared, Task
from omnipersona_cli.engine.settings import Hyperparameters

Groups = Mapping[str, Sequence[Prepared]]
"""Prepared lessons by group: "yes", "no", "describe", "fact", "unknown", "generate", "edit"."""

UNDERSTAND_GROUPS = ("yes", "fact", "no", "describe")
"""Understanding lessons are drawn from these in turn: as many a yes as a no."""


def group_of(lesson: Lesson) -> str:
    """The group from which a lesson is drawn."""
    if lesson.task != "understand":
        return lesson.task
    if lesson.kind == "recognise":
        return "yes" if lesson.answer.strip().lower().startswith("yes") else "no"
    return lesson.kind if lesson.kind in ("fact", "unknown") else "describe"


def group_sizes(lessons: Sequence[Lesson]) -> dict[str, int]:
    """How many lessons each group has."""
    sizes: dict[str, int] = {}
    for lesson in lessons:
        sizes[group_of(lesson)] = sizes.get(group_of(lesson), 0) + 1
    return sizes


def shares(batch_size: int, groups: Groups) -> dict[Task, int]:
    """How many lessons of each task a step draws; at least one of each task that has any."""
    understand = any(groups.get(group) for group in UNDERSTAND_GROUPS)
    painting: list[Task] = [task for task in ("generate", "edit") if groups.get(task)]
    if not painting:
        return {"understand": batch_size} if understand else {}
    half = max(1, math.ceil(batch_size / 2)) if understand else 0
    rest = max(batch_size - half, len(painting))
    share: dict[Task, int] = {"understand": half} if understand else {}
    for index, task in enumerate(painting):
        share[task] = rest // len(painting) + (index < rest % len(painting))
    return share


def draw(groups: Groups, hyper: Hyperparameters, step: int) -> list[Prepared]:
    """The lessons of one step: each group is gone through in a new order every time round."""
    batch = []
    for task, share in shares(hyper.batch_size, groups).items():
        pattern = (
            [group for group in UNDERSTAND_GROUPS if groups.get(group)]
            if task == "understand"
            else [task]
        )
        for count in range(step * share, (step + 1) * share):
            group = pattern[count % len(pattern)]
            lessons = groups[group]
            turn, place = divmod(count // len(pattern), len(lessons))
            batch.append(lessons[_order(len(lessons), hyper.seed, group, turn)[place]])
    return batch


def draw_facts(groups: Groups, hyper: Hyperparameters, step: int, turn: int) -> list[Prepared]:
    """What the ``turn``-th rehearsal after ``step`` steps asks: mostly facts, and in an eighth what
    was never told. Where facts have tokens of their own, which move fast, an eighth each is a yes
    and a no, so that presence is not forgotten over facts; else it is text alone."""
    chance = random.Random(f"{hyper.seed}:facts:{step}:{turn}")
    if not groups.get("fact"):
        return []
    eighth = max(1, hyper.batch_size // 8)
    presence = eighth if hyper.fact_tokens else 0
    facts = max(1, hyper.batch_size - eighth - 2 * presence)
    shares = {"fact": facts, "unknown": eighth, "yes": presence, "no": presence}
    return [
        lesson
        for group, share in shares.items()
        for lesson in chance.sample(groups.get(group, ()), min(share, len(groups.get(group, ()))))
    ]


@lru_cache(maxsize=64)
def _order(count: int, seed: int, group: str, turn: int) -> list[int]:
    return random.Random(f"{seed}:{group}:{turn}").sample(range(count), count)
