"""Area under the ROC curve with weights."""

from __future__ import annotations

import math

import numpy as np


def roc_auc(
    scores_I: np.ndarray, positive_I: np.ndarray, weights_I: np.ndarray | None = None
) -> float:
    """The probability that a positive scores above a negative, ties counting half; nan where one of the classes is missing.

    Equal to sklearn.metrics.roc_auc_score with sample_weight; written out because a bootstrap calls it thousands of times.
    """
    weights_I = np.ones(len(scores_I)) if weights_I is None else weights_I
    _, place_I = np.unique(scores_I, return_inverse=True)
    positive = np.bincount(place_I, weights_I * positive_I)
    negative = np.bincount(place_I, weights_I * ~positive_I.astype(bool))
    if not positive.sum() or not negative.sum():
        return math.nan
    below = np.cumsum(negative) - negative
    return float(np.dot(positive, below + negative / 2) / (positive.sum() * negative.sum()))
