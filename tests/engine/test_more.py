"""An instant concept, and going on from one that is there: nothing known is lost."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from omnipersona_cli.concepts.facts import Fact
from omnipersona_cli.engine import Keeping, Settings, Subject, learn, plan
from omnipersona_cli.engine.checkpoint import run_folder
from omnipersona_cli.engine.tokens import from_slot
from omnipersona_cli.errors import MissingError, SlotError, UsageError
from omnipersona_cli.testing import SketchBackend, drawing


@pytest.fixture
def started(sketch, bo, library):
    """<bo> as an instant concept."""
    return learn(bo, Settings(steps=0), Keeping(library=library), backend=sketch)


def more(library, **keeping):
    return Keeping(library=library, more=True, samples=0, **keeping)


def slot_of(pack):
    return pack.slots["sketch"]


def test_without_steps_the_start_is_kept_and_nothing_is_encoded_for_learning(
    sketch, bo, library, monkeypatch
):
    monkeypatch.setattr(sketch, "prepare", lambda *_, **__: pytest.fail("lessons were prepared"))
    phases = set()
    result = learn(
        bo,
        Settings(steps=0),
        Keeping(library=library),
        backend=sketch,
        on_progress=lambda event: phases.add(event.phase),
    )
    start = sketch.new_tokens("bo", understand=16, generate=16, photos=[drawing("red", 0)], seed=0)
    kept = from_slot(library.load("bo"), sketch)
    assert kept.und.shape == start.und.shape and kept.fact_tokens == 0
    assert not phases & {"learning", "checking", "encoding", "painting samples"}
    assert result.report.steps == 0 and result.report.checks == ()


def test_an_instant_concept_says_so_in_pack_and_card(started, library):
    assert slot_of(library.load("bo")).about["recipe"]["instant"] is True
    assert library.header("bo").evals["sketch"]["card"]["instant"] is True


def test_the_threshold_of_an_instant_concept_is_set_on_photos_it_did_not_start_from(started):
    calibration = started.report.calibration
    assert calibration.held_out and (calibration.positives, calibration.negatives) == (3, 4)
    recognition = started.report.card.recognition
    assert recognition is not None and recognition.photos == 3 and recognition.others == 4


def test_the_tokens_of_an_instant_concept_are_not_believed_to_know_facts(started):
    assert started.report.memory.to_dict()["threshold"] is None


def test_pictures_of_an_instant_concept_are_painted_where_they_are_asked_for(sketch, bo, library):
    keeping = Keeping(library=library, samples=2)
    assert learn(bo, Settings(steps=0), keeping, backend=sketch).report.card.samples == 2


def test_going_on_begins_at_the_tokens_that_are_there(started, sketch, bo, library, monkeypatch):
    begun = []
    from omnipersona_cli.engine import run

    whole = run.optimise
    monkeypatch.setattr(
        run,
        "optimise",
        lambda backend, start, *a, **k: begun.append(start) or whole(backend, start, *a, **k),
    )
    before = from_slot(library.load("bo"), sketch)
    result = learn(bo, Settings(steps=6, seed=3), more(library), backend=sketch)
    (start,) = begun
    assert torch.equal(start.und[: len(before.und)], before.und)
    assert torch.equal(start.gen, before.gen) and torch.equal(start.id, before.id)
    assert not torch.equal(from_slot(result.pack, sketch).und, start.und)


def test_what_was_done_is_recorded_run_by_run(started, sketch, bo, library):
    learn(bo, Settings(steps=6, seed=3), more(library), backend=sketch)
    about = slot_of(learn(bo, Settings(steps=4, seed=4), more(library), backend=sketch).pack).about
    assert [(run["steps"], run["seed"], run["photos"]) for run in about["runs"]] == [
        (0, 0, 10), (6, 3, 10), (4, 4, 10),
    ]  # fmt: skip
    assert about["steps"] == 10 and about["seed"] == 4 and "instant" not in about["recipe"]


def test_facts_are_kept_and_merged(started, sketch, photos, library):
    found = Fact(text="<bo> is round", source="auto")
    library.change_facts("bo", lambda facts: (*facts, found))
    more_facts = Subject(photos=[photos], name="bo", facts=["likes rain"])
    pack = learn(more_facts, Settings(steps=2), more(library), backend=sketch).pack
    assert [fact.text for fact in pack.facts] == [
        "<bo>'s toy is a red ball", "<bo> lives in the forest", "<bo> is round", "likes rain",
    ]  # fmt: skip
    assert pack.facts[2].source == "auto" and pack.class_word == "disc"


def test_a_new_fact_that_contradicts_one_that_is_known_is_refused_and_both_are_named(
    started, sketch, photos, library
):
    library.change_facts("bo", lambda facts: (*facts, Fact(text="likes rain")))
    kept = library.path("bo").read_bytes()
    with pytest.raises(UsageError, match="'likes rain' and 'hates rain'") as caught:
        learn(
            Subject(photos=[photos], name="bo", facts=["hates rain"]),
            Settings(steps=2),
            more(library),
            backend=sketch,
        )
    assert caught.value.hint == "if the new one is true: op concepts facts bo rm 3"
    assert library.path("bo").read_bytes() == kept


def test_no_photo_that_was_learned_from_is_held_out_later(
    started, sketch, bo, photos, tmp_path, library
):
    seen = set(slot_of(library.load("bo")).about["photo_digests"])
    new = tmp_path / "new"
    new.mkdir()
    for seed in range(20, 24):
        drawing("red", seed).save(new / f"{seed}.png")
    both = Subject(photos=[photos, new], name="bo")
    for seed in range(5):  # whatever the seed holds out
        keeping = more(library, out=tmp_path / f"{seed}.opconcept")
        pack = learn(both, Settings(steps=1, seed=seed), keeping, backend=sketch).pack
        assert seen <= set(slot_of(pack).about["photo_digests"])
        assert pack.provenance["photos"] == 14 and pack.provenance["held_out"] == 4
    pack = learn(Subject(photos=[new], name="bo"), Settings(steps=1), more(library), backend=sketch)
    assert seen < set(slot_of(pack.pack).about["photo_digests"])


def test_the_concept_as_it_was_is_one_undo_away(started, sketch, bo, library):
    kept = library.path("bo").read_bytes()
    learn(bo, Settings(steps=2), more(library), backend=sketch)
    assert library.path("bo").read_bytes() != kept
    library.undo("bo")
    assert library.path("bo").read_bytes() == kept


def _stopped(sketch, bo, library, phase, step, **settings):
    def stop(event):
        if event.phase == phase and event.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(bo, Settings(**settings), more(library), backend=sketch, on_progress=stop)


def test_an_interrupted_run_leaves_the_concept_and_resumes_to_the_same_bits(
    started, sketch, bo, library, tmp_path
):
    kept = library.path("bo").read_bytes()
    whole = learn(
        bo, Settings(steps=6), more(library, out=tmp_path / "w.opconcept"), backend=sketch
    )
    _stopped(sketch, bo, library, "learning", 3, steps=6)
    assert library.path("bo").read_bytes() == kept
    resumed = learn(bo, Settings(steps=6), more(library, resume=True), backend=sketch)
    assert resumed.resumed_from == 3 and resumed.pack.hash == whole.pack.hash
    assert not list(run_folder("").glob("*"))


def test_a_run_that_was_cut_when_its_pack_was_in_the_library_ends_as_it_would_have(
    started, sketch, bo, library, monkeypatch
):
    module = import_module("omnipersona_cli.engine.learn")
    with monkeypatch.context() as patch:
        patch.setattr(module, "forget_run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            learn(bo, Settings(steps=4), more(library), backend=sketch)
    done = library.header("bo").hash
    resumed = learn(bo, Settings(steps=4), more(library, resume=True), backend=sketch)
    assert library.header("bo").hash == done and resumed.resumed_from == 4
    assert [run["steps"] for run in slot_of(resumed.pack).about["runs"]] == [0, 4]


def test_a_run_that_began_with_another_concept_is_not_gone_on_with(started, sketch, bo, library):
    _stopped(sketch, bo, library, "learning", 3, steps=6)
    learn(bo, Settings(steps=3, seed=9), Keeping(library=library, force=True), backend=sketch)
    notes = []
    resumed = learn(
        bo,
        Settings(steps=6),
        more(library, resume=True),
        backend=sketch,
        on_progress=lambda event: notes.append(event.note),
    )
    assert resumed.resumed_from == 0 and any("no interrupted run" in note for note in notes)
    assert [run["steps"] for run in slot_of(resumed.pack).about["runs"]] == [3, 6]


def test_facts_that_are_added_while_it_goes_on_are_kept(started, sketch, bo, library):
    def meanwhile(event):
        if event.phase == "learning" and event.step == 1:
            library.change_facts("bo", lambda facts: (*facts, Fact(text="likes snow")))

    learn(bo, Settings(steps=3), more(library), backend=sketch, on_progress=meanwhile)
    assert "likes snow" in [fact.text for fact in library.header("bo").facts]


def test_a_concept_that_is_not_there_is_named_with_the_command_that_begins_it(sketch, bo, library):
    with pytest.raises(MissingError, match="no concept <bo> to go on from") as caught:
        learn(bo, Settings(steps=2), more(library), backend=sketch)
    assert "op learn " in caught.value.hint and "--name bo" in caught.value.hint


def test_another_backend_has_nothing_to_go_on_from(started, sketch, bo, library):
    other = SketchBackend()
    other.info = replace(other.info, name="outline")
    with pytest.raises(SlotError, match="learned on sketch: on outline there is nothing") as caught:
        learn(bo, Settings(steps=2), more(library), backend=other)
    assert caught.value.hint.endswith("-b outline")


def test_other_weights_of_the_backend_are_refused_with_both_named(started, sketch, bo, library):
    other = SketchBackend()
    other.fingerprint = "sketch@2:0"
    kept = library.path("bo").read_bytes()
    with pytest.raises(SlotError, match="learned on sketch@1:0, and this is sketch@2:0") as caught:
        learn(bo, Settings(steps=2), more(library), backend=other)
    assert "op learn" in caught.value.hint and library.path("bo").read_bytes() == kept


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"understand_tokens": 4}, "16 tokens to understand by"),
        ({"generate_tokens": 8}, "16 tokens to generate by"),
    ],
)
def test_settings_that_do_not_go_with_going_on_are_refused(
    started, sketch, bo, library, settings, match
):
    with pytest.raises(UsageError, match=match):
        learn(bo, Settings(**{"steps": 2, **settings}), more(library), backend=sketch)


def test_going_on_keeps_the_layers_that_have_tokens_and_may_add_some(started, sketch, bo, library):
    sketch.info = replace(sketch.info, deep_layers=3)

    def depth_after(depth):
        learn(bo, Settings(steps=2, depth=depth), more(library), backend=sketch)
        return from_slot(library.load("bo"), sketch).depth

    assert from_slot(library.load("bo"), sketch).depth == 0
    assert [depth_after(depth) for depth in (None, 2, None, 3)] == [0, 2, 2, 3]
    assert slot_of(library.load("bo")).about["recipe"]["depth"] == 3
    with pytest.raises(UsageError, match="tokens for 3 layers after the first") as caught:
        depth_after(1)
    assert "--depth" in caught.value.hint


@pytest.mark.parametrize("more_than_tokens", [{"depth": 1}, {"experts": "lora"}])
def test_what_has_to_be_learned_is_refused_without_steps(more_than_tokens):
    with pytest.raises(UsageError, match="have to be learned"):
        Settings(steps=0, **more_than_tokens)


def test_previews_of_an_instant_concept_are_refused(sketch, bo, library, tmp_path):
    with pytest.raises(UsageError, match="no checks"):
        learn(bo, Settings(steps=0), Keeping(library=library, previews=tmp_path), backend=sketch)


def test_a_plan_of_going_on_tells_all_facts(started, sketch, photos, library):
    subject = Subject(photos=[photos], name="bo", facts=["likes rain"])
    told = plan(subject, Settings(steps=2), keeping=more(library))
    assert told.facts[-1] == "likes rain" and len(told.facts) == 3 and told.backend == "sketch"


def test_the_page_of_an_instant_concept_says_so_and_has_no_curve(sketch, bo, library, tmp_path):
    page = tmp_path / "bo.html"
    learn(bo, Settings(steps=0), Keeping(library=library, page=page), backend=sketch)
    text = page.read_text()
    assert "Started from 10 photos" in text and "no step was learned" in text
    assert "Learned from" not in text and "<svg" not in text
