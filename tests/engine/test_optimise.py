"""The loop: balanced, seeded, and the same bits after an interruption."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from omnipersona_cli.backend import Lesson
from omnipersona_cli.engine.batches import draw, draw_facts, group_of, shares
from omnipersona_cli.engine.checkpoint import RunState, read_checkpoint, write_checkpoint
from omnipersona_cli.engine.heldout import Check, HeldOut
from omnipersona_cli.engine.optimise import adamw, optimise, rate_at, rehearsals
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import from_named_tensors, named_tensors
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import SketchBackend, drawing

HYPER = Hyperparameters(steps=12, batch_size=8, learning_rate=0.05, seed=3)


@pytest.fixture
def school():
    """A backend, its start, prepared lessons by group and held-out ones."""
    backend = SketchBackend()
    photos = [drawing("red", seed) for seed in range(4)]
    others = [drawing("blue", seed) for seed in range(4)]
    here, paint, add = (to_turn(it) for it in ("is <bo> here?", "a photo of <bo>", "add <bo>."))
    see = {"task": "understand", "kind": "recognise", "request": here}
    lessons = [Lesson(**see, image=image, answer="yes") for image in photos]
    lessons += [Lesson(**see, image=image, answer="no") for image in others]
    lessons += [Lesson(task="generate", kind="depict", request=paint, target=it) for it in photos]
    lessons += [
        Lesson(task="edit", kind="edit", request=add, image=a, target=b)
        for a, b in zip(others, photos, strict=True)
    ]
    groups = {}
    for lesson, ready in zip(lessons, backend.prepare(lessons), strict=True):
        groups.setdefault(group_of(lesson), []).append(ready)
    held_out = HeldOut(lessons=backend.prepare(lessons[:2]))
    start = backend.new_tokens("bo", understand=3, generate=2, photos=photos, seed=0)
    return backend, start, groups, held_out


def test_every_step_has_all_tasks_and_as_many_yes_as_no(school):
    _, _, groups, _ = school
    assert shares(8, groups) == {"understand": 4, "generate": 2, "edit": 2}
    assert shares(1, groups) == {"understand": 1, "generate": 1, "edit": 1}
    for step in range(5):
        batch = draw(groups, HYPER, step)
        answers = [lesson.answer for lesson in batch if lesson.task == "understand"]
        assert answers.count("yes") == answers.count("no") == 2
        assert {lesson.task for lesson in batch} == {"understand", "generate", "edit"}


def test_every_lesson_is_drawn_before_one_comes_again(school):
    _, _, groups, _ = school
    drawn = [id(it) for step in range(2) for it in draw(groups, HYPER, step) if it.task == "edit"]
    assert len(set(drawn)) == 4


def checked(*wrong):
    return [Check(step=i, loss=0, margin=0, score=0, wrong=n) for i, n in enumerate(wrong)]


@pytest.mark.parametrize(
    ("wrong", "batches"),
    [((), 0), ((4,), 1), ((4, 4), 2), ((4, 4, 1, 1, 1), 3), ((4, 4, 0), 0), ((4, 0, 1), 2)],
)
def test_facts_are_rehearsed_more_while_they_are_answered_wrongly(wrong, batches):
    assert rehearsals(checked(*wrong)) == batches


def test_rehearsing_facts_moves_the_understanding_part_alone_until_they_are_known():
    backend = SketchBackend()
    photos = [drawing("red", seed) for seed in range(2)]
    start = backend.new_tokens("bo", understand=3, generate=2, photos=photos, seed=0)
    asked = [to_turn(text) for text in ("what is <bo>'s toy?", "tell me <bo>'s toy.")]
    lessons = [
        Lesson(task="understand", kind=kind, request=turn, answer=answer)
        for kind, turn, answer in (
            ("fact", asked[0], "a red ball"),
            ("unknown", to_turn("what is <bo>'s job?"), "i don't know"),
        )
    ]
    groups = {it.kind: [ready] for it, ready in zip(lessons, backend.prepare(lessons), strict=True)}
    assert [it.answer for it in draw_facts(groups, HYPER, 0, 0)] == ["a red ball", "i don't know"]
    held_out = HeldOut(facts=[(asked[1], "a red ball")])
    found = optimise(backend, start, groups, held_out, HYPER)
    assert found.checks[0].wrong == 1 and found.checks[-1].wrong == 0
    assert torch.equal(found.tokens.gen, start.gen)


def test_the_rate_warms_up_and_falls():
    long = Hyperparameters(steps=100, batch_size=8, learning_rate=1.0)
    assert rate_at(0, long) < rate_at(5, long) > rate_at(99, long) > 0


def test_a_step_is_one_of_torchs_adamw_to_the_bit():
    ours = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0, foreach=False)
    moments = {}
    for step in range(5):
        for value in (ours, theirs):
            torch.autograd.backward(((value - 0.3 * step) ** 2).sum())
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        adamw({"x": ours}, moments, rate=0.1)
        optimiser.step()
        optimiser.zero_grad()
        assert torch.equal(ours, theirs) and ours.grad is None


def test_a_step_does_not_import_the_compiler():
    source = """
