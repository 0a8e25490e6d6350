"""The formulas, against figures worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from omnipersona_cli.bench import metrics
from omnipersona_cli.bench.methods import described, facts_in_context, shared
from omnipersona_cli.testing import SketchBackend, drawing


@pytest.mark.parametrize(
    ("answer", "strict", "compat"),
    [
        ("Yes, it is.", True, True),
        ("no", False, False),
        ("I saw it yesterday, no", False, True),
        ("not sure", None, False),  # "not" holds a "no"
        ("nothing", None, False),
        ("", None, None),
    ],
)
def test_yes_is_a_word_in_strict_and_a_substring_in_compat(answer, strict, compat):
    assert metrics.said_yes(answer, "strict") is strict
    assert metrics.said_yes(answer, "compat") is compat


def test_recognition_weighs_both_sides_alike():
    assert metrics.balanced([1, 1, 1, 0], [0, 1]) == pytest.approx(0.625)
    assert metrics.balanced([1], []) is None


def test_bleu_by_hand():
    # words: 2 of 3 unigrams, no bigram (0.1 of 2), equal length
    expected = math.exp(0.7 * math.log(2 / 3) + 0.3 * math.log(0.1 / 2))
    assert metrics.bleu("a red ball", "a blue ball", words=True) == pytest.approx(expected)
    # characters: 2 of 3, then 1 of 2
    expected = math.exp(0.7 * math.log(2 / 3) + 0.3 * math.log(1 / 2))
    assert metrics.bleu("abc", "abd", words=False) == pytest.approx(expected)
    # too short: brevity penalty exp(1 - 3/1); a lone word has no bigram: 0.1 of 1
    expected = math.exp(1 - 3) * math.exp(0.3 * math.log(0.1))
    assert metrics.bleu("a red ball", "ball", words=True) == pytest.approx(expected)
    assert metrics.bleu("a red ball", "a red ball", words=True) == pytest.approx(1)
    assert metrics.bleu("a red ball", "", words=True) == 0
    assert metrics.bleu("cat", "dug", words=False) == 0


def test_exact_forgives_articles_and_full_stops_alone():
    assert metrics.exact("a red ball", "Red ball.") == 1
    assert metrics.exact("a red ball", "a red balloon") == 0
    assert metrics.contains("B", "the answer is b") == 1


def test_intervals_hold_the_mean_and_shrink():
    few, many = [0.0, 1.0] * 3, [0.0, 1.0] * 50
    low, high = metrics.interval(few)
    assert low < 0.5 < high
    narrow = metrics.interval(many)
    assert narrow[1] - narrow[0] < (high - low) / 2
    assert metrics.interval([0.7, 0.7]) == pytest.approx((0.7, 0.7))
    assert metrics.interval(few) == metrics.interval(few)


def test_the_background_is_compared_outside_the_grown_mask():
    before = drawing("red", 1)
    after = before.copy()
    after.paste((0, 0, 0), (20, 20, 30, 30))
    mask = Image.new("L", before.size)
    mask.paste(255, (20, 20, 30, 30))
    where = metrics.outside(mask, before.size)
    assert not where[18, 20] and where[17, 20]
    assert metrics.ssim(before, before, where) == pytest.approx(1)
    assert metrics.ssim(before, after, where) == pytest.approx(1), "no window sees the edit"
    everywhere = np.ones_like(where)
    assert metrics.ssim(before, after, everywhere) < metrics.ssim(before, after, where)
    assert metrics.ssim(before, after, ~everywhere) is None


def test_without_decoupling_there_is_one_group():
    tokens = SketchBackend().new_tokens(
        "bo", understand=4, generate=4, photos=[drawing("red", 1)], seed=0
    )
    one = shared(tokens)
    assert one.und is one.gen and one.id is tokens.id


def test_a_rival_without_tokens_reads_plain_words():
    assert described("<bo> with its toy", "bo", "<bo> is a white cat.", "cat") == (
        "a white cat with its toy"
    )
    assert facts_in_context("bo", ["<bo>'s toy is a red ball", "<bo> lives in the forest"]) == (
        "its toy is a red ball. it lives in the forest."
    )
