"""95% confidence intervals by bootstrap over prompts, and paired tests between two runs.

All comparisons of a prompt are drawn together, and prompts are drawn within each subset, so subsets
keep their sizes. All draws have the same seed, so two judges of one benchmark see the same ones and
their difference is paired. (`judging.pairs.difference` is the same for rows without a benchmark.)
Axes: I comparisons, C prompts, R draws.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from grm_jax.evals.benchmark import Categories, Metrics, weighted_mean
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging.pairs import interval
from grm_jax.types import Comparison

DRAWS = 1000  # of `grm eval`
STAGE_DRAWS = 2000  # of the stage `eval` and of studies, whose metric is a plain mean
MetricFunction = Callable[[np.ndarray], Metrics]  # weights_I -> metrics


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its interval; None bounds where the draws do not give one (`Resampler`)."""

    value: float
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict:
        """Returns a dict in which nan is null."""
        value = None if math.isnan(self.value) else self.value
        return {"value": value, "low": self.low, "high": self.high}


class Resampler:
    """Draws bootstrap weights: how often each comparison occurs in a resample.

    An interval needs a subset of several prompts, as others do not vary; see also `interval`.

    Args:
      prompts: one key per comparison; comparisons with equal keys are drawn together.
      subsets: one key per comparison; prompts are drawn within their subset. None: one subset.
      draws: resamples per interval.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        subsets: Sequence[str] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ):
        by_prompt = Categories.of(prompts)
        self.codes_I, self.num_prompts = by_prompt.codes_I, len(by_prompt.names)
        self.draws, self.seed = draws, seed
        by_subset = Categories.of(subsets or [""] * len(prompts))
        # A prompt with comparisons in several subsets is drawn with the first of these subsets.
        stratum_C = np.full(self.num_prompts, len(by_subset.names))
        np.minimum.at(stratum_C, self.codes_I, by_subset.codes_I)
        self.strata = [np.flatnonzero(stratum_C == rank) for rank in np.unique(stratum_C)]

    @classmethod
    def of(cls, judged: Sequence[JudgedComparison], draws: int = DRAWS, seed: int = 0) -> Resampler:
        """The resampler of judged comparisons, by their `group` and `subset`."""
        return cls([j.group for j in judged], [j.subset for j in judged], draws, seed)

    def weights(self) -> Iterator[np.ndarray]:
        """Yields R arrays weights_I."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.draws):
            weights_C = np.zeros(self.num_prompts)
            for members in self.strata:
                drawn = rng.integers(len(members), size=len(members))
                weights_C[members] = np.bincount(drawn, minlength=len(members))
            yield weights_C[self.codes_I]

    def draw(self, metrics: MetricFunction) -> dict[str, tuple[float, list[float]]]:
        """Computes each metric with weights of one, the published number, and for each draw."""
        published = metrics(np.ones(len(self.codes_I)))
        values: dict[str, tuple[float, list[float]]] = {n: (v, []) for n, v in published.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            for weights_I in self.weights():
                for name, value in metrics(weights_I).items():
                    values[name][1].append(value)
        return values

    def estimate(self, metrics: MetricFunction) -> dict[str, Estimate]:
        """Computes each metric with its interval."""
        values = self.draw(metrics).items()
        return {name: Estimate(value, *self._bounds(drawn)) for name, (value, drawn) in values}

    def _bounds(self, drawn: Sequence[float]) -> tuple[float | None, float | None]:
        varies = any(len(members) > 1 for members in self.strata)
        return interval(drawn, self.num_prompts) if varies else (None, None)

    def headline(self, metrics: MetricFunction) -> Estimate:
        """Computes the first metric with its interval."""
        return next(iter(self.estimate(metrics).values()))

    def mean(self, values: ArrayLike) -> Estimate:
        """Computes the mean of one value per comparison; of paired differences, for example."""
        values_I = np.asarray(values, np.float64)
        return self.headline(lambda weights_I: {"mean": weighted_mean(values_I, weights_I)})

    def mean_over_runs(self, values_SxI: ArrayLike) -> Estimate:
        """Computes the mean over runs that share their comparisons; nan is a missing value.

        A draw takes runs with replacement as well, so the interval covers both. With few runs it is
        too narrow: of three, each draw sees two thirds of their variance.
        """
        given_SxI = np.asarray(values_SxI, np.float64)
        known_SxI, runs = ~np.isnan(given_SxI), len(given_SxI)
        if not known_SxI.any():
            return Estimate(math.nan)
        filled_SxI, rng = np.nan_to_num(given_SxI), np.random.default_rng(self.seed)

        def mean(weights: np.ndarray) -> float:
            weights_SxI = weights * known_SxI
            total = weights_SxI.sum()
            return float((weights_SxI * filled_SxI).sum() / total) if total else math.nan

        drawn = []
        for weights_I in self.weights():
            weights_S = np.bincount(rng.integers(runs, size=runs), minlength=runs)
            drawn.append(mean(weights_S[:, None] * weights_I))
        return Estimate(mean(np.ones(given_SxI.shape)), *self._bounds(drawn))

    def difference(self, baseline: MetricFunction, treatment: MetricFunction) -> dict[str, dict]:
        """Computes treatment - baseline on the same draws: interval and two-sided p-value.

        Without an interval p is None, or 1 if all draws are 0.
        """

        def metrics(weights_I: np.ndarray) -> Metrics:
            base, treated = baseline(weights_I), treatment(weights_I)
            return {name: treated[name] - base[name] for name in base if name in treated}

        differences = {}
        for name, (value, drawn) in self.draw(metrics).items():
            estimate = Estimate(value, *self._bounds(drawn))
            is_known = estimate.low is not None or not any(drawn)
            differences[name] = estimate.as_json() | {"p": p_value(drawn) if is_known else None}
        return differences


def prompt_key(comparison: Comparison) -> str:
    """The chat turns as one string: comparisons of one query share it."""
    return json.dumps(comparison.turns)


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided bootstrap p-value of no difference, at least 1/(draws + 1).

    Draws at exactly zero count on both sides, so two equal runs have p = 1.
    """
    known = np.array([value for value in differences if not math.isnan(value)])
    if not len(known):
        return None
    below, above = (known <= 0).sum() + 1, (known >= 0).sum() + 1
    return float(min(1.0, 2 * min(below, above) / (len(known) + 1)))


def mcnemar(baseline_I: Iterable[float], treatment_I: Iterable[float]) -> dict:
    """Exact McNemar test on the comparisons that exactly one of two runs has right (1, not 0)."""
    from scipy.stats import binomtest

    pairs = list(zip(baseline_I, treatment_I))
    gained = sum(a == 0 and b == 1 for a, b in pairs)
    lost = sum(a == 1 and b == 0 for a, b in pairs)
    p = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    return {"gained": int(gained), "lost": int(lost), "p": float(p)}
