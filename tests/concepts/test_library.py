"""This user's packs by name."""

import multiprocessing
from dataclasses import replace

import pytest
from filelock import FileLock

from omnipersona_cli.concepts import library as library_module
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, read_pack, write_pack
from omnipersona_cli.errors import (
    MissingError,
    PackError,
    PersonaError,
    ResourceError,
    UsageError,
)


@pytest.fixture
def library(tmp_path, bo):
    """A library in which bo lives."""
    library = Library(tmp_path / "library")
    library.save(bo)
    return library


def contents(library):
    return {path.name: path.read_bytes() for path in library.folder.glob("*.opconcept")}


def test_the_default_library_is_in_the_data_folder(home):
    assert Library().folder == home / "data" / "concepts"


def test_a_library_that_is_not_there_is_empty_and_not_made(tmp_path):
    library = Library(tmp_path / "none")
    assert library.names() == ()
    assert not library.folder.exists()


def test_what_is_saved_is_found(library, bo):
    assert library.names() == ("bo",)
    assert library.header("<Bo>").facts == bo.facts
    assert library.load("bo").class_word == "dog"


def test_other_files_are_not_concepts(library):
    (library.folder / "notes.txt").write_text("x")
    (library.folder / "Bad Name.opconcept").write_text("x")
    (library.folder / "folder.opconcept").mkdir()
    assert library.names() == ("bo",)


def test_an_unknown_name_suggests_the_nearest(library):
    with pytest.raises(MissingError, match="there is no concept <bob>") as caught:
        library.load("bob")
    assert "did you mean <bo>?" in caught.value.hint


def test_an_empty_library_says_how_to_teach(tmp_path):
    with pytest.raises(MissingError) as caught:
        Library(tmp_path / "none").load("bo")
    assert caught.value.hint == "teach it first: op learn PHOTOS --name bo"


def test_two_concepts_never_share_a_name_silently(library, bo):
    before = contents(library)
    with pytest.raises(PersonaError, match="another concept <bo>") as caught:
        library.save(replace(bo, class_word="cat"))
    assert "--force" in caught.value.hint
    assert contents(library) == before
    library.save(replace(bo, class_word="cat"), force=True)
    assert library.header("bo").class_word == "cat"


def test_saving_the_same_again_is_no_change(library, bo):
    assert library.save(bo) == library.path("bo")


def test_a_pack_comes_in_and_goes_out_as_it_was(library, bo, tmp_path):
    out = library.export("bo", tmp_path)
    assert out == tmp_path / "bo.opconcept"
    other = Library(tmp_path / "other")
    other.add_file(out)
    assert contents(other) == contents(library)


def test_export_makes_a_file_in_the_current_folder(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_pack(library.export("bo").resolve()).name == "bo"
    with pytest.raises(PersonaError, match="exists already"):
        library.export("bo")
    library.export("bo", force=True)


def test_import_under_another_name_keeps_both(library, tmp_path):
    library.add_file(library.export("bo", tmp_path), "rex")
    assert library.names() == ("bo", "rex")
    assert library.header("rex").facts[0].text == "<rex>'s toy is a red ball"


def test_import_of_another_bo_needs_force(library, bo, tmp_path):
    other = tmp_path / "other.opconcept"
    write_pack(replace(bo, kind="thing"), other)
    with pytest.raises(PersonaError, match="another concept <bo>"):
        library.add_file(other)
    library.add_file(other, force=True)
    assert library.header("bo").kind == "thing"


def test_renaming_moves(library):
    library.rename("bo", "rex")
    assert library.names() == ("rex",)
    assert library.load("rex").name == "rex"


def test_renaming_onto_another_is_refused(library, bo):
    library.save(replace(bo, name="rex"))
    before = contents(library)
    with pytest.raises(PersonaError, match="another concept <rex>"):
        library.rename("bo", "rex")
    with pytest.raises(UsageError, match="already"):
        library.rename("bo", "<bo>")
    assert contents(library) == before


def test_a_file_renamed_by_hand_does_not_answer_to_that_name(library):
    library.path("bo").rename(library.folder / "rex.opconcept")
    with pytest.raises(PackError, match="holds the concept <bo>") as caught:
        library.header("rex")
    assert "--name rex" in caught.value.hint


def test_removing_takes_even_a_broken_one(library):
    library.path("bo").write_bytes(b"broken")
    library.remove("bo")
    assert library.names() == ()
    with pytest.raises(MissingError):
        library.remove("bo")


def test_facts_change_and_nothing_else(library, bo):
    library.change_facts("bo", lambda facts: [*facts, Fact(text="<bo> is old")])
    loaded = library.load("bo")
    assert loaded.facts == (*bo.facts, Fact(text="<bo> is old"))
    assert replace(loaded, facts=bo.facts, slots={}, hash="") == replace(bo, slots={})


def test_too_many_facts_are_refused(library):
    with pytest.raises(UsageError, match="at most 256"):
        library.change_facts("bo", lambda facts: [Fact(text=f"fact {n}") for n in range(257)])


def test_a_broken_pack_is_not_given_away(library, tmp_path):
    path = library.path("bo")
    path.write_bytes(path.read_bytes()[:-4] + b"1234")
    with pytest.raises(PackError, match=r"bo\.opconcept"):
        library.export("bo", tmp_path / "out.opconcept")
    assert not (tmp_path / "out.opconcept").exists()


def add_facts(folder, who):
    for number in range(5):
        fact = Fact(text=f"fact {number} of {who}")
        Library(folder).change_facts("bo", lambda facts, fact=fact: [*facts, fact])


def test_changes_at_the_same_time_are_all_kept(library):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=add_facts, args=(library.folder, who)) for who in "abc"]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(library.header("bo").facts) == 2 + 15


def test_a_change_waits_for_the_lock_and_then_says_so(library, monkeypatch):
    monkeypatch.setattr(library_module, "LOCK_SECONDS", 0.05)
    with FileLock(library.folder / ".lock"), pytest.raises(ResourceError, match="another op"):
        Library(library.folder).remove("bo")
    assert library.names() == ("bo",)


def test_what_a_killed_process_left_is_cleared_away(library, bo):
    left = library.folder / ".bo.opconcept.0123456789ab.tmp"
    left.write_bytes(b"half")
    assert library.names() == ("bo",)
    library.save(bo)
    assert not left.exists()


def test_a_library_that_cannot_be_made_is_told(tmp_path, bo):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResourceError, match="cannot be written"):
        Library(tmp_path / "file" / "library").save(bo)
