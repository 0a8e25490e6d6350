"""The layout, as the reference lists it, and what is wrong with a set that breaks it."""

import json

import pytest
from PIL import Image

from omnipersona_cli.bench.dataset import check_pictures, read_dataset
from omnipersona_cli.errors import MissingError, PersonaError, PhotoError


def rewrite(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


def test_items_and_photos_are_read(discs):
    data = read_dataset(discs)
    assert [concept.name for concept in data.concepts] == ["bo", "mia"] and data.notes == ()
    bo = data.concepts[0]
    assert len(bo.photos) == 5 and len(bo.negatives) == 2 and bo.class_word == "disc"
    by_task = {item.task: item for item in bo.items}
    assert by_task["qa"].image is None and by_task["vqa"].image.name == "1.png"
    assert by_task["recognition"].prompt == "is <bo> here?"  # without its marker
    assert by_task["generation"].prompt == "A photo of <bo>"
    assert by_task["parg"].truth == {"thing": "ball"}
    assert by_task["editing"].kind == "replace" and by_task["editing"].mask is not None
    assert [it.name for it in read_dataset(discs, ["mia"]).concepts] == ["mia"]


def test_the_later_prompts_are_told_apart(discs):
    path = discs / "concept/test/bo/t2i_conditions.json"
    path.write_text(
        json.dumps({"personalized_driven_generation": ["<bo> at its home"],
                    "dense_prompt_generation": ["<bo>, a hat"], "mystery": ["<bo>"]})
    )  # fmt: skip
    data = read_dataset(discs)
    tasks = [item.task for item in data.concepts[0].items if item.task in ("parg", "generation")]
    assert tasks == ["parg", "generation"]
    assert any("'mystery'" in note for note in data.notes)


def test_without_test_data_the_photos_are_asked_about_and_raw_fields_are_not_guessed(discs):
    (discs / "test_data" / "bo.json").unlink()
    raw = discs / "concept/test/bo/vqa.json"
    raw.write_text(json.dumps([{"picture": "0.png", "frage": "?"}]))
    data = read_dataset(discs, ["bo"])
    kinds = [item.kind for item in data.concepts[0].items if item.task == "recognition"]
    assert kinds.count("positive") == 3 and {"other", "easy"} <= set(kinds)
    assert not any(item.task == "vqa" for item in data.concepts[0].items)
    assert any("unknown form (frage, picture)" in note for note in data.notes)


def test_unknown_fields_are_reported(discs):
    rewrite(discs / "concept/train/bo/info.json", lambda info: info | {"colour": "red"})
    assert any("'colour'" in note for note in read_dataset(discs).notes)


def test_the_list_of_training_photos_is_read(discs):
    train = discs / "concept/train"
    (train / "train_images.json").write_text(json.dumps({"bo": ["3.png", "1.png"]}))
    data = read_dataset(discs)
    bo, mia = data.concepts
    assert [path.name for path in bo.photos] == ["3.png", "1.png"] and len(mia.photos) == 5
    (train / "train_images.json").write_text(json.dumps({"bo": ["gone.png"]}))
    with pytest.raises(MissingError, match=r"gone\.png"):
        read_dataset(discs)


def test_a_picture_that_is_none_is_found_before_work(discs):
    data = read_dataset(discs)
    check_pictures(data)
    path = discs / "concept/test/mia/edits/target.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PhotoError, match=r"mia/edits/target\.png"):
        check_pictures(data)


def test_the_digest_follows_a_pixel(discs):
    before = read_dataset(discs).digest()
    assert read_dataset(discs).digest() == before
    path = discs / "concept/train/bo/0.png"
    with Image.open(path) as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(path)
    assert read_dataset(discs).digest() != before


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (lambda d: (d / "concept/train/bo/info.json").unlink(), MissingError, "info.json"),
        (lambda d: (d / "test_data/bo.json").write_text("{oops"), PersonaError, "not proper JSON"),
        (lambda d: (d / "concepts_list.json").write_text("[]"), PersonaError, "no concept"),
        (lambda d: (d / "concepts_list.json").write_text("{}"), PersonaError, "list of texts"),
        (lambda d: (d / "concept/test/bo/other.png").unlink(), MissingError, "other.png"),
        (
            lambda d: [p.unlink() for p in (d / "concept/train/bo").glob("*.png")],
            PersonaError,
            "no photo of bo",
        ),
        (
            lambda d: (d / "concept/test/bo/edits.json").write_text('[{"task": "add"}]'),
            PersonaError,
            "no source",
        ),
        (
            lambda d: (d / "concept/test/bo/edits.json").write_text(
                '[{"task": "add", "source": "../../../../../etc/hostname", "instruction": "x"}]'
            ),
            MissingError,
            "not there",
        ),
    ],
)
def test_what_is_broken_is_named(discs, harm, error, said):
    harm(discs)
    with pytest.raises(error, match=said) as caught:
        read_dataset(discs)
    assert caught.value.hint


def test_a_folder_that_is_no_benchmark(tmp_path):
    with pytest.raises(MissingError, match="not a benchmark"):
        read_dataset(tmp_path)
