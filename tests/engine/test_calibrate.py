"""Scores become thresholds, probabilities and "not sure"."""

import math

from omnipersona_cli.engine.calibrate import (
    UNCALIBRATED,
    UNSURE,
    auroc,
    best_threshold,
    calibrate,
    from_dict,
)


def test_the_threshold_lies_in_the_middle_of_the_gap():
    assert best_threshold([3.0, 5.0], [-1.0, 0.0]) == (1.5, 1.0)


def test_overlapping_scores_give_the_best_balanced_accuracy():
    threshold, accuracy = best_threshold([1.0, 2.0, 4.0], [0.0, 1.5])
    assert 1.5 < threshold < 4.0 or 0.0 < threshold < 1.0
    assert math.isclose(accuracy, 0.5 * (2 / 3 + 1.0))


def test_auroc_counts_pairs_and_ties_by_half():
    assert auroc([1.0, 2.0], [1.0, 0.0]) == 0.875


def test_between_the_sides_the_answer_is_not_sure():
    calibration = calibrate([4.0, 5.0, 6.0], [-4.0, -5.0, -6.0])
    assert calibration.verdict(5.0) == "yes"
    assert calibration.verdict(-5.0) == "no"
    assert calibration.verdict(0.0) == "not sure"
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
