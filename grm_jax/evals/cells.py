"""A table of models against inference-time scaling, as in the paper's table 3.

A cell is the accuracy of one model with one voting method at one k. Ties share their credit
(`benchmark.credit`), and intervals are over prompts (`bootstrap`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import credit
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.scaling import META, blocks
from grm_jax.evals.tables import percent, span, text_table
from grm_jax.judging.summary import mean
from grm_jax.judging.votes import winner
from grm_jax.types import FAILED

METHODS = {"sum": "Voting", "expected": "Expected", META: "MetaRM"}
HEADINGS = ("model", "method", "accuracy", "95% CI", "ties", "parsed")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One accuracy of the table.

    Attributes:
      method: "Greedy", "Rule" (a content-blind baseline), or a value of METHODS.
      tie_rate: share of votes without a single winner, unparsed ones included.
      parse_rate: share of critiques that parsed.
      credits: of each comparison, averaged over the blocks of k critiques.
    """

    model: str
    method: str
    k: int
    accuracy: float
    low: float | None
    high: float | None
    tie_rate: float
    parse_rate: float
    credits: tuple[float, ...] = dataclasses.field(repr=False, default=())

    @property
    def name(self) -> str:
        """The key of credits.json: "rl/Voting@8"."""
        return f"{self.model}/{self.method}@{self.k}"

    @property
    def method_at_k(self) -> str:
        """ "Voting@8"; without the k where only 1 is possible."""
        return self.method if self.method in ("Greedy", "Rule") else f"{self.method}@{self.k}"

    def as_json(self) -> dict:
        """All fields but the credits."""
        return {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "credits"
        }


def cell(
    model: str, method: str, k: int, judged: Sequence[JudgedComparison], resampler: Resampler
) -> Cell:
    """Measures one cell: the votes of every block of k critiques, or scores without critiques."""
    kind = next((kind for kind, name in METHODS.items() if name == method), "sum")
    votes = blocks(judged, kind, k) if any(j.critiques for j in judged) else [judged]
    credits_I = np.mean([[credit(j) for j in block] for block in votes], axis=0)
    ties = np.mean([[winner(j.scores) is None for j in block] for block in votes])
    accuracy = resampler.mean(credits_I)
    return Cell(
        model,
        method,
        k,
        accuracy.value,
        accuracy.low,
        accuracy.high,
        tie_rate=float(ties),
        parse_rate=float(np.mean([_parse_rate(j) for j in judged])),
        credits=tuple(credits_I.tolist()),
    )


def _parse_rate(judged: JudgedComparison) -> float:
    """Share of critiques that parsed; 1 for judges without critiques, 0 if judging failed."""
    parsed = mean(c.status == "ok" for c in judged.critiques if c.status != FAILED)
    return float(judged.error is None) if parsed is None else parsed


def difference(a: Cell, b: Cell, resampler: Resampler) -> dict[str, float | None]:
    """The paired difference a - b with its interval."""
    estimate = resampler.mean(np.subtract(a.credits, b.credits))
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def rows(cells: Sequence[Cell]) -> list[list[str]]:
    """The cells as texts, in the order of HEADINGS."""
    return [
        [c.model, c.method_at_k, percent(c.accuracy), span(dataclasses.asdict(c))]
        + [f"{percent(c.tie_rate)}%", f"{percent(c.parse_rate)}%"]
        for c in cells
    ]


def as_text(cells: Sequence[Cell]) -> str:
    """The table as aligned text, accuracy in percent."""
    return text_table(HEADINGS, rows(cells), left=2)


def grid(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table with one row per model and method and one column per k.

    A value is the accuracy in percent with half its 95% interval: "76.2±5.9". Greedy critiques and
    rules are in the first column.
    """
    ks = sorted({c.k for c in cells})
    by_name: dict[str, dict[int, Cell]] = {}
    for c in cells:
        name = c.model if c.method == "Rule" else f"{c.model} {c.method}"
        by_name.setdefault(name, {})[c.k] = c
    rows = [
        [name, *(_with_half_interval(row[k]) if k in row else "" for k in ks)]
        for name, row in by_name.items()
    ]
    return ["", *(f"k = {k}" for k in ks)], rows


def _with_half_interval(c: Cell) -> str:
    if c.low is None or c.high is None:
        return percent(c.accuracy)
    return f"{percent(c.accuracy)}±{percent((c.high - c.low) / 2)}"
