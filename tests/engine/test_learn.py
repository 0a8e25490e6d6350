"""Photos in, a pack out; nothing half-written, nothing silently replaced."""

import shutil
from dataclasses import replace
from textwrap import dedent

import pytest

from omnipersona_cli import engine, registry
from omnipersona_cli.concepts.container import write_file
from omnipersona_cli.concepts.facts import Fact
from omnipersona_cli.concepts.pack import read_pack
from omnipersona_cli.engine import Keeping, Settings, Subject, learn, plan
from omnipersona_cli.engine.checkpoint import run_folder
from omnipersona_cli.engine.tokens import from_slot
from omnipersona_cli.errors import PersonaError, PhotoError, ResourceError, TaskError, UsageError
from omnipersona_cli.testing import SketchBackend, drawing


def test_a_concept_is_learned_and_recognised_on_photos_it_never_saw(learned):
    report = learned.result.report
    assert report.calibration.balanced_accuracy == 1.0 and report.calibration.held_out
    assert report.held_out == 3 and report.photos == 10
    assert set(report.lessons) == {*"yes no describe fact unknown generate edit".split()}
    assert (
        engine.ask(
            "is <bo> here?",
            image=drawing("red", 77),
            backend=learned.backend,
            library=learned.library,
        ).text
        == "yes"
    )


def test_the_pack_keeps_facts_figures_and_what_it_is_bound_to(learned):
    pack = learned.library.load("bo")
    assert [fact.text for fact in pack.facts] == [
        "<bo>'s toy is a red ball",
        "<bo> lives in the forest",
    ]
    assert pack.class_word == "disc"
    assert pack.slots["sketch"].about["fingerprint"] == "sketch@1:0"
    assert pack.evals["sketch"]["verdict"] == "good"
    assert pack.provenance["photos"] == 10
    assert from_slot(pack, learned.backend).und.shape == (16, 48)


def test_the_same_seed_learns_the_same_pack(sketch, bo, tmp_path):
    packs = [
        learn(
            bo, Settings(steps=3), Keeping(out=tmp_path / f"{i}.opconcept"), backend=SketchBackend()
        )
        for i in range(2)
    ]
    assert packs[0].pack.hash == packs[1].pack.hash


def test_an_interrupted_run_leaves_no_pack_and_resumes(sketch, bo, library, tmp_path):
    straight = tmp_path / "straight.opconcept"
    whole = learn(bo, Settings(steps=6), Keeping(out=straight), backend=sketch)

    def stop(event):
        if event.phase == "learning" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(bo, Settings(steps=6), Keeping(library=library), backend=sketch, on_progress=stop)
    assert library.names() == ()
    resumed = learn(bo, Settings(steps=6), Keeping(library=library, resume=True), backend=sketch)
    assert resumed.resumed_from == 3, "stopping loses no step"
    assert resumed.pack.hash == whole.pack.hash
    assert not list(run_folder("").glob("*")), "a finished run leaves no checkpoint"


def test_resume_without_a_run_begins_and_says_so(sketch, bo, library):
    notes = []
    learn(
        bo,
        Settings(steps=2),
        Keeping(library=library, resume=True),
        backend=sketch,
        on_progress=lambda event: notes.append(event.note),
    )
    assert any("no interrupted run" in note for note in notes)


def test_a_name_that_is_taken_is_refused_before_any_work(learned, bo):
    kept = learned.library.path("bo").read_bytes()
    with pytest.raises(PersonaError, match="<bo> already") as caught:
        learn(bo, keeping=Keeping(library=learned.library), backend=learned.backend)
    assert "--force" in caught.value.hint
    assert learned.library.path("bo").read_bytes() == kept


def test_another_backend_adds_a_slot_for_the_same_photos(learned, bo, monkeypatch):
    other = SketchBackend()
    monkeypatch.setattr(other, "fingerprint", "outline@1:0")
    from dataclasses import replace

    monkeypatch.setattr(other, "info", replace(other.info, name="outline"))
    learn(bo, Settings(steps=2), Keeping(library=learned.library), backend=other)
    assert set(learned.library.load("bo").slots) == {"sketch", "outline"}


def test_facts_for_another_backend_go_together_with_those_that_are_there(
    learned, photos, monkeypatch
):
    other = SketchBackend()
    monkeypatch.setattr(other, "fingerprint", "outline@1:0")
    monkeypatch.setattr(other, "info", replace(other.info, name="outline"))
    learned.library.change_facts("bo", lambda facts: (*facts, Fact(text="likes rain")))
    kept = learned.library.path("bo").read_bytes()
    with pytest.raises(UsageError, match="'likes rain' and 'hates rain'"):
        learn(
            Subject(photos=[photos], name="bo", facts=["hates rain"]),
            Settings(steps=2),
            Keeping(library=learned.library),
            backend=other,
        )
    assert learned.library.path("bo").read_bytes() == kept


def test_one_photo_is_enough_but_said_to_be_weak_ground(sketch, library, tmp_path):
    drawing("red", 1).save(tmp_path / "one.png")
    result = learn(
        Subject(photos=[tmp_path / "one.png"], name="bo"),
        Settings(steps=4),
        Keeping(library=library),
        backend=sketch,
    )
    assert not result.report.calibration.held_out
    assert result.report.photos == 1 and result.pack.provenance["photos"] == 1
    assert any("held out" in note for note in result.notes)


