"""What a benchmark is: how to read it, how to grade a judged comparison, how to put the grades together.

Axes: I judged comparisons. A metric is a function of the grades and of one weight per comparison: with weights of one it is
the published number, with the counts of a resample it is one draw of the bootstrap.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Sequence
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


Grades = dict[str, Any]  # column -> one value per comparison (or Categories)
Metrics = dict[
    str, float
]  # name -> value; a share unless the name says otherwise; nan where it has no value


@dataclasses.dataclass(frozen=True)
class Published:
    """A published row: who, its numbers in percent by metric name, and where they stand."""

    model: str
    values: dict[str, float]
    source: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    read: files -> comparisons, each with an id and meta "subset" and "group" (comparisons of one prompt).
    grade: (judged comparisons, rule) -> columns.  aggregate: (columns, weights_I) -> metrics, the headline first.
    rules: how ties and unreadable judgements count, by name; the first is the benchmark's own for a generative judge, "paper"
    is what SPCT does.  bars: prefix of the metrics that are drawn as the benchmark's parts.
    files: which files to put where.  notes: what to know when reading the number.
    both_orders: whether the official protocol shows both orders (an even k with balanced orders gives that).
    private: whether the authors ask that the texts are not published: they are then left out of what is written.
    """

    name: str
    title: str
    read: Callable[[Source], list[Comparison]]
    grade: Callable[[Sequence[JudgedComparison], str], Grades]
    aggregate: Callable[[Grades, np.ndarray], Metrics]
    rules: dict[str, str]
    files: str
    chance: str
    bars: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    notes: str = ""
    both_orders: bool = False
    private: bool = False

    def load(self, root) -> list[Comparison]:
        """The comparisons of the benchmark below `root`. Raises MissingData, or ValueError for a malformed file."""
        comparisons = self.read(Source(root, self.name, self.aliases, self.files))
        ids = [comparison.id for comparison in comparisons]
        if len(set(ids)) != len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(
                f"benchmark {self.name}: id {twice!r} comes twice under {root}: keep one copy of its files"
            )
        return comparisons


# ---------------------------------------------------------------- places of responses


def shuffled_comparison(
    query,
    responses: Sequence[str],
    rewards: Sequence[float],
    name: str,
    *,
    index: bool = True,
    **meta,
) -> Comparison:
    """A comparison whose responses stand in an order drawn from its name: files that put the better one first tell nothing.

    rewards: of the responses as given.  index: label is the index of the best; otherwise the rewards.
    """
    reference = meta.pop("reference", None)
    order = list(range(len(responses)))
    random.Random(name).shuffle(order)
    rewards = tuple(float(rewards[i]) for i in order)
    label = rewards.index(max(rewards)) if index and len(order) > 1 else rewards
    return Comparison(
        query, tuple(responses[i] for i in order), reference, label, name, {"group": name} | meta
    )


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


# ---------------------------------------------------------------- rules that several benchmarks share

PAPER = (
    "responses are shuffled and the first maximum wins: a tie of t counts 1/t; nothing readable counts 1/n "
    "(the paper does not say what it does then)"
)
STRICT = "a tie or an unreadable judgement is wrong"


def credit_or_strict(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Grades for benchmarks whose own rule is strict: "paper" gives tie credit, every other rule is strict."""
    return columns(judged, (credit(j) if rule == "paper" else strict(j) for j in judged))
