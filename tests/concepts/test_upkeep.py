"""Undo copies, the state of the whole library, what is swept out and what is forgotten."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from omnipersona_cli.concepts import undo
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import Fact, Slot, parse_pack, read_header
from omnipersona_cli.concepts.upkeep import (
    check_library,
    forget,
    mentioned_by,
    runs,
    sweep,
)
from omnipersona_cli.config import cache_folder
from omnipersona_cli.errors import MissingError, PersonaError


@pytest.fixture
def library(home, bo):
    library = Library()
    library.save(bo)
    return library


def unfinished_run(name, concept="", age_days=0):
    folder = cache_folder() / "runs" / name
    folder.mkdir(parents=True)
    about = {"step": 3, **({"concept": concept} if concept else {})}
    path = folder / "checkpoint.safetensors"
    path.write_bytes(save({"x": np.ones(3)}, metadata={"run": json.dumps(about)}))
    then = path.stat().st_mtime - age_days * 24 * 3600
    os.utime(path, (then, then))
    return folder


def everything_of(library, word):
    """Files of the library and the cache that hold a word."""
    places = [*library.folder.rglob("*"), *cache_folder().rglob("*")]
    return [path for path in places if path.is_file() and word in path.read_bytes()]


def test_a_change_is_taken_back_and_done_again(library, bo):
    library.change_facts("bo", lambda facts: ())
    assert library.undo() == ("bo", "<bo> is as it was")
    assert library.header("bo").facts == bo.facts
    library.undo("bo")
    assert library.header("bo").facts == ()


def test_what_was_removed_comes_back(library, bo):
    before = library.path("bo").read_bytes()
    library.remove("bo")
    assert library.was_removed("bo")
    assert library.undo() == ("bo", "<bo> is back")
    assert library.path("bo").read_bytes() == before
    assert not library.was_removed("bo")
    library.save(replace(bo, name="mam"))
    library.change_facts("mam", lambda facts: ())
    assert library.undo("bo") == ("bo", "<bo> is removed again")
    assert library.names() == ("mam",) and library.was_removed("bo")
    assert library.undo("bo") == ("bo", "<bo> is back")
    assert library.path("bo").read_bytes() == before
    assert library.undo() == ("bo", "<bo> is removed again"), "and not what came before it"
    library.save(bo)
    assert library.undo("mam") == ("mam", "<mam> is as it was")


def test_a_renaming_is_taken_back_with_what_came_after_it(library):
    library.rename("bo", "rex")
    library.change_facts("rex", lambda facts: [*facts, Fact(text="<rex> is old")])
    library.undo("bo")
    assert library.names() == ("bo",)
    assert library.header("bo").facts[-1].text == "<bo> is old"


def test_what_was_replaced_comes_back(library, bo):
    library.save(replace(bo, class_word="cat"), force=True)
    library.undo("bo")
    assert library.header("bo").class_word == "dog"


def test_one_copy_of_each_name_is_kept(library, bo):
    library.save(replace(bo, name="rex"))
    for number in range(4):
        for name in ("bo", "rex"):
            library.change_facts(name, lambda _, n=number: [Fact(text=f"fact {n}")])
    assert len(list((library.folder / ".undo").iterdir())) == 2


def test_renaming_again_what_is_renamed_is_no_error(library):
    path = library.rename("bo", "rex")
    assert library.rename("bo", "rex") == path
    with pytest.raises(MissingError):
        library.rename("bo", "max")


def test_a_sound_library_has_nothing_bad(library):
    assert [finding for finding in check_library(library) if finding.bad] == []


def test_fsck_finds_and_mends(library, bo):
    library.change_facts("bo", lambda facts: facts[:1])
    path = library.path("bo")
    path.write_bytes(path.read_bytes()[:-1])
    left = library.folder / ".bo.opconcept.0123456789ab.tmp"
    left.write_bytes(b"half")
    assert sum(finding.bad for finding in check_library(library)) == 2
    assert left.exists()
    assert all(finding.mended for finding in check_library(library, repair=True) if finding.bad)
    assert not left.exists()
    assert library.load("bo").facts == bo.facts
    assert [finding for finding in check_library(library) if finding.bad] == []


def test_fsck_leaves_a_broken_pack_that_it_cannot_mend(library):
    path = library.path("bo")
    path.write_bytes(b"broken")
    (finding,) = [found for found in check_library(library, repair=True) if found.bad]
    assert (finding.mended, path.read_bytes()) == ("", b"broken")


def test_unfinished_runs_are_told_and_swept_out_when_they_are_old(library):
    old, new = unfinished_run("a", "bo", age_days=20), unfinished_run("b", age_days=1)
    assert [run.concept for run in runs()] == ["bo", ""]
    assert sum("unfinished run" in finding.what for finding in check_library(library)) == 2
    assert len(sweep(library)) == 1
    assert (old.exists(), new.exists()) == (False, True)


def test_a_run_that_is_going_on_is_never_swept_out(library):
    folder = unfinished_run("a", "bo")
    assert sweep(library, days=0) == ()
    assert folder.exists()


def test_sweeping_keeps_concepts_and_young_copies(library, bo):
    library.change_facts("bo", lambda facts: ())
    assert sweep(library) == ()
    assert sweep(library, days=0) == ("an undo copy of <bo>",)
    assert library.names() == ("bo",)


def test_a_copy_is_as_old_as_the_change_and_not_as_the_pack(library, bo):
    long_ago = 30 * 24 * 3600
    for change in (lambda: library.remove("bo"), lambda: library.change_facts("bo", lambda _: ())):
        path = library.path("bo")
        then = path.stat().st_mtime - long_ago
        os.utime(path, (then, then))
        change()
        assert sweep(library) == ()
        library.undo("bo")
        assert library.names() == ("bo",)


def test_what_a_server_taught_under_a_former_name_is_forgotten_too(library, bo):
    taught = cache_folder() / "serve" / "1"
    taught.mkdir(parents=True)
    (taught / "job.json").write_text('{"name": "bo"}')
    run = unfinished_run("one", concept="bo")
    library.rename("bo", "rex")
    forget(library, "rex")
    assert not taught.exists() and not run.exists()


def test_a_former_name_that_is_another_concepts_now_is_left_alone(library, bo):
    run = unfinished_run("one", concept="bo")
    library.rename("bo", "rex")
    library.save(bo)
    forget(library, "rex")
    assert run.exists() and library.names() == ("bo",)


def test_nothing_is_left_of_what_is_forgotten(library, bo):
    library.save(replace(bo, name="mam", facts=(Fact(text="<mam> likes <bo>"),)))
    library.change_facts("bo", lambda facts: [Fact(text="<bo> has a secret")])
    library.change_facts("bo", lambda facts: ())
    library.rename("bo", "max")
    library.rename("max", "rex")
    library.save(replace(bo, name="max"))  # another one
    library.change_facts("max", lambda facts: ())
    (library.folder / ".rex.opconcept.0123456789ab.tmp").write_bytes(b"secret")
    unfinished_run("a", "rex")
    other = unfinished_run("b", "mam")
    assert everything_of(library, b"secret")
    forget(library, "rex")
    assert everything_of(library, b"secret") == []
    assert library.names() == ("mam", "max")
    assert other.exists()
    assert mentioned_by(library, "bo") == ("mam",)
    assert [copy.name for copy in undo.copies(library.folder)] == ["max"]
    assert library.undo("max") == ("max", "<max> is as it was")
    with pytest.raises(MissingError, match="nothing is kept"):
        forget(library, "rex")


def test_the_photos_that_a_server_taught_it_from_are_forgotten_with_it(library, bo):
    library.save(replace(bo, name="mam"))
    for name in ("bo", "mam"):
        job = cache_folder() / "serve" / f"job-of-{name}"
        (job / "photos").mkdir(parents=True)
        (job / "photos" / "001.png").write_bytes(b"a face")
        (job / "job.json").write_text(json.dumps({"name": name, "state": "done"}))
    (cache_folder() / "serve" / "odd").mkdir()
    (cache_folder() / "serve" / "odd" / "job.json").write_text("[" * 100_000)
    assert "photos and previews that op serve taught it from" in forget(library, "bo")
    assert sorted(path.name for path in (cache_folder() / "serve").iterdir()) == [
        "job-of-mam",
        "odd",
    ]


def learned_again(bo):
    """<bo> after a run that began with the pack as ``bo``: another seed, one fact more."""
    arrays = {key: array + np.float32(1) for key, array in bo.slots["nano"].tensors.items()}
    facts = (*bo.facts, Fact(text="<bo> is furry", source="auto"))
    return replace(bo, slots={"nano": Slot(tensors=arrays, about={"seed": 8})}, facts=facts)


def test_a_fact_added_while_learning_stays(library, bo):
    before = library.header("bo")
    library.change_facts("bo", lambda facts: [*facts[1:], Fact(text="<bo> is new")])
    path, note = library.save_learned(learned_again(bo), before=before, slots=("nano",))
    kept = parse_pack(path.read_bytes())
    assert [fact.text for fact in kept.facts] == ["<bo> is brown", "<bo> is new", "<bo> is furry"]
    assert kept.slots["nano"].about == {"seed": 8}
    assert "changed while" in note


def test_a_concept_renamed_while_learning_is_learned_under_its_new_name(library, bo):
    before = library.header("bo")
    library.rename("bo", "rex")
    path, note = library.save_learned(learned_again(bo), before=before, slots=("nano",))
    assert library.names() == ("rex",)
    assert read_header(path).facts[-1].text == "<rex> is furry"
    assert "<rex>" in note


def test_a_concept_removed_while_learning_stays_removed(library, bo):
    before = library.header("bo")
    library.remove("bo")
    with pytest.raises(PersonaError, match="removed while"):
        library.save_learned(learned_again(bo), before=before, slots=("nano",))
    assert library.names() == ()


def test_a_name_taken_while_learning_is_not_replaced(library, bo):
    with pytest.raises(PersonaError, match="another concept"):
        library.save_learned(learned_again(bo), before=None, slots=("nano",))
    assert library.load("bo").facts == bo.facts


def test_a_slot_learned_elsewhere_meanwhile_is_kept(library, bo):
    before = library.header("bo")
    slot = bo.slots["nano"]
    library.save(replace(bo, slots={"nano": slot, "later-7b": slot}), force=True)
    path, _ = library.save_learned(learned_again(bo), before=before, slots=("nano",))
    assert set(read_header(path).slots) == {"nano", "later-7b"}


def test_learning_anew_replaces_the_slots_that_it_was_told_to(library, bo):
    slot = bo.slots["nano"]
    library.save(replace(bo, slots={"nano": slot, "old-7b": slot}), force=True)
    before = library.header("bo")
    library.change_facts("bo", lambda facts: ())
    path, _ = library.save_learned(learned_again(bo), before=before, slots=("nano",))
    assert set(read_header(path).slots) == {"nano"}
