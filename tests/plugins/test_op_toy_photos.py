"""`op toy photos`: a new character's folder."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from omnipersona_cli.cli.main import cli
from omnipersona_cli.data.facts import read_facts
from omnipersona_cli.language.facts import parse_fact
from op_toy.photos import facts_text, toy_pictures
from op_toy.words import WHERE, describe
from op_toy.world import KINDS, draw_character, draw_facts, is_held_out


def photos(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["toy", "photos", *arguments], prog_name="op")


def contents(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "photos"
    result = photos(str(path), "--seed", "7")
    assert result.exit_code == 0, result.output
    return path


def test_it_answers_in_json_and_says_no_more_where_that_is_not_wanted(tmp_path: Path) -> None:
    told = photos(str(tmp_path / "a"), "--seed", "7", "--count", "1", "--json", "-q")
    assert told.stderr == ""
    answer = json.loads(told.stdout)
    assert answer == {
        "path": str(tmp_path / "a"),
        "seed": 7,
        "character": describe(draw_character(7, held_out=True)),
        "photos": 1,
    }


def test_it_draws_ten_pictures_and_the_facts(folder: Path) -> None:
    names = [f"{number:02d}.png" for number in range(10)]
    assert sorted(contents(folder)) == [*names, "facts.yaml"]
    for name in names:
        with Image.open(folder / name) as image:
            assert image.size == (64, 64) and image.mode == "RGB"
    assert len({(folder / name).read_bytes() for name in names}) == 10


def test_learning_can_read_the_facts(folder: Path) -> None:
    sheet = read_facts(folder / "facts.yaml")
    facts = draw_facts(7)
    parsed = [parse_fact(fact, "bo") for fact in sheet.facts]
    values = {one.attribute: one.value for one in parsed if one is not None}
    assert values == {
        "toy": facts.toy,
        "home": WHERE[facts.home][0],
        "favourite food": facts.food,
    }
    assert sheet.kind in KINDS


def test_the_path_goes_to_stdout_and_the_character_to_stderr(tmp_path: Path) -> None:
    result = photos(str(tmp_path / "a"), "--seed", "3", "--count", "1")
    assert result.stdout == f"{tmp_path / 'a'}\n"
    assert "(seed 3)" in result.stderr


def test_the_same_seed_draws_the_same_files(folder: Path, tmp_path: Path) -> None:
    photos(str(tmp_path / "again"), "--seed", "7")
    assert contents(tmp_path / "again") == contents(folder)


def test_another_seed_draws_another_character(folder: Path, tmp_path: Path) -> None:
    photos(str(tmp_path / "other"), "--seed", "8")
    assert contents(tmp_path / "other")["00.png"] != contents(folder)["00.png"]


def test_without_a_seed_every_character_is_new(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b", "c"):
        assert photos(str(tmp_path / name), "--count", "1").exit_code == 0
        drawn.append(contents(tmp_path / name)["00.png"])
    assert len(set(drawn)) > 1


def test_the_character_was_held_out_of_pretraining() -> None:
    assert all(is_held_out(draw_character(seed, held_out=True)) for seed in range(50))
    who = draw_character(7, held_out=True)
    assert all(picture.characters == (who,) for picture in toy_pictures(who, 5, 7))
    assert f"kind: {who.kind}\n" in facts_text(who, draw_facts(7))


def test_count_and_size_are_taken(tmp_path: Path) -> None:
    photos(str(tmp_path / "big"), "--seed", "1", "--count", "2", "--size", "32")
    with Image.open(tmp_path / "big" / "01.png") as image:
        assert image.size == (32, 32)
    assert len(contents(tmp_path / "big")) == 3


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert photos(str(tmp_path / "empty"), "--seed", "1", "--count", "1").exit_code == 0


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = photos(str(tmp_path), "--seed", "1")
    assert result.exit_code == 1
    assert "already there" in result.stderr and "op toy photos" in result.stderr
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "photos"):
        result = photos(str(place), "--seed", "1")
        assert result.exit_code == 1 and "Traceback" not in result.output
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("words", [["--count", "0"], ["--size", "1"], ["--seed", "x"]])
def test_numbers_that_make_no_sense_are_refused(words: list[str], tmp_path: Path) -> None:
    result = photos(str(tmp_path / "new"), *words)
    assert result.exit_code == 2
    assert not (tmp_path / "new").exists()
