"""Agreement of a judge with people on the ranking of models (PPE): Bradley-Terry and win rates.

Axes: I comparisons of two models; M models.
"""

import math

import numpy as np


def win_matrix(
    first_I: np.ndarray,
    second_I: np.ndarray,
    share_I: np.ndarray,
    weights_I: np.ndarray,
    num_models: int,
) -> np.ndarray:
    """Computes wins_MxM: the weight of the comparisons that the row's model won.

    first_I, second_I: model indices.  share_I: the first model's share of the win.
    """
    wins = np.zeros((num_models, num_models))
    np.add.at(wins, (first_I, second_I), weights_I * share_I)
    np.add.at(wins, (second_I, first_I), weights_I * (1 - share_I))
    return wins


def bradley_terry(wins_MxM: np.ndarray, prior: float = 0.1, steps: int = 200) -> np.ndarray:
    """Computes log strengths with mean 0 by the minorise-maximise iteration.

    prior: wins and losses added to every pair of models that met, so that a model that won
    everything has a finite rating.
    """
    met = (wins_MxM + wins_MxM.T) > 0
    wins = wins_MxM + prior * met
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(steps):
        pair_sums = strength[:, None] + strength[None, :]
        new = wins.sum(1) / np.maximum((games / pair_sums).sum(1), 1e-12)
        new = np.where(wins.sum(1) > 0, new, 1.0)
        new = new / math.exp(np.mean(np.log(new)))
        converged = np.max(np.abs(np.log(new / strength))) < 1e-7
        strength = new
        if converged:
            break
    return np.log(strength)


def model_agreement(
    first_I: np.ndarray,
    second_I: np.ndarray,
    truth_I: np.ndarray,
    judged_I: np.ndarray,
    weights_I: np.ndarray,
    num_models: int,
) -> dict[str, float]:
    """Correlates ratings (Spearman, Kendall) and win rates (Pearson, averaged over models).

    truth_I, judged_I: the first model's share of the win, by people and by the judge.
    """
    from scipy.stats import kendalltau, spearmanr

    true_wins_MxM, judged_wins_MxM = (
        win_matrix(first_I, second_I, share_I, weights_I, num_models)
        for share_I in (truth_I, judged_I)
    )
    ratings = bradley_terry(true_wins_MxM), bradley_terry(judged_wins_MxM)
    return {
        "models/spearman": float(spearmanr(*ratings).statistic),
        "models/kendall": float(kendalltau(*ratings).statistic),
        "models/row_pearson": _row_pearson(true_wins_MxM, judged_wins_MxM),
    }


def _row_pearson(true_wins_MxM: np.ndarray, judged_wins_MxM: np.ndarray) -> float:
    """Averages over models the correlation of true and judged win rates against the others."""
    correlations = []
    for m in range(len(true_wins_MxM)):
        met = (true_wins_MxM[m] + true_wins_MxM[:, m]) > 0
        if met.sum() > 1:
            rates = [
                wins[m, met] / (wins[m, met] + wins[met, m])
                for wins in (true_wins_MxM, judged_wins_MxM)
            ]
            if np.ptp(rates[0]) > 0 and np.ptp(rates[1]) > 0:
                correlations.append(np.corrcoef(*rates)[0, 1])
    return float(np.mean(correlations)) if correlations else math.nan
