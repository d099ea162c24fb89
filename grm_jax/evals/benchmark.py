"""The interface of a benchmark: load comparisons, grade judged ones, aggregate the grades.

Axes: I judged comparisons. A metric is a function of the grades and of one weight per comparison.
Weights of one give the published number, the counts of a resample give one bootstrap draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.evals import files
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging import votes
from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class Categories:
    """A categorical column: category names, and the index of each comparison's name."""

    names: tuple
    codes_I: np.ndarray

    @classmethod
    def of(cls, keys: Iterable) -> Categories:
        """Encodes one key per comparison; names are in the order of first appearance."""
        keys = list(keys)
        codes = {name: code for code, name in enumerate(dict.fromkeys(keys))}
        return cls(tuple(codes), np.array([codes[key] for key in keys], dtype=np.int64))

    @property
    def first_I(self) -> np.ndarray:
        """The index of the first comparison of each category."""
        return np.unique(self.codes_I, return_index=True)[1]


Grades = dict[str, Any]  # column name -> one value per comparison, or Categories
# Metric name -> value. A share unless the name says otherwise; nan if it is undefined.
Metrics = dict[str, float]
Judged = Sequence[JudgedComparison]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result: the model, its metrics in percent, and the source."""

    model: str
    values: dict[str, float]
    source: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      read: files -> comparisons, each with an id. meta["subset"] names its part of the benchmark,
        meta["group"] (default: the id) the comparisons that the bootstrap draws together.
      grade: (judged comparisons, rule) -> columns.
      aggregate: (columns, weights_I) -> metrics, the headline first.
      headline: the first metric in words, for the docs.
      rules: by name, how ties and unparseable judgements count. The first is the benchmark's own
        for a generative judge; "paper" is SPCT's.
      files: which files to put where.
      chance: the expected headline of random choice, as text.
      bars: prefixes of the metrics that the page shows as bars.
      aliases: further names of the benchmark's folder.
      notes: what a reader must know before comparing the number.
      order: place among the benchmarks in results; the default comes last.
      paper: it counts in the paper's overall number.
      both_orders: the official protocol shows both orders (an even k with balanced orders does).
      beside: benchmarks of further files in its folder, measured with it where their files exist.
      private: the authors ask not to publish the texts; output files then hold none.
    """

    name: str
    title: str
    read: Callable[[Source], Iterable[Comparison]]
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
    beside: tuple[str, ...] = ()
    private: bool = False

    def load(self, root: str | Path, read: set[Path] | None = None) -> list[Comparison]:
        """Loads the comparisons from the files below `root`.

        read: the files that were read are added to it.
        Raises MissingData, or ValueError for a malformed file or an id that occurs twice.
        """
        source = Source(root, self.name, self.aliases, self.files)
        files.latest_record = ""
        try:
            comparisons = list(self.read(source))
        except (OSError, ImportError):
            raise
        except Exception as error:  # damaged files raise errors of any type
            missing = "a field is missing:" if isinstance(error, KeyError) else ""
            prefix = f"{missing or type(error).__name__} "
            reason = str(error) if isinstance(error, ValueError) else f"{prefix}{error}"
            place = files.latest_record
            place = "" if not place or reason.startswith(place.split(",")[0]) else f"{place}: "
            raise ValueError(
                f"benchmark {self.name}: {place}{reason:.300}: check the file, or get it again"
            ) from error
        if read is not None:
            read |= source.read
        ids = Counter(comparison.id for comparison in comparisons)
        if len(ids) < len(comparisons):
            duplicate = ids.most_common(1)[0][0]
            raise ValueError(
                f"benchmark {self.name}: id {duplicate!r} occurs twice under {root}: keep one copy "
                "of its files"
            )
        return [dataclasses.replace(c, meta={"group": c.id} | c.meta) for c in comparisons]


# ---------------------------------------------------------------- grade one comparison


def is_tie(judged: JudgedComparison) -> bool:
    """Whether several responses share the highest score; False without scores."""
    return judged.scores is not None and votes.winner(judged.scores) is None


def credit(judged: JudgedComparison, best: int | None = None) -> float:
    """1 for preferring the best response, 1/t if t responses tie for first, 1/n without scores.

    This is the expected accuracy of SPCT's protocol (section 5.1): shuffle the responses, take the
    first maximum.
    """
    best = judged.comparison.best if best is None else best
    if judged.scores is None:
        return 1 / judged.comparison.n
    return votes.credit(judged.scores, [best])


def strict(judged: JudgedComparison, best: int | None = None) -> float:
    """1 if the best response alone has the highest score, else 0."""
    best = judged.comparison.best if best is None else best
    return float(best is not None and votes.winner(judged.scores) == best)


def column(values: Iterable[float]) -> np.ndarray:
    """A column of grades."""
    return np.array(list(values), dtype=np.float64)


def columns(judged: Judged, values: Iterable[float]) -> Grades:
    """The two columns that most benchmarks need: "value" and "subset"."""
    return {"value": column(values), "subset": Categories.of(j.subset for j in judged)}


# ---------------------------------------------------------------- aggregate grades


def weighted_mean(values_I: np.ndarray, weights_I: np.ndarray) -> float:
    """Weighted mean; nan if all weights are 0."""
    total = float(weights_I.sum())
    return float(np.dot(values_I, weights_I)) / total if total else math.nan


def mean_by_category(
    values_I: np.ndarray, categories: Categories, weights_I: np.ndarray
) -> dict[Any, float]:
    """Weighted mean within each category; nan where all weights are 0."""
    size = len(categories.names)
    totals = np.bincount(categories.codes_I, weights_I, size)
    sums = np.bincount(categories.codes_I, weights_I * values_I, size)
    return {
        name: float(s / t) if t else math.nan for name, s, t in zip(categories.names, sums, totals)
    }


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are not nan; nan if all are."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def accuracy_by_subset(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """Accuracy over all comparisons, then of each subset if there are several."""
    metrics = {"accuracy": weighted_mean(grades["value"], weights_I)}
    subsets = mean_by_category(grades["value"], grades["subset"], weights_I)
    if len(subsets) > 1:
        metrics |= {f"subset/{name}": value for name, value in subsets.items()}
    return metrics


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
