"""What a benchmark is: how to read it, how to grade a judged comparison, how to put the grades together.

Axes: I judged comparisons. A metric is a function of the grades and of one weight per comparison: with weights of one it is
the published number, with the counts of a resample it is one draw of the bootstrap.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class Categories:
    """Which part each comparison belongs to: names, and one code per comparison (a bootstrap draws thousands of sums)."""

    names: tuple
    codes_I: np.ndarray

    @classmethod
    def of(cls, keys: Iterable) -> Categories:
        """Categories in the order of their first appearance."""
        keys = list(keys)
        names = tuple(dict.fromkeys(keys))
        at = {name: i for i, name in enumerate(names)}
        return cls(names, np.array([at[key] for key in keys], dtype=np.int64))

    @property
    def first_I(self) -> np.ndarray:
        """The index of the first comparison of each category."""
        return np.unique(self.codes_I, return_index=True)[1]


Grades = dict[str, Any]  # column -> one value per comparison (or Categories)
Metrics = dict[str, float]  # name -> value, a share unless the name says otherwise; nan: no value
Judged = Sequence[JudgedComparison]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published row: who, its numbers in percent by metric name, and where they stand."""

    model: str
    values: dict[str, float]
    source: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    read: files -> comparisons, each with an id. meta["subset"] names its part of the benchmark,
      meta["group"] (default: the id) the comparisons that the bootstrap draws together.
    grade: (judged comparisons, rule) -> columns.
    aggregate: (columns, weights_I) -> metrics, the headline first.
    headline: the first metric in words, for the docs.
    rules: how ties and unparseable judgements count, by name. The first is the benchmark's own rule
      for a generative judge; "paper" is SPCT's.
    files: which files to put where.
    bars: prefixes of the metrics to draw.
    order: place among the benchmarks in results; the default comes last.
    paper: whether it counts in the paper's overall number.
    both_orders: whether the official protocol shows both orders (even k, balanced orders).
    private: whether the authors ask not to publish the texts: outputs then omit them.
    """

    name: str
    title: str
    read: Callable[[Source], list[Comparison]]
    grade: Callable[[Judged, str], Grades]
    aggregate: Callable[[Grades, np.ndarray], Metrics]
    headline: str
    rules: dict[str, str]
    files: str
    chance: str
    bars: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    notes: str = ""
    order: int = 1000
    paper: bool = False
    both_orders: bool = False
    private: bool = False

    def load(self, root: str | Path) -> list[Comparison]:
        """Returns the comparisons whose files are below `root`.

        Raises MissingData, or ValueError for a malformed file or an id that occurs twice.
        """
        comparisons = self.read(Source(root, self.name, self.aliases, self.files))
        ids = Counter(comparison.id for comparison in comparisons)
        if len(ids) < len(comparisons):
            raise ValueError(
                f"benchmark {self.name}: id {ids.most_common(1)[0][0]!r} occurs twice under {root}: "
                "keep one copy of its files"
            )
        return [dataclasses.replace(c, meta={"group": c.id} | c.meta) for c in comparisons]


# ---------------------------------------------------------------- grading one comparison


def winners(scores: Sequence[float]) -> list[int]:
    """Indices of the highest score; several on a tie."""
    from grm_jax.judging.votes import top

    return top(scores)


def credit(judged: JudgedComparison, best: int | None = None) -> float:
    """1 for naming the best response, 1/t where t share the first place, 0 otherwise; 1/n where nothing could be read.

    The expected value of SPCT's way: responses are shuffled and the first maximum wins.
    """
    best = judged.comparison.best if best is None else best
    if judged.scores is None:
        return 1 / judged.comparison.n
    first = winners(judged.scores)
    return 1 / len(first) if best in first else 0.0


def strict(judged: JudgedComparison, best: int | None = None) -> float:
    """1 if the best response alone has the highest score; ties and unreadable judgements are wrong."""
    best = judged.comparison.best if best is None else best
    return float(judged.scores is not None and winners(judged.scores) == [best])


def column(values: Iterable[float]) -> np.ndarray:
    """A column of grades."""
    return np.array(list(values), dtype=np.float64)


def columns(judged: Sequence[JudgedComparison], values: Iterable[float]) -> Grades:
    """The two columns that most benchmarks need: the value and the subset of each comparison."""
    return {"value": column(values), "subset": Categories.of(j.subset for j in judged)}


# ---------------------------------------------------------------- putting grades together


def weighted_mean(values_I: np.ndarray, weights_I: np.ndarray) -> float:
    """Weighted mean; nan where nothing has weight."""
    total = float(weights_I.sum())
    return float(np.dot(values_I, weights_I)) / total if total else math.nan


def mean_by_category(
    values_I: np.ndarray, parts: Categories, weights_I: np.ndarray
) -> dict[Any, float]:
    """The weighted mean within each part; nan where a part has no weight."""
    totals = np.bincount(parts.codes_I, weights_I, len(parts.names))
    sums = np.bincount(parts.codes_I, weights_I * values_I, len(parts.names))
    return {name: float(s / t) if t else math.nan for name, s, t in zip(parts.names, sums, totals)}


def nan_mean(values: Iterable[float]) -> float:
    """The plain mean of the parts that have a value; nan where none has."""
    there = [value for value in values if not math.isnan(value)]
    return math.fsum(there) / len(there) if there else math.nan


def accuracy_by_subset(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """Accuracy over all comparisons, then of each subset."""
    parts = mean_by_category(grades["value"], grades["subset"], weights_I)
    overall = {"accuracy": weighted_mean(grades["value"], weights_I)}
    return overall | (
        {f"subset/{name}": value for name, value in parts.items()} if len(parts) > 1 else {}
    )


# ---------------------------------------------------------------- shared rules

PAPER_RULE = (
    "responses are shuffled and the first maximum wins: a tie of t counts 1/t; an unparseable "
    "judgement counts 1/n (the paper does not define that case)"
)
STRICT_RULE = "a tie or an unparseable judgement is wrong"
CREDIT_RULES = {
    "official": "no pairwise scorer is published; a tie or an unparseable judgement counts 1/2",
    "strict": STRICT_RULE,
    "paper": PAPER_RULE,
}


def grade_credit(judged: Judged, rule: str) -> Grades:
    """Grades with tie credit, except under the rules "strict" and "scalar"."""
    value = strict if rule in ("strict", "scalar") else credit
    return columns(judged, map(value, judged))


def grade_strict(judged: Judged, rule: str) -> Grades:
    """Grades without tie credit, except under the rule "paper"."""
    value = credit if rule == "paper" else strict
    return columns(judged, map(value, judged))


# ---------------------------------------------------------------- single responses


def scores_per_critique(judged: Judged) -> np.ndarray:
    """Scores of single responses on the scale of one critique; nan where none could be parsed.

    A sum over critiques would be smaller where a critique could not be parsed.
    """
    return column(j.scores[0] / j.num_votes if j.scores else math.nan for j in judged)


def fill_with_median(scores_I: np.ndarray) -> np.ndarray:
    """Replaces nan by the median of the other scores, or by 0 if there are none."""
    known = scores_I[~np.isnan(scores_I)]
    return np.where(np.isnan(scores_I), np.median(known) if len(known) else 0.0, scores_I)


def single_labels(judged: Judged) -> np.ndarray:
    """Whether each single response is labelled right."""
    return np.array([j.comparison.rewards[0] > 0.5 for j in judged])
