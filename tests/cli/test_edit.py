"""`op edit`, as a person types it."""

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image


def test_the_answer_is_a_new_file_of_the_same_size(disc, op):
    before = (disc.work / "blue.png").read_bytes()
    done = op("edit", "blue.png", "add <bo>", "--seed", "1")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == "blue-add-bo-001.png"
    with Image.open("blue-add-bo-001.png") as image:
        assert image.size == (64, 64)
        assert "compositeWithTrainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]
    assert (disc.work / "blue.png").read_bytes() == before


def test_json_tells_how_the_edit_was_made(disc, op):
    told = json.loads(op("edit", "blue.png", "add <bo>", "--box", "5,5,30,30", "--json").stdout)
    assert (told["how"], told["region"]) == ("native", "box")
    assert 0 <= told["recognised"]["bo"] <= 1
    assert told["tries"] == 3
    once = json.loads(op("edit", "blue.png", "add <bo>", "--tries", "1", "--json").stdout)
    assert once["tries"] == 1


def test_a_mask_is_a_file(disc, op):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")
    done = op("edit", "blue.png", "add <bo>", "--mask", "mask.png", "-o", "new.png", "--seed", "1")
    assert done.exit_code == 0, done.stderr
    with Image.open("blue.png") as old, Image.open("new.png") as new:
        right = (32, 0, 64, 64)
        assert old.crop(right).tobytes() == new.crop(right).tobytes()


def test_a_mask_of_another_size_is_stretched_with_a_note(disc, op):
    mask = Image.new("L", (32, 16), 0)
    mask.paste(255, (0, 0, 16, 16))
    mask.save("mask.png")
    done = op("edit", "blue.png", "add <bo>", "--mask", "mask.png", "-o", "new.png", "--seed", "1")
    assert done.exit_code == 0
    assert "the mask is 32x16 pixels and was stretched to the picture's 64x64" in done.stderr
    with Image.open("blue.png") as old, Image.open("new.png") as new:
        right = (32, 0, 64, 64)
        assert old.crop(right).tobytes() == new.crop(right).tobytes()


def test_a_picture_comes_through_a_pipe(disc, op):
    data = (disc.work / "blue.png").read_bytes()
    done = op("edit", "-", "add <bo>", "-o", "-", stdin=data)
    assert done.stdout_bytes.startswith(b"\x89PNG"), done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["blu.png", "add <bo>"], 3),
        (["photos", "add <bo>"], 1),
        (["blue.png", "add <bob>"], 3),
        (["blue.png", "add <bo>", "--box", "1,2,3"], 2),
        (["blue.png", "add <bo>", "--box", "900,900,5,5"], 2),
        (["blue.png", "add <bo>", "--mask", "nowhere.png"], 3),
        (["blue.png", ""], 2),
    ],
)
def test_wrong_input_is_one_line_a_hint_and_a_code(disc, op, words, code):
    done = op("edit", *words)
    assert done.exit_code == code, done.stderr
    assert "Hint:" in done.stderr and done.stdout == ""


def test_a_picture_is_replaced_only_by_the_whole_new_one(disc, op, monkeypatch):
    before = Path("blue.png").read_bytes()
    words = ("edit", "blue.png", "add <bo>", "-o", "blue.png", "--seed", "1")
    assert op(*words).exit_code == 1 and Path("blue.png").read_bytes() == before

    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        done = op(*words, "--force")
    assert done.exit_code == 1 and "the disk is full" in done.stderr
    assert Path("blue.png").read_bytes() == before
    assert op(*words, "--force").exit_code == 0
    assert Path("blue.png").read_bytes() != before
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_what_was_understood_of_a_mask_is_printed(disc, op):
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    mask.save("mask.png")
    words = ("edit", "blue.png", "add <bo>", "--mask", "mask.png", "-o", "new.png", "--seed", "1")
    done = op(*words)
    assert done.exit_code == 2 and "--mask-means transparent" in done.stderr
    done = op(*words, "--mask-means", "transparent")
    assert "mask: 50 % of the picture may change, the left half" in done.stderr


def test_what_a_picture_cannot_keep_is_told(disc, op):
    with Image.open("blue.png") as image:
        image.convert("CMYK").save("print.jpg")
    for words in (("edit", "print.jpg", "add <bo>"), ("ask", "print.jpg", "is <bo> here?")):
        assert "print.jpg: print colours (CMYK), converted to RGB" in op(*words).stderr
