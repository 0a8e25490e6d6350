"""All lessons after the frozen encoders, those to learn from and those of the checks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL.Image import Image

from omnipersona_cli.backend import Backend, Lesson, OnStep, Prepared
from omnipersona_cli.engine.batches import Groups, group_of
from omnipersona_cli.engine.heldout import HeldOut, Probe
from omnipersona_cli.engine.material import Material
from omnipersona_cli.language.mentions import to_turn

HELD_OUT_LESSONS = 12
"""The most held-out lessons of each task that one check looks at."""

PROBES = 8
"""The most held-out pictures on each side that one check asks about."""


CHECKED = 3 * HELD_OUT_LESSONS + 2 * PROBES
"""About how many lessons and pictures a check looks at."""


def prepare(
    backend: Backend, material: Material, *, on_step: OnStep | None = None
) -> tuple[Groups, HeldOut]:
    """The lessons by group, and what is held out. `Backend.prepare` is called once, so that no
    picture is encoded twice; ``on_step`` is its own."""
    lessons = [lesson for lesson in material.lessons if lesson.task in backend.info.tasks]
    held_out = _held_out_lessons(backend, material)
    pictures = _asked_about(material) if "understand" in backend.info.tasks else []
    asked = [
        _asked(material.name, image, answer) for image, _ in pictures for answer in ("yes", "no")
    ]
    prepared = list(backend.prepare([*lessons, *held_out, *asked], on_step=on_step))
    learned, rest = prepared[: len(lessons)], prepared[len(lessons) :]
    checked, answers = rest[: len(held_out)], rest[len(held_out) :]
    groups: dict[str, list[Prepared]] = {}
    for lesson, ready in zip(lessons, learned, strict=True):
        groups.setdefault(group_of(lesson), []).append(ready)
    probes = [
        Probe(yes=yes, no=no, present=present)
        for yes, no, (_, present) in zip(answers[::2], answers[1::2], pictures, strict=True)
    ]
    facts = _checked_facts(backend, material)
    asked_of_facts = [(lesson.request, lesson.answer) for lesson in facts]
    return groups, HeldOut(lessons=checked, probes=probes, facts=asked_of_facts)


def _checked_facts(backend: Backend, material: Material) -> list[Lesson]:
    able = "understand" in backend.info.tasks
    return _some(material.checked_facts, material.name) if able else []


def _held_out_lessons(backend: Backend, material: Material) -> list[Lesson]:
    return [
        lesson
        for task in backend.info.tasks
        for lesson in _some(
            [lesson for lesson in material.held_out if lesson.task == task], material.name
        )
    ]


def _some(lessons: Sequence[Lesson], salt: str) -> list[Lesson]:
    """At most `HELD_OUT_LESSONS` of them, chosen once and for all."""
    if len(lessons) <= HELD_OUT_LESSONS:
        return list(lessons)
    order = sorted(random.Random(salt).sample(range(len(lessons)), HELD_OUT_LESSONS))
    return [lessons[index] for index in order]


def _asked_about(material: Material) -> list[tuple[Image, bool]]:
    """Held-out pictures, and whether the concept is in them; none where no photo is held out."""
    if not material.positives_held_out:
        return []
    present = [(image, True) for image in material.positives[:PROBES]]
    return present + [(image, False) for image in material.negatives[:PROBES]]


def _asked(name: str, image: Image, answer: str) -> Lesson:
    return Lesson(
        task="understand",
        kind="recognise",
        request=to_turn(f"is <{name}> here?"),
        image=image,
        answer=answer,
    )
