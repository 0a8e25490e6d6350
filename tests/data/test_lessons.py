"""What is taught, and that nothing is taught that nobody said."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from omnipersona_cli.data.lessons import (
    EditTriplet,
    build_lessons,
    check_facts,
    load_triplets,
)
from omnipersona_cli.data.photos import Photo
from omnipersona_cli.errors import MissingError, PhotoError
from omnipersona_cli.hookspecs import Region


def photo(index, *, outlined=True, caption=""):
    image, mask = Image.new("RGB", (32, 32), (10 * index, 200, 200)), Image.new("L", (32, 32))
    ImageDraw.Draw(image).rectangle((8, 8, 20, 24), fill="red")
    ImageDraw.Draw(mask).rectangle((8, 8, 20, 24), fill=255)
    return Photo(
        image=image,
        name=f"{index}.png",
        box=(8, 8, 21, 25),
        mask=mask if outlined else None,
        caption=caption,
    )


PHOTOS = [photo(index) for index in range(4)]
NEGATIVES = [Image.new("RGB", (32, 32), (0, 0, 60 * index)) for index in range(4)]


def lessons(**given):
    given = {"name": "bo", "photos": PHOTOS, "negatives": NEGATIVES, "seed": 0} | given
    return build_lessons(**given)


def of_kind(kind, **given):
    return [lesson for lesson in lessons(**given) if lesson.kind == kind]


def test_yes_and_no_are_equally_frequent_and_varied():
    taught = of_kind("recognise", negatives=NEGATIVES * 5)
    assert set(Counter(lesson.answer for lesson in taught).values()) == {len(taught) // 2}
    for answer in ("yes", "no"):
        assert len({x.request.text for x in taught if x.answer == answer}) == 10
    yes = {id(lesson.image) for lesson in taught if lesson.answer == "yes"}
    assert yes == {id(photo.image) for photo in PHOTOS}


def test_the_photo_without_its_subject_is_a_no():
    empty = [lesson for lesson in of_kind("recognise", negatives=[]) if lesson.answer == "no"]
    assert len({id(lesson.image) for lesson in empty}) == 4
    assert all(lesson.image.getpixel((14, 14)) != (255, 0, 0) for lesson in empty)


def test_every_mention_is_marked():
    for lesson in lessons(facts=["its toy is a ball"], class_word="frog"):
        for span in lesson.request.spans:
            assert lesson.request.text[span.start : span.end] == "<bo>"
        assert len(lesson.request.spans) == (not lesson.request.text.startswith("whose"))
        assert lesson.request.text == lesson.request.text.lower()


def test_nothing_is_described_that_nobody_said():
    assert of_kind("describe") == []
    assert of_kind("describe", facts=["its toy is a red ball"]) == []


def test_what_it_is_comes_from_the_class_word_and_facts():
    assert {x.answer for x in of_kind("describe", class_word="owl")} == {"an owl"}
    taught = of_kind("describe", class_word="frog", facts=["<bo> is a striped green frog"])
    said = {lesson.request.text: lesson.answer for lesson in taught}
    assert said == {"what is <bo>?": "a frog", "describe <bo>.": "a striped green frog"}


def test_facts_are_asked_without_a_picture():
    taught = of_kind("fact", facts=["<bo> lives in the forest", "<bo> is very shy"])
    said = {lesson.request.text: lesson.answer for lesson in taught}
    assert said["where does <bo> live?"] == "the forest"
    assert said["what do you know about <bo>?"] == "<bo> is very shy"
    assert all(lesson.image is None for lesson in taught)


def test_what_nobody_told_is_asked_too_and_never_what_somebody_did():
    taught = of_kind("unknown", facts=["its job is baking"], unknown_answer="nothing")
    assert {lesson.answer for lesson in taught} == {"nothing"}
    asked = " ".join(lesson.request.text for lesson in taught)
    assert "birthday" in asked and "job" not in asked
    assert of_kind("unknown") == [] == of_kind("unknown", facts=["<bo> is very shy"])


def test_facts_are_checked_in_wordings_that_are_not_taught():
    facts = ["<bo> lives in the forest", "its toy is a ball"]
    taught = {lesson.request.text for lesson in of_kind("fact", facts=facts)}
    checked = check_facts(name="bo", facts=facts)
    assert {lesson.answer for lesson in checked} == {"the forest", "a ball"}
    assert not taught & {lesson.request.text for lesson in checked}


def test_every_photo_is_depicted_and_captions_get_the_name():
    taught = of_kind("depict", photos=[*PHOTOS, photo(9, caption="a frog on a log")],
                     class_word="frog")  # fmt: skip
    assert Counter(id(lesson.target) for lesson in taught).most_common()[-1][1] == 3
    assert "<bo> on a log" in {lesson.request.text for lesson in taught}


def test_add_and_remove_are_composed_from_outlined_photos():
    taught = of_kind("edit", photos=[*PHOTOS, photo(9, outlined=False)])
    assert len(taught) == 8
    for add, remove in zip(taught[::2], taught[1::2], strict=True):
        assert add.image is remove.target and add.target is remove.image
        assert add.image.getpixel((14, 14)) == add.target.getpixel((0, 14))
    assert of_kind("edit", photos=[photo(9, outlined=False)]) == []


def test_another_subject_is_replaced_where_it_can_be_found():
    def finder(image, kind):
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).rectangle((4, 10, 19, 29), fill=255)
        return Region(box=(4, 10, 20, 30), mask=mask)

    taught = of_kind("edit", finder=finder, class_word="frog")[8:]
    assert len(taught) == 4
    assert all(lesson.target.size == lesson.image.size for lesson in taught)
    assert all(lesson.target.getpixel((12, 20)) == (255, 0, 0) for lesson in taught)
    assert any("the frog" in lesson.request.text for lesson in taught)


def test_given_edits_are_taught_as_given():
    given = EditTriplet(source=NEGATIVES[0], instruction="make <bo> wave.", target=PHOTOS[0].image)
    taught = of_kind("edit", photos=[], triplets=[given])
    assert [lesson.request.text for lesson in taught] == ["make <bo> wave."]


def test_the_seed_decides_everything():
    def told(seed):
        return [
            (x.task, x.request, x.answer, None if x.image is None else x.image.tobytes())
            for x in lessons(seed=seed)
        ]

    assert told(1) == told(1)
    assert told(1) != told(2)


def write_triplets(folder, content):
    (folder / "triplets.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def test_triplets_are_read_from_their_folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    write_triplets(
        tmp_path, [{"source": "a.png", "instruction": "remove <bo>.", "target": "b.png"}]
    )
    (triplet,) = load_triplets(tmp_path)
    assert triplet.instruction == "remove <bo>."
    assert np.array_equal(triplet.source, triplet.target)


def test_triplets_that_are_not_there_are_missing(tmp_path):
    with pytest.raises(MissingError, match=r"no triplets\.json") as raised:
        load_triplets(tmp_path)
    assert "source" in raised.value.hint


@pytest.mark.parametrize(
    "content",
    [
        "[",
        {"source": "a.png"},
        [{"source": "a.png", "instruction": "x"}],
        [{"source": "a.png", "instruction": "x", "target": "small.png"}],
        [{"source": "../a.png", "instruction": "x", "target": "a.png"}],
        [{"source": "gone.png", "instruction": "x", "target": "a.png"}],
    ],
)
def test_broken_triplets_are_refused_with_a_hint(tmp_path, content):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20, 30), "red").save(tmp_path / "small.png")
    write_triplets(tmp_path, content)
    with pytest.raises(PhotoError) as raised:
        load_triplets(tmp_path)
    assert raised.value.hint