import sys, torch
from omnipersona_cli.engine.optimise import adamw
rows = torch.ones(2, 3, requires_grad=True)
rows.grad = torch.ones(2, 3)
adamw({"x": rows}, {}, rate=0.1)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", source], check=True)


class OnTheDevice:
    """A backend whose tokens are on a device that is not the CPU. "meta" stands for one: what is on
    it has shapes and no numbers, and mixing it with the CPU fails as it does on a GPU."""

    norm_limit = 10.0

    def loss(self, batch, tokens, *, seed, at_once=0):
        return {"understand": Told.apply(tokens.id, tokens.und, tokens.gen)}


class Told(torch.autograd.Function):
    """A loss that can be told although its tokens have no numbers."""

    @staticmethod
    def forward(context, *rows):
        context.save_for_backward(*rows)
        return torch.ones(())

    @staticmethod
    def backward(context, gradient):
        return tuple(torch.empty_like(rows) for rows in context.saved_tensors)


def test_a_resumed_run_goes_on_where_the_tokens_live(tmp_path):
    rows = {key: torch.zeros(2, 3) for key in ("id", "und", "gen")}
    moments = {f"{key}|{name}": torch.zeros(2, 3) for key in rows for name in ("mean", "square")}
    moments |= {f"{key}|count": torch.tensor(3.0) for key in rows}
    checkpoint = RunState(
        step=3,
        tokens=rows,
        best={key: value.clone() for key, value in rows.items()},
        moments=moments,
        random=torch.get_rng_state(),
    )
    write_checkpoint(checkpoint, tmp_path)
    start = from_named_tensors("bo", {key: value.to("meta") for key, value in rows.items()})
    saved = []
    result = optimise(
        OnTheDevice(),
        start,
        {"yes": [None]},
        HeldOut(),
        Hyperparameters(steps=6, batch_size=1, learning_rate=0.1),
        resumed=read_checkpoint(tmp_path),
        save=saved.append,
    )
    last = saved[-1]
    everything = [*named_tensors(result.tokens).values(), *last.tokens.values()]
    everything += last.best.values()
    everything += [value for key, value in last.moments.items() if not key.endswith("|count")]
    assert last.step == 6 and {value.device.type for value in everything} == {"meta"}
    assert float(last.moments["und|count"]) == 6, "torch reads its counts on the CPU"


@pytest.mark.parametrize("after", [3, 6, 7])
def test_an_interrupted_run_ends_in_the_same_bits(school, tmp_path, after):
    backend, start, groups, held_out = school
    whole = optimise(backend, start, groups, held_out, HYPER)

    def stop(event):
        if event.phase == "learning" and event.step == after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        optimise(
            backend,
            start,
            groups,
            held_out,
            HYPER,
            save=lambda state: write_checkpoint(state, tmp_path),
            on_progress=stop,
        )
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == after
    resumed = optimise(backend, start, groups, held_out, HYPER, resumed=checkpoint)
    assert resumed.checks == whole.checks and resumed.best_step == whole.best_step
    assert resumed.losses == whole.losses
    for key, value in named_tensors(whole.tokens).items():
        assert torch.equal(value, named_tensors(resumed.tokens)[key])


class Stop(Exception):
    """Raised by whoever watches and has seen enough."""


