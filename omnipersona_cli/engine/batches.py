"""Which lessons a step learns from: balanced over the tasks, and a function of seed and step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from omnipersona_cli.backend import Lesson, Prepared, Task
from omnipersona_cli.engine.settings import Hyperparameters

Groups = Mapping[str, Sequence[Prepared]]
"""Prepared lessons by group: "yes", "no", "describe", "fact", "generate", "edit"."""

UNDERSTAND_GROUPS = ("yes", "fact", "no", "describe")
"""Understanding lessons are drawn from these in turn: as many a yes as a no."""


def group_of(lesson: Lesson) -> str:
    """The group from which a lesson is drawn."""
    if lesson.task != "understand":
        return lesson.task
    if lesson.kind == "recognise":
        return "yes" if lesson.answer.strip().lower().startswith("yes") else "no"
    return "fact" if lesson.kind == "fact" else "describe"


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


@lru_cache(maxsize=64)
def _order(count: int, seed: int, group: str, turn: int) -> list[int]:
    return random.Random(f"{seed}:{group}:{turn}").sample(range(count), count)
