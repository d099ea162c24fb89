"""Position and length bias: flips between orders, first-place wins, accuracy by length."""

import math
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import Categories, column, credit, mean_by_category
from grm_jax.evals.bootstrap import DRAWS, Resampler
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging import votes

# Bins of log2(length of the best response / length of the longest other one).
EDGES = (-1.0, -0.25, 0.25, 1.0)
BINS = ("under half", "shorter", "similar", "longer", "over twice")
Values = Sequence[tuple[JudgedComparison, float]]


def _share(values: Values, draws: int) -> dict | None:
    """The mean of the values with its interval and count; None without values."""
    if not values:
        return None
    estimate = Resampler.of([j for j, _ in values], draws).mean([value for _, value in values])
    return estimate.as_json() | {"n": len(values)}


def position(judged: Sequence[JudgedComparison], draws: int = DRAWS) -> dict:
    """Measures position bias.

    Returns:
      flips: share of the comparisons judged in several orders whose orders name different winners.
      first_place: share of decided orders whose winner was shown first, averaged per comparison.
      first_chance: the expected first_place without position bias.
    """
    several = [j for j in judged if j.comparison.n > 1]
    flips = [(j, float(flip)) for j in several if (flip := votes.flipped(j.views)) is not None]
    first = [
        (j, float(np.mean([best == order[0] for order, best in decided])))
        for j in several
        if (decided := votes.decided(j.views))
    ]
    chance = float(np.mean([1 / j.comparison.n for j, _ in first])) if first else None
    return {
        "flips": _share(flips, draws),
        "first_place": _share(first, draws),
        "first_chance": chance,
    }


def length(judged: Sequence[JudgedComparison], draws: int = DRAWS) -> dict:
    """Measures length bias.

    Returns:
      longest_picked: share of decided comparisons whose winner is the longest response.
      longest_right: share of comparisons whose labelled best is the longest response.
      by_ratio: accuracy (tie credit) by the best response's length over the longest other one's.
    """
    labelled = [j for j in judged if j.comparison.n > 1 and j.comparison.best is not None]
    picked = [
        (j, _is_longest(j, best)) for j in labelled if (best := votes.winner(j.scores)) is not None
    ]
    right = [(j, _is_longest(j, j.comparison.best)) for j in labelled]
    by_ratio = {}
    if labelled:
        bin_names = [BINS[np.searchsorted(EDGES, _log_ratio(j), side="right")] for j in labelled]
        credits, bins = column(map(credit, labelled)), Categories.of(bin_names)
        estimates = Resampler.of(labelled, draws).estimate(
            lambda weights_I: mean_by_category(credits, bins, weights_I)
        )
        by_ratio = {
            name: estimates[name].as_json() | {"n": bin_names.count(name)}
            for name in BINS
            if name in estimates
        }
    return {
        "longest_picked": _share(picked, draws),
        "longest_right": _share(right, draws),
        "by_ratio": by_ratio,
    }


def _is_longest(judged: JudgedComparison, index: int | None) -> float:
    """1/t if the response is one of the t longest, else 0."""
    sizes = [len(text) for text in judged.comparison.responses]
    longest = [i for i, size in enumerate(sizes) if size == max(sizes)]
    return 1 / len(longest) if index in longest else 0.0


def _log_ratio(judged: JudgedComparison) -> float:
    sizes = [len(text) + 1 for text in judged.comparison.responses]
    best = sizes.pop(judged.comparison.best or 0)
    return math.log2(best / max(sizes))
