"""Scores become thresholds, probabilities and "not sure"."""

import math

from omnipersona_cli.engine.calibrate import (
    UNCALIBRATED,
    UNSURE,
    auroc,
    balanced_accuracy,
    balanced_interval,
    calibrate,
    calibration_error,
    from_dict,
    left_out,
    recall_interval,
    settled_threshold,
)


def test_the_threshold_parts_the_sides_wherever_a_model_leans():
    for lean in (-20.0, 0.0, 20.0):
        here = [lean + score for score in (3.0, 4.0, 5.0)]
        elsewhere = [lean + score for score in (-3.0, -4.0, -5.0)]
        threshold = settled_threshold(here, elsewhere)
        assert balanced_accuracy(here, elsewhere, threshold) == 1.0


def test_inside_a_wide_gap_the_threshold_keeps_to_two_to_one():
    assert abs(settled_threshold([2.0, 3.0], [-8.0, -9.0]) - math.log(2)) < 0.1
    assert 1.0 < settled_threshold([5.0, 6.0], [0.9, 0.0]) < 3.0


def test_one_odd_picture_among_many_does_not_move_the_threshold():
    here, elsewhere = [3.0, 4.0, 5.0] * 10, [-4.0, -5.0, -6.0] * 10
    assert abs(settled_threshold([*here, -1.9], elsewhere)) < 1.0, "not half way"
    assert -3.0 < settled_threshold([3.0, 4.0, -1.9], elsewhere) < -1.9, "among few it does"


def test_overlapping_scores_give_the_balanced_accuracy_of_the_threshold():
    assert math.isclose(balanced_accuracy([1.0, 2.0, 4.0], [0.0, 1.5], 1.7), 0.5 * (2 / 3 + 1.0))
    assert 0.0 < settled_threshold([1.0, 2.0, 4.0], [0.0, 1.5]) < 2.0


def test_auroc_counts_pairs_and_ties_by_half():
    assert auroc([1.0, 2.0], [1.0, 0.0]) == 0.875


def test_between_the_sides_the_answer_is_not_sure():
    calibration = calibrate([4.0, 5.0, 6.0], [-4.0, -5.0, -6.0])
    assert calibration.verdict(5.0) == "yes"
    assert calibration.verdict(-5.0) == "no"
    assert calibration.verdict(calibration.threshold + 0.01) == "not sure"
    assert math.isclose(calibration.probability(calibration.threshold), 0.5)
    assert math.isclose(calibration.probability(calibration.high), 1 - UNSURE)


def test_few_pictures_do_not_sound_sure():
    assert calibrate([10.0], [-10.0]).probability(10.0) < 0.85
    many = calibrate([10.0] * 40, [-10.0] * 40)
    assert many.probability(10.0) > 0.95


def test_sides_that_cannot_be_told_apart_are_weak():
    calibration = calibrate([0.0, 1.0], [0.0, 1.0])
    assert calibration.weak and math.isfinite(calibration.temperature)


def test_without_one_side_nothing_is_calibrated():
    assert calibrate([1.0], []) == UNCALIBRATED
    assert from_dict({}) == UNCALIBRATED
    assert from_dict({**UNCALIBRATED.to_dict(), "temperature": float("nan")}) == UNCALIBRATED


def test_a_calibration_survives_the_header():
    calibration = calibrate([4.0, 5.0], [-4.0])
    assert from_dict(calibration.to_dict()) == calibration


def test_a_calibration_is_judged_on_pictures_that_it_was_not_set_on():
    said = left_out([[4.0, 4.2], [5.0, 5.1], [-6.0, -6.1]], [-4.0, -5.0, -6.0])
    assert [there for _, there in said] == [True] * 6 + [False] * 3
    assert said[4][0] < 0.2, "the odd photo out was not there to lower the threshold"
    assert left_out([[4.0]], [-4.0, -5.0]) == []


def test_calibration_error_is_the_gap_between_said_and_true():
    assert math.isclose(calibration_error([(0.9, True), (0.1, False)]), 0.1)
    assert calibration_error([(0.0, True), (1.0, False), (1.0, False)]) == 1.0
    assert calibration_error([(0.9, True)]) is None


def test_a_perfect_score_on_few_pictures_keeps_a_wide_interval():
    low, high = recall_interval(3, 3)
    assert high == 1.0 and math.isclose(low, 0.4385, abs_tol=1e-3)
    few, many = balanced_interval((3, 3), (14, 14)), balanced_interval((300, 300), (1400, 1400))
    assert few[1] == many[1] == 1.0 and few[0] < 0.75 < 0.98 < many[0]
    low, high = balanced_interval((2, 4), (3, 4))
    assert low < 0.625 < high
