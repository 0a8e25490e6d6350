"""The toy judge on pictures whose truth is known."""

import random
from dataclasses import replace

import pytest

from omnipersona_cli.hookspecs import JudgeItem
from op_toy.attributes import ATTRIBUTES
from op_toy.dataset import words_of
from op_toy.drawing import render
from op_toy.judge import ToyJudge, same_words
from op_toy.world import draw_character, draw_picture

FIRST = 60_000_000


@pytest.fixture(scope="module")
def judge():
    return ToyJudge()


def mean(judge, items):
    verdicts = [judge.score(item) for item in items]
    assert not any(verdict.failed for verdict in verdicts)
    return sum(verdict.score for verdict in verdicts) / len(verdicts)


def cast(count=12):
    rng = random.Random(3)
    drawn = [draw_character(FIRST + n, held_out=True) for n in range(count)]
    return [draw_picture(rng, (who,)) for who in drawn]


def looks(picture):
    return {name: word for name, word in words_of(picture).items() if name in ATTRIBUTES}


def test_it_tells_the_concept_from_others_and_from_nobody(judge):
    pictures = cast()

    def items(shown):
        return [
            JudgeItem(kind="presence", images=(render(it),), truth=looks(own))
            for it, own in zip(shown, pictures, strict=True)
        ]

    assert mean(judge, items(pictures)) > 0.9
    assert mean(judge, items(pictures[1:] + pictures[:1])) < 0.5
    assert mean(judge, items([replace(it, characters=()) for it in pictures])) < 0.1


def test_an_edit_that_changes_the_scene_is_over_edited(judge):
    pairs = [(replace(it, characters=()), it) for it in cast()]

    def items(results):
        return [
            JudgeItem(kind="edit-sc", images=(render(before), render(after)), truth=looks(wanted))
            for (before, wanted), after in zip(pairs, results, strict=True)
        ]

    elsewhere = [replace(it, scene="space" if it.scene != "space" else "snow") for _, it in pairs]
    assert mean(judge, items([it for _, it in pairs])) > 0.85
    assert mean(judge, items([it for it, _ in pairs])) < 0.6
    assert mean(judge, items(elsewhere)) < 0.6


def test_parg_wants_everything(judge):
    picture = cast(1)[0]
    right = {"scene": picture.scene}
    wrong = right | {
        "thing": "boat" if not picture.thing or picture.thing.what != "boat" else "car"
    }
    image = (render(picture),)
    assert judge.score(JudgeItem(kind="parg", images=image, truth=right)).score == 1
    assert judge.score(JudgeItem(kind="parg", images=image, truth=wrong)).score == 0
    assert judge.score(JudgeItem(kind="parg", images=image)).failed


def test_answers_are_right_half_right_or_wrong():
    assert same_words("a red ball", "Red ball.") == 1
    assert same_words("a red ball", "it is a red ball") == 0.5
    assert same_words("a red ball", "a blue car") == 0
    assert same_words("a red ball", "") == 0
