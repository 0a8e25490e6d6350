"""The loop: balanced, seeded, and the same bits after an interruption."""

import os
import signal

import pytest
import torch

from omnipersona_cli.backend import Lesson
from omnipersona_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from omnipersona_cli.engine.optimise import (
    HeldOut,
    Settings,
    adamw,
    draw,
    group_of,
    optimise,
    rate_at,
    shares,
)
from omnipersona_cli.engine.tokens import named_tensors
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import SketchBackend, drawing

SETTINGS = Settings(steps=12, batch_size=8, learning_rate=0.05, checks=4, seed=3)


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
        batch = draw(groups, SETTINGS, step)
        answers = [lesson.answer for lesson in batch if lesson.task == "understand"]
        assert answers.count("yes") == answers.count("no") == 2
        assert {lesson.task for lesson in batch} == {"understand", "generate", "edit"}


def test_every_lesson_is_drawn_before_one_comes_again(school):
    _, _, groups, _ = school
    drawn = [
        id(it) for step in range(2) for it in draw(groups, SETTINGS, step) if it.task == "edit"
    ]
    assert len(set(drawn)) == 4


def test_the_rate_warms_up_and_falls():
    long = Settings(steps=100, batch_size=8, learning_rate=1.0)
    assert rate_at(0, long) < rate_at(5, long) > rate_at(99, long) > 0


def test_our_adamw_is_the_adamw_of_torch():
    ours = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    moments = {}
    for step in range(5):
        for value in (ours, theirs):
            torch.autograd.backward(((value - 0.3 * step) ** 2).sum() * 0.05)
        torch.testing.assert_close(ours.grad, theirs.grad)
        adamw({"x": ours}, moments, rate=0.1, decay=0.01)
        optimiser.step()
        optimiser.zero_grad()
        torch.testing.assert_close(ours, theirs)


class Stopped(Exception):
    """Something ends the process."""


@pytest.mark.parametrize("after", [3, 6, 7])
def test_an_interrupted_run_ends_in_the_same_bits(school, tmp_path, after):
    backend, start, groups, held_out = school
    whole = optimise(backend, start, groups, held_out, SETTINGS)

    def stop(event):
        if event.phase == "learning" and event.step == after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        optimise(
            backend,
            start,
            groups,
            held_out,
            SETTINGS,
            save=lambda it: write_checkpoint(it, tmp_path),
            on_progress=stop,
        )
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == after
    resumed = optimise(backend, start, groups, held_out, SETTINGS, resumed=checkpoint)
    assert resumed.checks == whole.checks and resumed.best_step == whole.best_step
    assert resumed.losses == whole.losses
    for key, value in named_tensors(whole.tokens).items():
        assert torch.equal(value, named_tensors(resumed.tokens)[key])


def test_the_best_tokens_by_held_out_score_are_kept(school):
    backend, start, groups, held_out = school
    result = optimise(backend, start, groups, held_out, SETTINGS)
    assert result.best_step == max(result.checks, key=lambda it: it.score).step
    assert result.checks[-1].score > result.checks[0].score


def test_tokens_stay_within_the_norm_limit(school):
    backend, start, groups, held_out = school
    backend.norm_limit = 0.5
    result = optimise(backend, start, groups, held_out, SETTINGS)
    for rows in named_tensors(result.tokens).values():
        assert float(rows.norm(dim=1).max()) <= 0.5001


def test_the_loop_runs_no_frozen_encoder(school):
    backend, start, groups, held_out = school
    before = backend.encoded
    optimise(backend, start, groups, held_out, SETTINGS)
    assert backend.encoded == before


def test_a_checkpoint_that_cannot_be_read_is_none(tmp_path):
    assert read_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a checkp")
    assert read_checkpoint(tmp_path) is None
