"""Does a judge rank models as people do? Bradley-Terry ratings and win rates from true and from given wins (PPE)."""

from __future__ import annotations

import math

import numpy as np


def win_matrix(first_I, second_I, share_I, weights_I, count: int) -> np.ndarray:
    """wins[a, b]: weight of the comparisons that model a won against model b; share_I is the first model's share."""
    wins = np.zeros((count, count))
    np.add.at(wins, (first_I, second_I), weights_I * share_I)
    np.add.at(wins, (second_I, first_I), weights_I * (1 - share_I))
    return wins


def bradley_terry(wins: np.ndarray, prior: float = 0.1, steps: int = 200) -> np.ndarray:
    """Log strengths by the minorise-maximise iteration, mean 0.

    prior: wins and losses that each pair of models that met gets on top, so that a model that won everything has a finite rating.
    """
    met = (wins + wins.T) > 0
    wins = wins + prior * met
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(steps):
        new = wins.sum(1) / np.maximum(
            (games / (strength[:, None] + strength[None, :])).sum(1), 1e-12
        )
        new = np.where(wins.sum(1) > 0, new, 1.0)
        new = new / math.exp(np.mean(np.log(new)))
        if np.max(np.abs(np.log(new / strength))) < 1e-7:
            strength = new
            break
        strength = new
    return np.log(strength)


def model_agreement(first_I, second_I, truth_I, given_I, weights_I, count: int) -> dict[str, float]:
    """Spearman and Kendall correlation of ratings, and the mean correlation of rows of the win-rate matrices."""
    from scipy.stats import kendalltau, spearmanr

    true = win_matrix(first_I, second_I, truth_I, weights_I, count)
    given = win_matrix(first_I, second_I, given_I, weights_I, count)
    ratings = bradley_terry(true), bradley_terry(given)
    return {
        "models/spearman": float(spearmanr(*ratings).statistic),
        "models/kendall": float(kendalltau(*ratings).statistic),
        "models/row_pearson": _row_pearson(true, given),
    }


def _row_pearson(true: np.ndarray, given: np.ndarray) -> float:
    """Mean over models of the correlation between its true and given win rates against the models it met."""
    found = []
    for a in range(len(true)):
        met = (true[a] + true[:, a]) > 0
        if met.sum() > 1:
            rates = [w[a, met] / (w[a, met] + w[met, a]) for w in (true, given)]
            if np.ptp(rates[0]) > 0 and np.ptp(rates[1]) > 0:
                found.append(np.corrcoef(*rates)[0, 1])
    return float(np.mean(found)) if found else math.nan
