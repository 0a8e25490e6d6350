"""The model is its own critic: what it recognises decides which try is kept."""

import pytest

from omnipersona_cli.engine.recognise import best_of, can_recognise, odds_of, presence
from omnipersona_cli.engine.request import open_request
from omnipersona_cli.testing import drawing


@pytest.fixture
def asked(learned):
    return lambda text: open_request(
        text, backend=learned.backend, library=learned.library, task="edit"
    )


def test_verdict_and_odds_agree(asked):
    request = asked("add <bo>")
    (bo,) = request.concepts
    verdict, odds = presence(request, bo, drawing("red", 99))
    assert verdict == "yes" and odds > 0 and odds_of(request, drawing("red", 99)) == {"bo": odds}
    verdict, odds = presence(request, bo, drawing("blue", 99))
    assert verdict == "no" and odds < 0 and odds_of(request, drawing("blue", 99)) == {"bo": odds}


def test_the_best_recognised_is_kept_and_for_a_removal_the_least(asked):
    request = asked("add <bo>")
    tried = [odds_of(request, drawing(colour, 99)) for colour in ("blue", "red", "green")]
    assert best_of(tried) == 1
    assert best_of(tried, absent=("bo",)) == 0


def test_of_two_concepts_the_one_that_is_recognised_least_counts(asked):
    request = asked("add <bo> and <mam>")
    odds = odds_of(request, drawing("red", 99))
    assert set(odds) == {"bo", "mam"} and odds["bo"] > odds["mam"]
    assert best_of([{"bo": 9.0, "mam": -1.0}, {"bo": 1.0, "mam": 0.5}]) == 1
    gone = ("bo", "mam")
    assert best_of([{"bo": -9.0, "mam": 2.0}, {"bo": -1.0, "mam": 0.5}], absent=gone) == 1
    assert best_of([{"bo": -9.0, "mam": 2.0}, {"bo": 1.0, "mam": 9.0}], absent=("bo",)) == 0


def test_where_nothing_can_be_recognised_the_first_is_kept(asked):
    request = asked("add a cat")
    assert not can_recognise(request) and odds_of(request, drawing("red", 99)) == {}
    assert best_of([{}, {}]) == 0
