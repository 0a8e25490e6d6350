"""The set that is drawn from nano's world."""

import json

import numpy as np
import pytest
from PIL import Image

from omnipersona_cli.bench.dataset import BENCH_TASKS, EDIT_TASKS, read_dataset
from omnipersona_cli.errors import PersonaError
from op_toy.dataset import FIRST, write_set
from op_toy.world import draw_character, is_held_out


@pytest.fixture(scope="module")
def toyset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "toyset"
    write_set(folder, concepts=2)
    return folder


def test_it_is_read_without_a_note_and_has_every_task(toyset):
    data = read_dataset(toyset)
    assert data.notes == () and len(data.concepts) == 2
    for concept in data.concepts:
        assert len(concept.photos) == 10 and len(concept.test_photos) == 5
        # Forgetting is measured beside the concepts: a set brings no items for it.
        assert {item.task for item in concept.items} == set(BENCH_TASKS) - {"forgetting"}
        edits = {item.kind for item in concept.items if item.task == "editing"}
        assert edits == set(EDIT_TASKS)
        kinds = [item.kind for item in concept.items if item.task == "recognition"]
        assert kinds.count("positive") == 5 and kinds.count("look-alike") == 5


def test_it_is_the_same_every_time(toyset, tmp_path):
    write_set(tmp_path / "again", concepts=2)
    assert read_dataset(tmp_path / "again").digest() == read_dataset(toyset).digest()


def test_nobody_in_it_was_met_in_pretraining():
    assert all(is_held_out(draw_character(FIRST + n, held_out=True)) for n in range(20))


def test_parg_prompts_never_say_what_only_the_facts_say(toyset):
    for concept in read_dataset(toyset).concepts:
        facts = " ".join(concept.facts)
        for item in concept.items:
            if item.task == "parg":
                assert item.truth
                for value in item.truth.values():
                    assert value not in item.prompt.split() and value in facts.split()


def test_look_alikes_differ_in_one_word(toyset):
    truth = json.loads((toyset / "ground_truth/pet00.json").read_text())
    looks = truth["attributes"]
    alike = truth["pictures"]["concept/train/pet00/negative_example/0.png"]
    assert any(alike.get(key) != looks.get(key) for key in (*looks, "second", "accessory colour"))


def test_source_and_target_of_an_edit_differ_inside_the_mask_alone(toyset):
    for item in read_dataset(toyset).concepts[0].items:
        if item.task == "editing" and item.mask is not None:
            pictures = [
                np.asarray(Image.open(path).convert("RGB"), dtype=int)
                for path in (item.image, item.target)
            ]
            apart = np.abs(pictures[0] - pictures[1]).max(2) > 0
            assert apart.any()
            assert not (apart & (np.asarray(Image.open(item.mask).convert("L")) < 128)).any()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PersonaError, match="not empty"):
        write_set(tmp_path, concepts=1)
