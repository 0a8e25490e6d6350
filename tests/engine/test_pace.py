"""How long learning takes is told before it begins, where it is long."""

import pytest

from omnipersona_cli.engine import pace
from omnipersona_cli.engine.material import gather
from omnipersona_cli.engine.pace import Pace, measured, spoken, told, whole
from omnipersona_cli.engine.settings import Hyperparameters
from omnipersona_cli.engine.tokens import copy_of, named_tensors

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
    assert list(told(20.0, HYPER, quick, "janus")) == []
    slow = Pace(picture=5.0, step=60.0, reading=3.0)
    (line,) = told(3600.0, HYPER, slow, "janus")
    assert "about 60 min" in line and "1,000 steps of 8 lessons at 60 s a step" in line
    _, quicker = told(17 * 3600.0, HYPER, slow, "janus")
    assert "--steps 58 takes about an hour" in quicker and "-b nano" in quicker
    *_, own = told(17 * 3600.0, HYPER, slow, "nano")
    assert "-b nano" not in own


def test_a_lesson_of_each_task_is_measured_and_the_tokens_stay(sketch, bo):
    material = gather(bo, seed=0, backend="sketch")
    start = sketch.new_tokens("bo", understand=4, generate=4, photos=material.positives, seed=0)
    kept = named_tensors(copy_of(start))
    seen = []
    found = measured(sketch, start, material, HYPER, on_step=lambda *step: seen.append(step))
    assert found is not None and min(found.picture, found.step, found.reading) > 0
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all(bool((kept[key] == value).all()) for key, value in named_tensors(start).items())
    more = whole(found, material, HYPER, checks=7, checked=52)
    assert more > whole(found, material, HYPER, checks=0, checked=52) > 1000 * found.step


def test_a_slow_lesson_is_not_measured_twice(sketch, bo, monkeypatch):
    material = gather(bo, seed=0, backend="sketch")
    start = sketch.new_tokens("bo", understand=4, generate=4, photos=material.positives, seed=0)
    sizes = []

    def seconds(backend, start, ready, hyper):
        sizes.append(len(ready))
        return 30.0

    monkeypatch.setattr(pace, "_seconds", seconds)
    found = measured(sketch, start, material, HYPER)
    assert found is not None and found.step == 8 * 30.0 and sizes == [1, 1, 1]
