"""95% intervals by the bootstrap, and paired tests between two runs.

What is drawn is the prompt (all its comparisons together), within each subset, so that the subsets keep their sizes.
Axes: I comparisons, C prompts, R draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from grm_jax.evals.benchmark import Metrics
from grm_jax.evals.judged import JudgedComparison

DRAWS = 1000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its interval; the interval is None where too few draws have a value."""

    value: float
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict:
        """nan becomes null."""
        return {
            "value": None if math.isnan(self.value) else self.value,
            "low": self.low,
            "high": self.high,
        }


class Resampler:
    """Draws weights for the comparisons of one benchmark; the same seed gives the same draws for every judge of it."""

    def __init__(self, judged: Sequence[JudgedComparison], draws: int = DRAWS, seed: int = 0):
        groups = list(dict.fromkeys(j.group for j in judged))
        at = {group: c for c, group in enumerate(groups)}
        self.of_I = np.array([at[j.group] for j in judged], dtype=np.int64)
        strata: dict[str, set[int]] = {}
        for j in judged:
            strata.setdefault(j.subset, set()).add(at[j.group])
        # A prompt that has comparisons in several subsets is drawn with the first of them.
        taken: set[int] = set()
        self.strata = []
        for members in strata.values():
            members = members - taken
            taken |= members
            if members:
                self.strata.append(np.array(sorted(members)))
        self.count, self.draws, self.seed = len(groups), draws, seed

    def weights(self):
        """Yields R arrays of one weight per comparison."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.draws):
            weights_C = np.zeros(self.count)
            for members in self.strata:
                drawn = rng.integers(len(members), size=len(members))
                weights_C[members] = np.bincount(drawn, minlength=len(members))
            yield weights_C[self.of_I]

    def ones(self) -> np.ndarray:
        """Weights of one: the published number."""
        return np.ones(len(self.of_I))

    def estimate(self, metrics: Callable[[np.ndarray], Metrics]) -> dict[str, Estimate]:
        """Each metric with its interval."""
        values = metrics(self.ones())
        drawn: dict[str, list[float]] = {name: [] for name in values}
        with np.errstate(invalid="ignore", divide="ignore"):
            for weights_I in self.weights():
                for name, value in metrics(weights_I).items():
                    drawn[name].append(value)
        return {name: Estimate(value, *interval(drawn[name])) for name, value in values.items()}

    def difference(self, first: Callable, second: Callable) -> dict[str, dict]:
        """second minus first, on the same draws, with the interval and the two-sided p-value of no difference."""
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = first(self.ones()), second(self.ones())
            names = [name for name in a if name in b]
            drawn: dict[str, list[float]] = {name: [] for name in names}
            for weights_I in self.weights():
                x, y = first(weights_I), second(weights_I)
                for name in names:
                    drawn[name].append(y[name] - x[name])
        return {
            name: Estimate(b[name] - a[name], *interval(drawn[name])).as_json()
            | {"p": p_value(drawn[name])}
            for name in names
        }


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float | None, float | None]:
    """The percentile interval of draws; None where fewer than half of them have a value."""
    there = np.array([value for value in values if not math.isnan(value)])
    if len(there) < max(2, len(values) / 2):
        return None, None
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided bootstrap p-value of a difference of zero, at least 1/(draws + 1).

    Draws at exactly zero count on both sides, so two equal runs have p = 1.
    """
    there = np.array([value for value in differences if not math.isnan(value)])
    if not len(there):
        return None
    below, above = (there <= 0).sum() + 1, (there >= 0).sum() + 1
    return float(min(1.0, 2 * min(below, above) / (len(there) + 1)))


def mcnemar(first_I: Sequence[float], second_I: Sequence[float]) -> dict:
    """Exact McNemar test on comparisons that one run got right and the other wrong (credits of 1 and 0 only)."""
    from scipy.stats import binomtest

    gained = sum(a == 0 and b == 1 for a, b in zip(first_I, second_I))
    lost = sum(a == 1 and b == 0 for a, b in zip(first_I, second_I))
    p = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    return {"gained": int(gained), "lost": int(lost), "p": float(p)}
