"""Families of pictures: what pretraining draws, deterministic in a seed.

A family is one character *A* and eleven pictures that teach everything about it:

    0-3  A, in four random scenes                     recognition, captions, depiction
    4    a look-alike, one attribute away from A      hard negatives
    5    an empty scene                               edits: the source of "add"
    6    the same scene with A                        edits: the target of "add"
    7    the same scene with another character B      edits: "replace"
    8    the same scene with A changed in one word    edits: "give it a blue hat", "make it green"
    9    A in the same pose in another scene          edits: "put it in the snow"
    10   A beside the character of family seed ^ 1    two concepts in one picture
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from op_toy.drawing import render
from op_toy.world import (
    SCENES,
    Character,
    Composition,
    Facts,
    draw_character,
    draw_facts,
    draw_picture,
    one_attribute_away,
)

PICTURES = 11
HELD_OUT_FIRST, JUDGE_FIRST = 10_000_000, 5_000_000
"""First seeds of the pools that are not for training nano: of held-out pictures, of the judge."""
ALIKE, EMPTY, POSED, REPLACED, CHANGED, MOVED, TWO = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True, kw_only=True)
class Family:
    """One character, the pictures of the table above, and what is true of it."""

    seed: int
    character: Character
    pictures: tuple[Composition, ...]
    facts: Facts


def draw_family(seed: int, *, held_out: bool = False) -> Family:
    """The family of a seed; all its characters are of the same side of the held-out split, but
    for look-alikes and changes, which may be of either."""
    rng = random.Random(seed * 7919 + 13)
    character = draw_character(rng.randrange(1 << 40), held_out=held_out)
    other = draw_character(rng.randrange(1 << 40), held_out=held_out)
    facts = draw_facts(rng.randrange(1 << 40))
    alike = one_attribute_away(character, rng)
    changed = one_attribute_away(character, rng)
    while changed.kind != character.kind or changed.pattern != character.pattern:
        changed = one_attribute_away(character, rng)
    scenes = rng.sample(SCENES, 4)
    pictures = [draw_picture(rng, (character,), scene=scene) for scene in scenes]
    pictures.append(draw_picture(rng, (alike,)))
    posed = draw_picture(rng, (character,))
    elsewhere = rng.choice([scene for scene in SCENES if scene != posed.scene])
    pictures += [
        replace(posed, characters=()),
        posed,
        replace(posed, characters=(other,)),
        replace(posed, characters=(changed,)),
        replace(posed, scene=elsewhere),
        draw_picture(rng, (character, _whose(seed ^ 1, held_out)), thing=None),
    ]
    return Family(seed=seed, character=character, pictures=tuple(pictures), facts=facts)


def pool_note(path: Path) -> Path:
    """The file beside a pool that says which families it holds."""
    return path.with_suffix(".families.json")


def pool_families(path: Path) -> list[Family]:
    """The families of a pool that `draw_pool` drew to ``path``, in order."""
    about = json.loads(pool_note(path).read_text())
    seeds = range(about["first"], about["first"] + about["families"])
    return [draw_family(seed, held_out=about["held_out"]) for seed in seeds]


def _whose(seed: int, held_out: bool) -> Character:
    """The character of a family, without its pictures."""
    rng = random.Random(seed * 7919 + 13)
    return draw_character(rng.randrange(1 << 40), held_out=held_out)


def _pixels(job: tuple[int, int, bool, int]) -> NDArray[np.uint8]:
    first, count, held_out, size = job
    return np.stack(
        [
            np.asarray(render(picture, size))
            for seed in range(first, first + count)
            for picture in draw_family(seed, held_out=held_out).pictures
        ]
    )


def draw_pool(
    path: Path, families: int, *, first: int = 0, held_out: bool = False, size: int = 64, jobs: int
) -> Iterator[int]:
    """Draws ``families`` families, those of seed ``first`` and on, into a uint8 file
    [families * 11, size, size, 3], and notes beside it which they are (`pool_families`); yields
    how many are done. A file of the same families is kept."""
    shape = (families * PICTURES, size, size, 3)
    note = pool_note(path)
    about = json.dumps({"first": first, "families": families, "held_out": held_out})
    if path.exists() and note.exists() and note.read_text() == about:
        if np.load(path, mmap_mode="r").shape == shape:
            return
    part = path.with_suffix(".part.npy")
    pool = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    step = 50
    tasks = [
        (first + start, min(step, families - start), held_out, size)
        for start in range(0, families, step)
    ]
    with ProcessPoolExecutor(jobs) as workers:
        for task, pixels in zip(tasks, workers.map(_pixels, tasks), strict=True):
            start = (task[0] - first) * PICTURES
            pool[start : start + len(pixels)] = pixels
            yield task[0] - first + task[1]
    pool.flush()
    note.unlink(missing_ok=True)
    part.rename(path)
    note.write_text(about)
