"""The model is its own critic: what it recognises decides which try is kept."""

import pytest

from omnipersona_cli.engine.recognise import best_of, can_recognise, presence, recognised
from omnipersona_cli.engine.request import open_request
from omnipersona_cli.testing import drawing


@pytest.fixture
def asked(learned):
    return lambda text: open_request(
        text, backend=learned.backend, library=learned.library, task="edit"
    )


def test_verdict_odds_and_probability_agree(asked):
    request = asked("add <bo>")
    (bo,) = request.concepts
    verdict, odds = presence(request, bo, drawing("red", 99))
    assert verdict == "yes" and odds > 0 and recognised(request, drawing("red", 99))["bo"] > 0.5
    verdict, odds = presence(request, bo, drawing("blue", 99))
    assert verdict == "no" and odds < 0 and recognised(request, drawing("blue", 99))["bo"] < 0.5


def test_the_best_recognised_is_kept_and_for_a_removal_the_least(asked):
    pictures = [drawing("blue", 99), drawing("red", 99), drawing("green", 99)]
    assert best_of(asked("add <bo>"), pictures) == 1
    assert best_of(asked("remove <bo>"), pictures, gone=True) != 1


def test_of_two_concepts_the_one_that_is_recognised_least_counts(asked):
    request = asked("add <bo> and <mam>")
    pictures = [drawing("red", 99), drawing("blue", 99)]
    least = [
        min(presence(request, tokens, picture)[1] for tokens in request.concepts)
        for picture in pictures
    ]
    assert least[0] != least[1]
    assert best_of(request, pictures) == least.index(max(least))


def test_where_nothing_can_be_recognised_the_first_is_kept(asked):
    request = asked("add a cat")
    assert not can_recognise(request) and recognised(request, drawing("red", 99)) == {}
    assert best_of(request, [drawing("blue", 99), drawing("red", 99)]) == 0
