"""A folder of weights is known on this machine, and nowhere else."""

import json

import numpy as np
import pytest

from omnipersona_cli.concepts import bases
from omnipersona_cli.concepts.bases import forget_bases, known_base, remember_base
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Pack, Slot
from omnipersona_cli.concepts.upkeep import forget
from omnipersona_cli.config import data_folder


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    return folder


def test_a_folder_is_found_again_from_wherever_it_was_named(weights, monkeypatch):
    monkeypatch.chdir(weights.parent)
    remember_base("mine@1", "mine")
    monkeypatch.chdir("/")
    assert known_base("mine@1") == str(weights)
    assert known_base("other@1") is None
    remember_base("pair@1", f"{weights}+{weights}")
    assert known_base("pair@1") == f"{weights}+{weights}"


def test_a_hub_id_needs_no_remembering(home):
    remember_base("janus@1", "someone/janus")
    remember_base("janus@2", None)
    assert not (data_folder() / bases.FILE).exists()


def test_a_folder_that_went_away_is_not_known(weights):
    remember_base("mine@1", str(weights))
    weights.rmdir()
    assert known_base("mine@1") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"mine@1": 3}', '{"mine@1": "relative"}', '{"mine@1": "/etc/\\u0000"}']
)
def test_a_file_that_somebody_else_wrote_is_survived(weights, text, monkeypatch):
    data_folder().mkdir(parents=True)
    (data_folder() / bases.FILE).write_text(text)
    monkeypatch.chdir(weights.parent)
    (weights.parent / "relative").mkdir()
    assert known_base("mine@1") is None
    remember_base("mine@2", str(weights))
    assert known_base("mine@2") == str(weights)


def test_only_so_many_are_kept_the_latest(weights, monkeypatch):
    monkeypatch.setattr(bases, "MOST", 3)
    for number in range(5):
        remember_base(f"mine@{number}", str(weights))
    assert list(json.loads((data_folder() / bases.FILE).read_text())) == [
        "mine@2",
        "mine@3",
        "mine@4",
    ]


def test_forgetting_a_concept_forgets_a_folder_that_no_other_needs(weights):
    library = Library()
    rows = {key: np.zeros((1, 4), dtype=np.float32) for key in ("id", "und", "gen")}
    about = {"backend": "janus", "base": "mine", "fingerprint": "mine@1"}
    for name in ("bo", "mam"):
        library.save(Pack(name=name, slots={"mine": Slot(tensors=rows, about=about)}))
    remember_base("mine@1", str(weights))
    remember_base("unused@1", str(weights))
    forget(library, "bo")
    assert known_base("mine@1") == str(weights) and known_base("unused@1") is None
    library.remove("mam")
    forget_bases(library)
    assert known_base("mine@1") == str(weights), "undo would want it"
    forget(library, "mam")
    assert known_base("mine@1") is None
