"""Families: the eleven pictures of a character are what the table says."""

import random
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from op_toy.drawing import render
from op_toy.world import Character, is_held_out
from pretraining.families import (
    ALIKE,
    CHANGED,
    EMPTY,
    MOVED,
    PICTURES,
    POSED,
    REPLACED,
    TWO,
    Family,
    draw_family,
    draw_pool,
    pool_families,
)

SEEDS = range(40)


def differences(one: Character, other: Character) -> set[str]:
    return {it.name for it in fields(one) if getattr(one, it.name) != getattr(other, it.name)}


@pytest.fixture(params=SEEDS)
def family(request: pytest.FixtureRequest) -> Family:
    return draw_family(request.param, held_out=bool(request.param % 2))


def test_a_seed_gives_the_same_family() -> None:
    random.seed(0)
    assert [draw_family(seed) for seed in SEEDS] == [draw_family(seed) for seed in SEEDS]


def test_the_first_four_show_the_character_in_different_scenes(family: Family) -> None:
    assert len(family.pictures) == PICTURES
    shown = family.pictures[:4]
    assert all(picture.characters == (family.character,) for picture in shown)
    assert len({picture.scene for picture in shown}) == 4


def test_the_look_alike_is_one_word_away(family: Family) -> None:
    (alike,) = family.pictures[ALIKE].characters
    assert len(differences(family.character, alike)) == 1


def test_edits_change_one_thing_and_keep_the_rest(family: Family) -> None:
    posed = family.pictures[POSED]
    assert posed.characters == (family.character,)
    assert family.pictures[EMPTY] == replace(posed, characters=())
    for picture in (REPLACED, CHANGED):
        other = family.pictures[picture]
        assert other == replace(posed, characters=other.characters) and other != posed
    (changed,) = family.pictures[CHANGED].characters
    assert differences(family.character, changed) in ({"colour"}, {"accessory"})
    moved = family.pictures[MOVED]
    assert moved == replace(posed, scene=moved.scene) and moved.scene != posed.scene


def test_neighbours_share_the_pictures_of_two(family: Family) -> None:
    held_out = bool(family.seed % 2)
    neighbour = draw_family(family.seed ^ 1, held_out=held_out)
    assert family.pictures[TWO].characters == (family.character, neighbour.character)


def test_held_out_families_hold_no_trained_identity() -> None:
    for seed in SEEDS:
        for held_out in (False, True):
            family = draw_family(seed, held_out=held_out)
            whose = (*family.pictures[TWO].characters, *family.pictures[REPLACED].characters)
            assert {is_held_out(who) for who in (family.character, *whose)} == {held_out}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("pool") / "pool.npy"
    assert list(draw_pool(path, 2, first=6, size=16, jobs=1)) == [2]
    yield path


def test_a_pool_holds_every_picture_in_order(pool: Path) -> None:
    pixels = np.load(pool)
    assert pixels.shape == (2 * PICTURES, 16, 16, 3) and pixels.dtype == np.uint8
    pictures = [picture for seed in (6, 7) for picture in draw_family(seed).pictures]
    for row, picture in zip(pixels, pictures, strict=True):
        assert np.array_equal(row, np.asarray(render(picture, 16)))


def test_a_pool_says_which_families_it_holds(pool: Path) -> None:
    assert [family.seed for family in pool_families(pool)] == [6, 7]


def test_a_complete_pool_is_kept_and_another_is_drawn_again(pool: Path) -> None:
    before = pool.stat().st_mtime_ns
    assert list(draw_pool(pool, 2, first=6, size=16, jobs=1)) == []
    assert pool.stat().st_mtime_ns == before
    assert list(draw_pool(pool, 3, first=6, size=16, jobs=1)) == [3]
    assert len(np.load(pool)) == 3 * PICTURES
    assert list(draw_pool(pool, 3, first=8, size=16, jobs=1)) == [3]
    assert [family.seed for family in pool_families(pool)] == [8, 9, 10]
    assert sorted(one.name for one in pool.parent.iterdir()) == ["pool.families.json", "pool.npy"]
