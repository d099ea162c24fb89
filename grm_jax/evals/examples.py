"""Picks the comparisons of an evaluation that show most, one of each kind, for its page.

The choice is deterministic: the row with the smallest key, the first of the file among equals.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.judging import summary
from grm_jax.judging.codec import OutputRow


@dataclasses.dataclass(frozen=True)
class Example:
    """A row of `grm judge`, the kind that it stands for, and a sentence that says why."""

    kind: str
    row: OutputRow
    sentence: str


def right_critiques(row: OutputRow) -> tuple[int, int]:
    """Returns how many critiques name the best response alone, and how many there are."""
    parsed = [c for c in row["critiques"] if c["status"] == "ok"]
    return sum(summary.grade(row, c["scores"]) == 1 for c in parsed), len(row["critiques"])


def _share(row: OutputRow) -> float:
    right, count = right_critiques(row)
    return right / max(1, count)


def _margin(row: OutputRow) -> float:
    """Returns the distance of the two highest scores."""
    first, second = sorted(row["scores"], reverse=True)[:2]
    return first - second


# Kind -> (whether a row is of the kind, its key). In the order of choice, the rarest kinds first.
KINDS: dict[str, tuple[Callable[[OutputRow], bool], Callable[[OutputRow], Any]]] = {
    "saved by the vote": (
        lambda row: summary.grade(row) == 1 and 0 < _share(row) <= 0.6,
        lambda row: (_share(row), -_margin(row)),
    ),
    "flipped by order": (
        lambda row: bool(summary.flipped(row)),
        lambda row: (row["n"], _margin(row)),
    ),
    "wrong": (lambda row: summary.grade(row) == 0, lambda row: (_share(row), -_margin(row))),
    "unanimous": (
        lambda row: summary.grade(row) == 1 and _share(row) == 1,
        lambda row: (-row["n"], -_margin(row)),
    ),
    "right": (
        lambda row: summary.grade(row) == 1 and 0.6 < _share(row) < 1,
        lambda row: abs(_share(row) - 0.8),
    ),
}
SHOWN = ("right", "wrong", "unanimous", "flipped by order", "saved by the vote")


def choose(rows: Sequence[OutputRow]) -> list[Example]:
    """Returns at most one example of each kind, each of another row, in the order of SHOWN."""
    rows = [row for row in rows if not row.get("error") and summary.best_labels(row)]
    chosen: dict[str, OutputRow] = {}
    for kind, (belongs, key) in KINDS.items():
        taken = [row["line"] for row in chosen.values()]
        if members := [row for row in rows if row["line"] not in taken and belongs(row)]:
            chosen[kind] = min(members, key=key)
    return [Example(kind, chosen[kind], sentence(chosen[kind])) for kind in SHOWN if kind in chosen]


def sentence(row: OutputRow) -> str:
    """Returns "14 of 32 critiques name the best response, and the vote does."."""
    right, count = right_critiques(row)
    credit = summary.grade(row)
    vote = (
        "and the vote does"
        if credit == 1
        else "the vote is a tie"
        if credit
        else "the vote does not"
    )
    orders = "; orders name different winners" if summary.flipped(row) else ""
    return f"{right} of {count} critiques name the best response, {vote}{orders}."
