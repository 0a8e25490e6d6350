"""Negatives for nano: drawn for it alone, most of them one attribute away from what it sees."""

import random

import pytest
from PIL.Image import Image

from op_nano import INFO
from op_toy import lookalikes, op_negatives
from op_toy.drawing import render
from op_toy.world import COLOURS, KINDS, Character, draw_character, draw_picture


def cartoons(seed: int, count: int) -> list[Image]:
    """Pictures of one character."""
    rng, who = random.Random(seed), draw_character(seed, held_out=True)
    return [render(draw_picture(rng, (who,))) for _ in range(count)]


def test_negatives_are_drawn_for_nano_alone() -> None:
    assert op_negatives(kind="cat", count=4, seed=0, photos=(), backend="other") == ()
    drawn = op_negatives(kind="cat", count=4, seed=0, photos=(), backend=INFO.name)
    again = op_negatives(kind="cat", count=4, seed=0, photos=(), backend=INFO.name)
    assert [one.size for one in drawn] == [(64, 64)] * 4
    assert [one.tobytes() for one in drawn] == [one.tobytes() for one in again]


def test_look_alikes_resemble_what_nano_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    who = Character(kind="cat", colour="red", second="blue", pattern="striped")
    asked_away: list[Character] = []

    def one_away(seen: Character, rng: random.Random) -> Character:
        asked_away.append(seen)
        return seen

    monkeypatch.setattr(lookalikes, "seen_in", lambda photos: who)
    monkeypatch.setattr(lookalikes, "one_attribute_away", one_away)
    drawn = lookalikes.negatives(kind="", count=10, seed=1, photos=cartoons(1, 2))
    assert len(drawn) == 10 and asked_away == [who] * 6


def test_a_description_is_read_back() -> None:
    read = lookalikes.read_description("a spotted white and black cat with a blue hat")
    assert read is not None and read.accessory is not None
    assert (read.kind, read.colour, read.second, read.pattern) == (
        "cat",
        "white",
        "black",
        "spotted",
    )
    assert (read.accessory.what, read.accessory.colour) == ("hat", "blue")
    for text in ("", "nothing", "a cat", "a red", "a red cat and a dog"):
        assert lookalikes.read_description(text) is None


@pytest.mark.parametrize("colour", COLOURS)
def test_a_look_alikes_pattern_can_be_seen(colour: str) -> None:
    for kind in KINDS:
        read = lookalikes.read_description(f"a {colour} {kind}")
        assert read is not None and read.second != read.colour
