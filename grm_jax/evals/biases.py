"""Does place or length decide? Flips between orders, wins of the response shown first, accuracy by length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    Categories,
    column,
    credit,
    mean_by_category,
    weighted_mean,
    winners,
)
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.judged import JudgedComparison

DRAWS = 500
# Bins of log2(length of the best response / length of the longest other one).
EDGES = (-1.0, -0.25, 0.25, 1.0)
BINS = ("under half", "shorter", "similar", "longer", "over twice")


def _share(rows: Sequence[tuple[JudgedComparison, float]]) -> dict | None:
    """The mean of values with its interval; None where there is nothing."""
    if not rows:
        return None
    values = column(value for _, value in rows)
    estimate = Resampler([j for j, _ in rows], DRAWS).estimate(
        lambda w: {"share": weighted_mean(values, w)}
    )["share"]
    return estimate.as_json() | {"n": len(rows)}


def position(judged: Sequence[JudgedComparison]) -> dict:
    """flips: share of comparisons, read in several orders, whose orders name different winners. first_place: share of
    decided orders won by the response shown first, averaged per comparison; first_chance: the same without any bias."""
    flips, first = [], []
    for j in judged:
        read = [
            (order, winners(scores))
            for order, scores in j.views
            if scores is not None and j.comparison.n > 1
        ]
        decided = [(order, won[0]) for order, won in read if len(won) == 1]
        if len(read) > 1:
            flips.append((j, float(len({won for _, won in decided}) > 1)))
        if decided:
            first.append((j, float(np.mean([won == order[0] for order, won in decided]))))
    chance = float(np.mean([1 / j.comparison.n for j, _ in first])) if first else None
    return {"flips": _share(flips), "first_place": _share(first), "first_chance": chance}


def length(judged: Sequence[JudgedComparison]) -> dict:
    """longest_picked: share of decided comparisons where the winner is the longest response; longest_right: the same of
    the labelled best; by_ratio: accuracy (tie credit) by how the best response's length compares to the longest other."""
    labelled = [j for j in judged if j.comparison.n > 1 and j.comparison.best is not None]
    picked = [
        (j, _is_longest(j, won[0]))
        for j in labelled
        if j.scores and len(won := winners(j.scores)) == 1
    ]
    right = [(j, _is_longest(j, j.comparison.best)) for j in labelled]
    found: dict = {"longest_picked": _share(picked), "longest_right": _share(right), "by_ratio": {}}
    if labelled:
        places = [int(np.searchsorted(EDGES, _log_ratio(j), side="right")) for j in labelled]
        values, parts = (
            column(credit(j) for j in labelled),
            Categories.of(BINS[place] for place in places),
        )
        estimates = Resampler(labelled, DRAWS).estimate(
            lambda w: mean_by_category(values, parts, w)
        )
        found["by_ratio"] = {
            name: estimates[name].as_json() | {"n": sum(BINS[p] == name for p in places)}
            for name in BINS
            if name in estimates
        }
    return found


def _is_longest(judged: JudgedComparison, index: int) -> float:
    sizes = [len(text) for text in judged.comparison.responses]
    longest = [i for i, size in enumerate(sizes) if size == max(sizes)]
    return 1 / len(longest) if index in longest else 0.0


def _log_ratio(judged: JudgedComparison) -> float:
    sizes = [len(text) + 1 for text in judged.comparison.responses]
    best = sizes.pop(judged.comparison.best)
    return math.log2(best / max(sizes))
