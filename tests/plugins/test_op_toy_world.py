"""nano's world: deterministic, wide enough, and true to what it says about itself."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFilter
from PIL.Image import Image

from op_toy.drawing import render, subject_mask
from op_toy.world import (
    ACCESSORIES,
    COLOURS,
    KINDS,
    PATTERNS,
    SCENES,
    THINGS,
    Accessory,
    Character,
    Composition,
    Thing,
    draw_character,
    draw_facts,
    draw_picture,
    is_held_out,
    one_attribute_away,
)

SEEDS = range(12)


def array(image: Image) -> NDArray[np.int16]:
    return np.asarray(image).astype(np.int16)


def test_the_world_is_wide_enough() -> None:
    assert len(set(KINDS)) >= 10
    assert len(COLOURS) >= 12
    assert len(set(PATTERNS)) >= 4 and len(set(ACCESSORIES)) >= 5
    assert len(set(SCENES)) >= 8 and len(set(THINGS)) >= 8


def test_a_seed_gives_the_same_character_facts_and_picture() -> None:
    for seed in SEEDS:
        assert draw_character(seed) == draw_character(seed)
        assert draw_facts(seed) == draw_facts(seed)
        who = draw_character(seed)
        one, two = (draw_picture(random.Random(seed), (who,)) for _ in range(2))
        assert one == two
        assert render(one).tobytes() == render(two).tobytes()


def test_seeds_give_different_characters() -> None:
    assert len({draw_character(seed) for seed in range(300)}) == 300


def test_held_out_identities_are_disjoint_from_the_others() -> None:
    def words(who: Character) -> tuple[object, ...]:
        second = who.second if who.pattern != "plain" else ""
        return who.kind, who.colour, who.pattern, second, who.accessory

    kept = {words(draw_character(seed, held_out=True)) for seed in range(1000)}
    trained = {words(draw_character(seed)) for seed in range(1000)}
    assert not kept & trained


def test_one_identity_in_five_is_held_out() -> None:
    identities = [
        Character(
            kind=kind,
            colour=colour,
            pattern=pattern,
            second=second,
            accessory=Accessory(what=what, colour="red"),
        )
        for kind in KINDS
        for colour in COLOURS
        for pattern in PATTERNS
        for second in ("white", "blue")
        for what in ACCESSORIES
    ]
    assert np.mean([is_held_out(who) for who in identities]) == pytest.approx(0.2, abs=0.02)


def test_proportions_do_not_decide_what_is_held_out() -> None:
    for seed in SEEDS:
        who = draw_character(seed)
        other = replace(who, shape=(1.0, -1.0, 1.0, -1.0), tint=(1.0, 0.0, -1.0), marks=5)
        assert is_held_out(who) == is_held_out(other)


def test_identity_is_finer_than_words() -> None:
    who = replace(draw_character(3), pattern="spotted", second="blue", marks=1)
    picture = Composition(scene="snow", characters=(who,))
    for changed in (
        replace(who, shape=(1.0, 1.0, 1.0, 1.0)),
        replace(who, tint=(1.0, -1.0, -1.0)),
        replace(who, marks=2),
    ):
        assert (
            render(replace(picture, characters=(changed,))).tobytes() != render(picture).tobytes()
        )


def test_a_picture_has_the_asked_size_and_mode() -> None:
    for size in (16, 48, 64, 128):
        image = render(draw_picture(random.Random(0), (draw_character(0),)), size)
        assert image.size == (size, size) and image.mode == "RGB"


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_can_be_seen(kind: str) -> None:
    plain = Character(kind=kind, colour="red", second="blue")
    others = [replace(plain, kind=other) for other in KINDS if other != kind]
    others += [replace(plain, colour=colour) for colour in COLOURS if colour != "red"]
    others += [replace(plain, pattern=pattern) for pattern in PATTERNS if pattern != "plain"]
    others += [
        replace(plain, accessory=Accessory(what=what, colour="green")) for what in ACCESSORIES
    ]
    before = array(render(Composition(scene="meadow", characters=(plain,)), 32))
    for other in others:
        after = array(render(Composition(scene="meadow", characters=(other,)), 32))
        changed = (np.abs(before - after).max(axis=2) > 24).sum()
        assert changed >= 4, f"{other} looks like {plain}"


def test_scenes_and_things_differ_from_each_other() -> None:
    things = [None, *(Thing(what=what, colour="red") for what in THINGS)]
    pictures = [Composition(scene=scene, thing=thing) for scene in SCENES for thing in things]
    assert len({render(picture, 32).tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_is_where_the_character_is_drawn(seed: int) -> None:
    rng = random.Random(seed)
    who = draw_character(seed, held_out=bool(seed % 2))
    picture = draw_picture(rng, (who,), thing=None)
    with_it, without = array(render(picture)), array(render(replace(picture, characters=())))
    changed = np.abs(with_it - without).max(axis=2) > 0
    mask = subject_mask(picture)
    inside = np.asarray(mask) > 127
    around = np.asarray(mask.filter(ImageFilter.MaxFilter(3))) > 127
    assert mask.mode == "L" and set(np.unique(np.asarray(mask))) == {0, 255}
    assert 0.1 < inside.mean() < 0.6
    assert not (changed & ~around).any(), "something is drawn outside of the mask"
    assert changed[inside].mean() > 0.85, "the mask covers what is not drawn"


def test_two_characters_have_masks_of_their_own() -> None:
    both = draw_picture(random.Random(1), (draw_character(1), draw_character(2)))
    first, second = (np.asarray(subject_mask(both, which)) > 127 for which in (0, 1))
    assert first.any() and second.any()
    assert (first & second).sum() < 0.1 * first.sum()


def test_a_look_alike_differs_in_exactly_one_word() -> None:
    seen = set()
    for seed in range(300):
        who = draw_character(seed)
        other = one_attribute_away(who, random.Random(seed))
        differ = {
            one.name
            for one in fields(Character)
            if getattr(who, one.name) != getattr(other, one.name)
        }
        assert len(differ) == 1, differ
        seen |= differ
        if other.pattern != "plain":
            assert other.colour != other.second
    assert seen == {"kind", "colour", "pattern", "accessory"}


def test_a_patched_coat_names_the_upper_left_colour_first() -> None:
    for marks in range(8):
        who = Character(kind="bear", colour="red", second="blue", pattern="patched", marks=marks)
        figure = Composition(scene="snow", characters=(who,))
        red, green, blue = array(render(figure, 128))[40, 56].tolist()
        assert who.colours[0] == ("red" if red > blue else "blue"), (marks, red, green, blue)