def test_previews_are_painted_at_every_check(sketch, bo, library, tmp_path):
    folder = tmp_path / "previews"
    learn(bo, Settings(steps=2), Keeping(library=library, previews=folder), backend=sketch)
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000.png",
        "step-00001.png",
        "step-00002.png",
    ]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_preview_that_could_not_be_written_is_painted_when_the_run_goes_on(
    failing, sketch, bo, library, tmp_path, monkeypatch
):
    keeping = Keeping(library=library, previews=tmp_path / "previews", samples=0)
    with monkeypatch.context() as patch:
        writes = iter(range(9))

        def write(*words, **more):
            if next(writes) == failing:
                raise ResourceError("the disk is full", hint="df -h")
            write_file(*words, **more)

        patch.setattr("omnipersona_cli.engine.previews.write_file", write)
        with pytest.raises(ResourceError):
            learn(bo, Settings(steps=2), keeping, backend=sketch)
    learn(bo, Settings(steps=2), replace(keeping, resume=True), backend=sketch)
    painted = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert painted == [f"step-{step:05d}.png" for step in range(3)]


@pytest.mark.parametrize(
    "numbers",
    [
        {"steps": -1},
        {"steps": 0, "experts": "lora"},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"understand_tokens": 0},
    ],
)
def test_numbers_that_teach_nothing_are_refused(sketch, bo, numbers):
    with pytest.raises(UsageError):
        learn(bo, Settings(**numbers), backend=sketch)


def test_experts_are_refused_where_there_are_none(sketch, bo, library):
    with pytest.raises(TaskError, match="experts"):
        learn(bo, Settings(experts="lora"), Keeping(library=library), backend=sketch)


def test_no_photos_and_no_name_are_refused(sketch, tmp_path, photos):
    with pytest.raises(PhotoError):
        learn(Subject(photos=[tmp_path], name="bo"), backend=sketch)
    with pytest.raises(UsageError):
        learn(Subject(photos=[photos], name="not a name"), backend=sketch)


def test_a_plan_tells_what_would_be_learned_from(sketch, bo):
    told = plan(bo, opening=engine.Opening(backend="sketch"))
    assert (told.photos, told.held_out, told.negatives, told.steps) == (10, 3, 12, 60)
    assert told.lessons["yes"] == told.lessons["no"]


def test_what_was_written_reads_back(sketch, bo, tmp_path):
    out = tmp_path / "bo.opconcept"
    result = learn(bo, Settings(steps=2), Keeping(out=out), backend=sketch)
    assert result.path == out and read_pack(out).hash == result.pack.hash


def test_a_place_that_cannot_be_written_is_told_before_any_work(sketch, bo, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    phases = []
    with pytest.raises(ResourceError):
        learn(
            bo,
            keeping=Keeping(out=tmp_path / "file" / "bo.opconcept"),
            backend=sketch,
            on_progress=lambda event: phases.append(event.phase),
        )
    assert not phases
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        learn(bo, keeping=Keeping(previews=tmp_path / "file" / "previews"), backend=sketch)
    assert "--previews" in caught.value.hint


def test_foreign_photos_are_learned_weakly_with_a_note_that_names_other_backends(
    sketch, bo, library, monkeypatch
):
    monkeypatch.setattr(
        sketch, "remarks", lambda texts=(), photos=(): ["these are odd"] if photos else []
    )
    result = learn(bo, Settings(steps=1), Keeping(library=library), backend=sketch)
    (note,) = [note for note in result.notes if "odd" in note]
    assert note.startswith("these are odd; ") and "for photographs: bagel, " in note
    card = library.header("bo").evals["sketch"]["card"]
    assert card["verdict"] == "weak" and card["doubts"] == [note]


def test_facts_that_contradict_each_other_are_refused_before_anything_is_learned(sketch, photos):
    with pytest.raises(UsageError, match="contradict each other: 'likes rain' and 'hates rain'"):
        learn(Subject(photos=[photos], name="bo", facts=["likes rain", "hates rain"]))


def test_a_run_that_is_stopped_after_the_last_step_need_not_learn_again(
    sketch, bo, library, tmp_path
):
    whole = learn(bo, Settings(steps=4), Keeping(out=tmp_path / "whole.opconcept"), backend=sketch)

    def stop(event):
        if event.phase == "painting samples":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(bo, Settings(steps=4), Keeping(library=library), backend=sketch, on_progress=stop)
    assert library.names() == ()
    phases = []
    resumed = learn(
        bo,
        Settings(steps=4),
        Keeping(library=library, resume=True),
        backend=sketch,
        on_progress=lambda event: phases.append(event.phase),
    )
    assert resumed.resumed_from == 4 and "learning" not in phases
    assert resumed.pack.hash == whole.pack.hash


def test_the_example_of_the_python_api_works(sketch, photos, library, tmp_path, monkeypatch):
    example = dedent(engine.__doc__.partition("::")[2].partition("\nFunctions take")[0])
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "DEFAULT_BACKEND", "sketch")
    exec(example, {})
    assert library.names() == ("bo",) and (tmp_path / "bo.png").is_file()