@pytest.mark.parametrize(
    ("callback", "after"),
    [("on_progress", 1), ("on_progress", 3), ("on_progress", 6), ("on_check", 0), ("on_check", 6)],
)
def test_a_run_that_its_watcher_stops_loses_no_step(school, tmp_path, callback, after):
    backend, start, groups, held_out = school
    whole = optimise(backend, start, groups, held_out, HYPER)

    def stop(*events):
        event = events[1] if callback == "on_check" else events[0]
        if event.step == after and getattr(event, "phase", "learning") == "learning":
            raise Stop

    with pytest.raises(Stop):
        optimise(
            backend,
            start,
            groups,
            held_out,
            HYPER,
            save=lambda found: write_checkpoint(found, tmp_path),
            **{callback: stop},
        )
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == after
    resumed = optimise(backend, start, groups, held_out, HYPER, resumed=checkpoint)
    assert resumed.checks == whole.checks and resumed.losses == whole.losses
    for key, value in named_tensors(whole.tokens).items():
        assert torch.equal(value, named_tensors(resumed.tokens)[key])


@pytest.mark.parametrize("step", [0, 4, 12])
def test_a_check_that_is_cut_off_is_made_up_for(school, tmp_path, step):
    backend, start, groups, held_out = school
    whole = optimise(backend, start, groups, held_out, HYPER)
    reached = [-1]

    def stop(event):
        if event.phase == "learning":
            reached.append(event.step)
        if event.phase == "checking" and reached[-1] == step - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimise(
            backend,
            start,
            groups,
            held_out,
            HYPER,
            save=lambda found: write_checkpoint(found, tmp_path),
            on_progress=stop,
        )
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == step
    assert len(checkpoint.checks) == len([one for one in whole.checks if one.step < step])
    resumed = optimise(backend, start, groups, held_out, HYPER, resumed=checkpoint)
    assert resumed.checks == whole.checks
    for key, value in named_tensors(whole.tokens).items():
        assert torch.equal(value, named_tensors(resumed.tokens)[key])


def test_what_is_to_go_is_told_after_the_first_step_where_it_is_long(school, monkeypatch):
    backend, start, groups, held_out = school
    notes = []
    clock = iter(range(0, 100_000, 100))
    monkeypatch.setattr(
        "omnipersona_cli.engine.optimise.time",
        SimpleNamespace(monotonic=lambda: float(next(clock))),
    )
    optimise(
        backend, start, groups, held_out, HYPER, on_progress=lambda event: notes.append(event.note)
    )
    told = [note for note in notes if note]
    assert len(told) == 1 and "to go" in told[0]


def test_a_loss_that_is_no_number_stops_the_run_before_it_moves_anything(school, monkeypatch):
    backend, start, groups, held_out = school
    saved, real, steps = [], backend.loss, []

    def loss(*args, **more):
        found = real(*args, **more)
        if torch.is_grad_enabled():  # a check looks on
            steps.append(1)
        broken = float("nan") if len(steps) == 6 else 1.0
        return {task: one * broken for task, one in found.items()}

    monkeypatch.setattr(backend, "loss", loss)
    with pytest.raises(PersonaError, match="step 6 is no number") as raised:
        optimise(backend, start, groups, held_out, HYPER, save=saved.append)
    assert "--dtype" in raised.value.hint
    assert all(bool(it.isfinite().all()) for it in saved[-1].tokens.values())


def test_a_held_out_score_that_is_no_number_is_told_before_the_first_step(school, monkeypatch):
    backend, start, groups, held_out = school
    saved, real = [], backend.loss

    def loss(*args, **more):
        broken = 1.0 if torch.is_grad_enabled() else float("inf")
        return {task: one * broken for task, one in real(*args, **more).items()}

    monkeypatch.setattr(backend, "loss", loss)
    with pytest.raises(PersonaError, match="held-out score of step 0 is no number"):
        optimise(backend, start, groups, held_out, HYPER, save=saved.append)
    assert saved == []


def test_the_best_tokens_by_held_out_score_are_kept(school):
    backend, start, groups, held_out = school
    result = optimise(backend, start, groups, held_out, HYPER)
    assert result.best_step == max(result.checks, key=lambda check: check.score).step
    assert result.checks[-1].score > result.checks[0].score


def test_tokens_stay_within_the_norm_limit(school):
    backend, start, groups, held_out = school
    backend.norm_limit = 0.5
    result = optimise(backend, start, groups, held_out, HYPER)
    for rows in named_tensors(result.tokens).values():
        assert float(rows.norm(dim=1).max()) <= 0.5001


def test_the_loop_runs_no_frozen_encoder(school):
    backend, start, groups, held_out = school
    before = backend.encoded
    optimise(backend, start, groups, held_out, HYPER)
    assert backend.encoded == before


def test_a_checkpoint_that_cannot_be_read_is_none(tmp_path):
    assert read_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a checkp")
    assert read_checkpoint(tmp_path) is None
