"""A backend whose weights do only some of the tasks: what the others would be asked is left out."""

from dataclasses import replace

import pytest

from omnipersona_cli.engine import Keeping, Settings, ask, gen, learn
from omnipersona_cli.errors import TaskError
from omnipersona_cli.testing import SketchBackend, drawing


class Painter(SketchBackend):
    """A sketch that paints and edits, and fails where it is asked something."""

    info = replace(SketchBackend.info, tasks={"generate": "native", "edit": "native"})

    def say(self, *words, **more):
        raise TaskError("it does not understand")

    def score(self, *words, **more):
        raise TaskError("it does not understand")


def test_a_painter_learns_and_paints_without_being_asked_anything(sketch, bo, library):
    painter = Painter()
    learned = learn(bo, Settings(steps=3, seed=1), Keeping(library=library), backend=painter)
    assert learned.report.lessons and not learned.report.calibration.positives
    (picture,) = gen("<bo> with its toy", backend=painter, library=library, seed=1)
    assert picture.about["rewritten"] == "<bo> with its toy", "replay needs a reader"


def test_what_these_weights_do_not_do_is_said_with_the_place_that_says_which_do(sketch, library):
    with pytest.raises(TaskError, match="does not answer questions with these weights") as caught:
        ask("what is it?", image=drawing("red", 1), backend=Painter(), library=library)
    assert caught.value.hint.endswith("op backends show sketch")
