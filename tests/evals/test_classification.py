"""AUC and calibration of meta scores."""

import numpy as np
import pytest

from grm_jax.evals.classification import auc_within, quality


def test_quality_of_a_calibrated_and_of_a_useless_score():
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, 4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-scores))).astype(float)
    groups = [f"c{i // 4}" for i in range(4000)]
    good = quality(scores, labels, groups)
    assert good["auc"] > 0.8 and good["auc_within"] > 0.8 and good["ece"] < 0.04
    useless = quality(rng.normal(0, 2, 4000), labels, groups)
    assert abs(useless["auc"] - 0.5) < 0.03 and abs(useless["auc_within"] - 0.5) < 0.03
    assert useless["ece"] > 0.2
    one_class = quality(scores[:5], np.ones(5), groups[:5])
    assert one_class["auc"] is None and one_class["auc_within"] is None


def test_a_score_of_difficulty_has_an_auc_but_none_within_comparisons():
    # Two easy comparisons (mostly right, high scores) and two hard ones; within each the score is
    # constant.
    labels = np.array([1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0], float)
    scores = np.repeat([2.0, 2.0, -2.0, -2.0], 4)
    groups = np.repeat(["a", "b", "c", "d"], 4)
    measured = quality(scores, labels, groups)
    assert measured["auc"] == pytest.approx((7 * 7 + 0.5 * 7 * 1 + 0.5 * 1 * 7) / 64)
    assert measured["auc_within"] == 0.5  # of a and c; b and d have one class each
    # In a the wrong critique is above the right ones, in c the right one above the wrong ones.
    scores[3], scores[11] = 3.0, -1.0
    assert auc_within(scores, labels, groups) == 0.5
    scores[3] = 1.0
    assert auc_within(scores, labels, groups) == 1.0


def test_the_calibration_table_counts_every_critique():
    scores = np.log([1 / 3, 1 / 3, 3.0, 3.0])  # probabilities 0.25 and 0.75
    measured = quality(scores, np.array([0.0, 1.0, 1.0, 1.0]), ["a"] * 4)
    assert measured["calibration"] == [
        {"probability": pytest.approx(0.25), "right": 0.5, "count": 2},
        {"probability": pytest.approx(0.75), "right": 1.0, "count": 2},
    ]
    assert measured["ece"] == pytest.approx(0.25)
