"""Metrics of a score that separates positives from negatives: ROC AUC and calibration.

Axes: N scored items.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def roc_auc(
    scores_N: np.ndarray, positive_N: np.ndarray, weights_N: np.ndarray | None = None
) -> float:
    """Computes the probability that a positive scores above a negative, ties counting half.

    Equals sklearn.metrics.roc_auc_score with sample_weight, without its overhead, because a
    bootstrap calls it thousands of times. Returns nan if one of the classes is missing.
    """
    weights_N = np.ones(len(scores_N)) if weights_N is None else weights_N
    _, place_N = np.unique(scores_N, return_inverse=True)
    positive = np.bincount(place_N, weights_N * positive_N)
    negative = np.bincount(place_N, weights_N * ~positive_N.astype(bool))
    if not positive.sum() or not negative.sum():
        return math.nan
    below = np.cumsum(negative) - negative
    return float(np.dot(positive, below + negative / 2) / (positive.sum() * negative.sum()))


def precision_recall_f1(
    positive_N: np.ndarray, predicted_N: np.ndarray, weights_N: np.ndarray
) -> tuple[float, float, float]:
    """Computes precision, recall and F1 of a boolean prediction; 0 where one is undefined."""
    hits = float(weights_N[positive_N & predicted_N].sum())
    predicted, positive = weights_N[predicted_N].sum(), weights_N[positive_N].sum()
    precision = float(hits / predicted) if predicted else 0.0
    recall = float(hits / positive) if positive else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def auc_within(scores_N: np.ndarray, labels_N: np.ndarray, groups: Sequence[str]) -> float | None:
    """Averages the AUC within each group over the groups that have both classes.

    For a meta reward model the groups are comparisons: guided voting chooses among the critiques of
    one comparison. The AUC over all critiques is also high where the scores only separate easy
    comparisons from hard ones. Returns None if no group has both classes.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    aucs = [roc_auc(scores_N[index], labels_N[index] > 0.5) for index in members.values()]
    aucs = [auc for auc in aucs if not math.isnan(auc)]
    return float(np.mean(aucs)) if aucs else None


def calibration(
    probabilities_N: np.ndarray, labels_N: np.ndarray, bins: int = 10
) -> tuple[list[dict], float]:
    """Computes the reliability table and the expected calibration error (ECE).

    Returns ([{"probability", "right", "count"}] of the bins that are not empty, ECE): the mean
    predicted probability of a bin, the share of positives in it, and its size.
    """
    bin_N = np.minimum((probabilities_N * bins).astype(int), bins - 1)
    table, error = [], 0.0
    for b in range(bins):
        inside = bin_N == b
        if inside.any():
            predicted, observed = (
                float(values[inside].mean()) for values in (probabilities_N, labels_N)
            )
            table.append({"probability": predicted, "right": observed, "count": int(inside.sum())})
            error += inside.mean() * abs(predicted - observed)
    return table, float(error)


def quality(logits_N: np.ndarray, labels_N: np.ndarray, groups: Sequence[str]) -> dict:
    """Measures a meta reward model: AUC overall and within comparisons, accuracy, loss, ECE.

    Args:
      logits_N: one score per critique.
      labels_N: 1 where the critique is correct, else 0.
      groups: the comparison of each critique.

    Returns:
      A JSON-ready dict; AUCs are None where a class is missing, accuracy is at logit 0.
    """
    table, error = calibration(1 / (1 + np.exp(-logits_N.astype(np.float64))), labels_N)
    positive_N = labels_N > 0.5
    auc = roc_auc(logits_N, positive_N)
    return {
        "auc": None if math.isnan(auc) else auc,
        "auc_within": auc_within(logits_N, labels_N, groups),
        "accuracy": float(((logits_N > 0) == positive_N).mean()),
        "loss": float(np.logaddexp(0, np.where(positive_N, -logits_N, logits_N)).mean()),
        "right_share": float(labels_N.mean()),
        "ece": error,
        "calibration": table,
        "count": len(labels_N),
    }
