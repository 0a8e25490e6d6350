"""How long learning takes is told before it begins, where it is long."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from omnipersona_cli.engine import pace
from omnipersona_cli.engine.examine import examine
from omnipersona_cli.engine.material import gather
from omnipersona_cli.engine.memory import calibrate_memory
from omnipersona_cli.engine.pace import (
    Pace,
    Whole,
    examining,
    measured,
    painting,
    spoken,
    told,
    whole,
)
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from omnipersona_cli.testing import drawing
from omnipersona_cli.testing.sketch import SketchBackend

HYPER = Hyperparameters(steps=1000, batch_size=8, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2.25, "2.2 s"), (59.6, "60 s"), (100, "2 min"), (5400, "1 h 30 min"), (7200, "2 h"),
     (86_400 + 3600, "1 day 1 h"), (3 * 86_400, "3 days 0 h")],
)  # fmt: skip
def test_a_time_is_said_as_exactly_as_a_guess_is(seconds, said):
    assert spoken(seconds) == said


def test_what_is_soon_over_is_not_told_and_what_takes_hours_comes_with_a_way_out():
    quick = Pace(picture=0.1, step=0.01, reading=0.001)
    assert list(told(Whole(seconds=20.0), HYPER, quick, "janus")) == []
    slow = Pace(picture=5.0, step=60.0, reading=3.0)
    (line,) = told(Whole(seconds=3600.0, facts=600.0, card=300.0), HYPER, slow, "janus")
    assert "about 60 min" in line and "1,000 steps of 8 lessons at 60 s a step" in line
    assert "up to 10 min for facts" in line and "5 min for the report card" in line
    long = Whole(seconds=17 * 3600.0, card=600.0)
    _, quicker = told(long, HYPER, slow, "janus")
    assert "--steps 49 takes about 59 min" in quicker and "-b nano" in quicker
    *_, own = told(long, HYPER, slow, "nano")
    assert "-b nano" not in own


def test_a_lesson_of_each_task_is_measured_and_the_tokens_stay(sketch, bo):
    material = gather(bo, seed=0, backend="sketch")
    start = sketch.new_tokens("bo", understand=4, generate=4, photos=material.positives, seed=0)
    kept = named_tensors(copy_of(start))
    seen = []
    found = measured(sketch, start, material, HYPER, on_step=lambda *step: seen.append(step))
    assert found is not None and min(found.picture, found.step, found.reading) > 0
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]  # facts show no picture
    assert all(bool((kept[key] == value).all()) for key, value in named_tensors(start).items())
    more = whole(found, material, HYPER, checks=7, checked=52)
    less = whole(found, material, HYPER, checks=0, checked=52)
    assert more.seconds > less.seconds > 1000 * (found.step + found.facts)
    assert found.facts > 0 and less.facts == 1000 * pace.REHEARSED * found.facts


def test_a_slow_lesson_is_not_measured_twice(sketch, bo, monkeypatch):
    material = gather(bo, seed=0, backend="sketch")
    start = sketch.new_tokens("bo", understand=4, generate=4, photos=material.positives, seed=0)
    sizes = []

    def seconds(backend, start, ready, hyper):
        sizes.append(len(ready))
        return 30.0

    monkeypatch.setattr(pace, "_seconds", seconds)
    found = measured(sketch, start, material, HYPER)
    assert found is not None and found.step == 8 * 30.0 and sizes == [1, 1, 1, 1]


class Slow(SketchBackend):
    """Every answer, scored answer and step of a picture takes its time by the clock of the test."""

    now = 0.0

    def score(self, prompt, answers, *, image=None):
        self.now += 2.0 if image is None else 7.0
        return super().score(prompt, answers, image=image)

    def say(self, prompt, **chosen):
        self.now += 11.0
        yield from super().say(prompt, **chosen)

    def gen(self, prompt, *, on_step=None, **chosen):
        def step(done, total):
            self.now += 13.0
            if on_step is not None:
                on_step(done, total)

        self.now += 5.0
        yield from super().gen(prompt, on_step=step, **chosen)


def test_the_report_card_takes_about_as_long_as_was_told(bo, monkeypatch):
    slow = Slow()
    slow.info = replace(slow.info, steps=20)
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: slow.now))
    others = [drawing("blue", seed) for seed in range(8)]
    material = gather(replace(bo, negatives=others), seed=0, backend="sketch")
    start = slow.new_tokens("bo", understand=4, generate=4, photos=material.positives, seed=0)
    sample = painting(slow, start)
    assert sample == 5.0 + 20 * 13.0
    guess = examining(slow, start, material, samples=4, sample=sample)
    spent = slow.now
    assert spent < 0.2 * guess  # of what it takes, measuring is a small part
    examine(slow, start, material, samples=4, rising=False, on_progress=lambda event: None)
    calibrate_memory(slow, start, material)
    assert guess == pytest.approx(slow.now - spent, rel=0.1)
