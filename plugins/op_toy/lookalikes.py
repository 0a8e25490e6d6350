"""Negatives for nano: other characters, and look-alikes that differ in one attribute.

nano is not told which character is in the photos: it is asked about them ("what is it?"), and
draws characters that differ from what it saw in one word.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from PIL.Image import Image

from omnipersona_cli.backend import Opening, Prompt, Turn
from op_nano.backend import open_backend
from op_toy.drawing import render
from op_toy.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    Accessory,
    Character,
    draw_character,
    draw_picture,
    one_attribute_away,
)

ALIKE = 0.6
"""The share of look-alikes among the negatives."""


def read_description(text: str) -> Character | None:
    """A character from "a spotted white and black cat with a blue hat"; None for other texts."""
    body, _, worn = text.partition(" with ")
    words = body.split()
    kinds = [word for word in words if word in KINDS]
    colours = [word for word in words if word in COLOURS]
    patterns = [word for word in words if word in PATTERNS]
    if len(kinds) != 1 or not 1 <= len(colours) <= 2:
        return None
    other = "black" if colours[0] == "white" else "white"  # for a pattern that a look-alike gets
    what = [word for word in worn.split() if word in ACCESSORIES]
    tint = [word for word in worn.split() if word in COLOURS]
    return Character(
        kind=kinds[0],
        colour=colours[0],
        second=colours[1] if len(colours) == 2 else other,
        pattern=patterns[0] if patterns and len(colours) == 2 else "plain",
        accessory=Accessory(what=what[0], colour=tint[0]) if what and tint else None,
    )


def seen_in(photos: Sequence[Image]) -> Character | None:
    """Who nano sees in most of the photos."""
    backend = open_backend(Opening(device="cpu"))
    prompt = Prompt(turns=(Turn(text="what is it?"),))
    answers = Counter("".join(backend.say(prompt, image=photo, max_tokens=24)) for photo in photos)
    for text, _ in answers.most_common():
        character = read_description(text)
        if character is not None:
            return character
    return None


def negatives(*, kind: str, count: int, seed: int, photos: Sequence[Image]) -> Sequence[Image]:
    """``count`` pictures, look-alikes first; strangers only where the photos say nothing."""
    rng = random.Random(seed)
    character = seen_in(list(photos)[:4]) if photos else None
    size = max((max(photo.size) for photo in photos), default=64)
    size = min(size, 64)
    pictures = []
    for index in range(count):
        if character is not None and index < ALIKE * count:
            other = one_attribute_away(character, rng)
        else:
            other = draw_character(rng.randrange(1 << 40))
        pictures.append(render(draw_picture(rng, (other,)), size))
    return pictures
