"""Rates over output rows of `grm judge`: accuracy, ties, parse rate, and position bias.

They are computed from rows (JSON objects, see codec.py), so a report needs no model.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from grm_jax.judging import votes
from grm_jax.judging.codec import OutputRow, critique_from_json, is_scalar
from grm_jax.types import FAILED, UNPARSED


def summarise(rows: Iterable[OutputRow]) -> dict[str, Any]:
    """Returns counts and rates over rows, which may be a stream; a rate without cases is None.

    accuracy: share of labelled comparisons with a best response named.  tie_credit: the same with
    a tie counted by its share of best responses.  chance: accuracy of a random choice.
    ties: share of comparisons of several responses that tied.  parsed: parse rate of critiques,
    without those whose request failed.  prompt_tokens: as counted by an endpoint.
    all_unparsed: comparisons without any parsed critique.
    flips: share of comparisons, shown in several orders, whose orders name different winners.
    first_place: share of decided critiques whose winner was shown first.  first_chance: the same
    without position bias.
    """
    counts, rates, statuses = Counter[str](), defaultdict[str, Mean](Mean), Counter[str]()
    for row in rows:
        counts["rows"] += 1
        if row.get("error"):
            counts["errors"] += 1
            continue
        several = row["n"] > 1
        if (credit := grade(row)) is not None:
            rates["accuracy"].add(credit == 1)
            rates["tie_credit"].add(credit)
            rates["chance"].add(len(best_labels(row)) / row["n"])
        if several and not all_unparsed(row):
            rates["ties"].add(row["tie"])
        if several and (flip := flipped(row)) is not None:
            rates["flips"].add(flip)
        counts["all_unparsed"] += all_unparsed(row)
        for critique in row["critiques"]:
            statuses[critique["status"]] += 1
            if critique["status"] != FAILED:
                rates["parsed"].add(critique["status"] == "ok")
            counts["prompt_tokens"] += critique.get("prompt_tokens", 0)
            counts["tokens"] += critique["tokens"]
        views = [(c["order"], c["scores"]) for c in _parsed(row)] if several else []
        for order, best in votes.decided(views):
            rates["first_place"].add(best == order[0])
            rates["first_chance"].add(1 / row["n"])
    value = lambda name: rates[name].value  # noqa: E731
    critiques = statuses.total()
    return {
        "rows": counts["rows"],
        "errors": counts["errors"],
        "comparisons": counts["rows"] - counts["errors"],
        "labelled": rates["accuracy"].count,
        "accuracy": value("accuracy"),
        "tie_credit": value("tie_credit"),
        "chance": value("chance"),
        "ties": value("ties"),
        "critiques": critiques,
        "parsed": value("parsed"),
        "statuses": dict(statuses),
        "all_unparsed": counts["all_unparsed"],
        "flips": value("flips"),
        "shown_in_several_orders": rates["flips"].count,
        "first_place": value("first_place"),
        "first_chance": value("first_chance"),
        "tokens": counts["tokens"],
        "prompt_tokens": counts["prompt_tokens"],
        "mean_tokens": counts["tokens"] / critiques if critiques else None,
    }


class Mean:
    """An exact mean of many numbers that take few values: it keeps how often each occurs."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Adds a number."""
        self.counts[value] += 1

    @property
    def count(self) -> int:
        """The number of values."""
        return self.counts.total()

    @property
    def value(self) -> float | None:
        """The mean, rounded as by `math.fsum`; None without values."""
        total = sum(Fraction(value) * count for value, count in self.counts.items())
        return float(total) / self.count if self.count else None


def failure_text(rows: Iterable[OutputRow], most: int = 3) -> str:
    """Returns the most frequent reasons of error rows with their counts, one on a line; "" if none.

    Reasons that differ in numbers only are counted together; the first of them is shown.
    """
    total, errors = 0, []
    for row in rows:
        total += 1
        errors += [row["error"]] if row.get("error") else []
    kinds = error_kinds(errors)
    lines = [
        f"  {count} x {first['reason']} (first: line {first['line']})"
        for first, count in kinds[:most]
    ]
    if others := sum(count for _, count in kinds[most:]):
        lines.append(f"  {others} x other reasons")
    return "\n".join([f"{len(errors)} of {total} rows failed:", *lines]) if errors else ""


def error_kinds(errors: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """Returns the first error of each kind and their number, the most frequent kind first.

    The reasons of a kind differ in numbers only.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for error in errors:
        kinds.setdefault(re.sub(r"\d[\d,.]*", "0", error["reason"]), []).append(error)
    return sorted(((kind[0], len(kind)) for kind in kinds.values()), key=lambda pair: -pair[1])


def unparsed_text(statuses: Mapping[str, int], least: float = 0.5) -> str:
    """Returns counts of unparsed critiques, and what to do about most; "" if enough are parsed.

    statuses: critiques by status.  least: the parse rate that is enough.
    """
    total = sum(statuses.values()) - statuses.get(FAILED, 0)
    counts = Counter({name: statuses[name] for name in UNPARSED if statuses.get(name)})
    if not counts or statuses.get("ok", 0) >= least * total:
        return ""
    texts = [f"{n} of {total} critiques {UNPARSED[name][0]}" for name, n in counts.most_common(1)]
    texts += [f"{n} {UNPARSED[name][0]}" for name, n in counts.most_common()[1:]]
    return f"{', '.join(texts)}: {UNPARSED[counts.most_common(1)[0][0]][1]}"


def mean(values: Iterable[float]) -> float | None:
    """Returns the mean; None without values."""
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def all_unparsed(row: OutputRow) -> bool:
    """Returns whether none of a row's critiques is parsed; False for a scalar reward model."""
    if is_scalar(row):
        return False
    failed = sum(critique["status"] == FAILED for critique in row["critiques"])
    return row["unparsed"] + failed == len(row["critiques"])


def _parsed(row: OutputRow) -> list[dict[str, Any]]:
    return [critique for critique in row["critiques"] if critique["status"] == "ok"]


def best_labels(row: OutputRow) -> list[int]:
    """Returns the indices of the responses with the best label.

    Empty without a label, for one response, and if all are equal.
    """
    label, n = row.get("label"), row["n"]
    if label is None or n == 1:
        return []
    if isinstance(label, int):
        return [label]
    best = [i for i, reward in enumerate(label) if reward == max(label)]
    return best if len(best) < n else []


def grade(row: OutputRow, scores: Sequence[float] | None = None) -> float | None:
    """Returns the share of the highest-scored responses with the best label; None without labels.

    1 is right, 0 wrong, ties are between. A row without a parsed critique counts as a tie of all.
    The official metrics of benchmarks have their own rules.

    Args:
      scores: instead of the row's.
    """
    best = best_labels(row)
    if not best:
        return None
    return votes.credit(row["scores"] if scores is None else scores, best)


def flipped(row: OutputRow) -> bool | None:
    """Returns whether two orders of a row name different winners.

    Scores are summed per order. None with fewer than two orders among the parsed critiques.
    """
    sums: dict[tuple[int, ...], list[float]] = {}
    for critique in _parsed(row):
        total = sums.get(tuple(critique["order"]), [0.0] * row["n"])
        sums[tuple(critique["order"])] = [a + b for a, b in zip(total, critique["scores"])]
    return votes.flipped(sums.items())


def votes_by_k(row: OutputRow) -> list[dict[str, Any]]:
    """Returns the votes of a row's first 1, 2, ... k critiques, by the row's own rule.

    Each is {"k", "scores" (the vote), "means" (mean score of a critique), "best", "kept"}. With a
    meta reward model, k_meta keeps its ratio to k. Scores are 0 where no critique can vote by the
    rule.
    """
    critiques = [critique_from_json(critique) for critique in row["critiques"]]
    guided = row.get("kept") is not None
    k_meta_of_all = row.get("k_meta") or max(1, len(critiques) // 2)
    steps = []
    for k in range(1, len(critiques) + 1):
        k_meta = max(1, k_meta_of_all * k // len(critiques)) if guided else None
        first, rule = critiques[:k], row.get("vote", "sum")
        try:
            verdict = votes.verdict(first, row["n"], rule=rule, guided=guided, k_meta=k_meta)
        except votes.NoVote:
            verdict = votes.verdict((), row["n"], rule=rule)
        steps.append(
            {
                "k": k,
                "scores": list(verdict.scores),
                "means": list(verdict.votes.get("mean", ())),
                "best": verdict.best,
                "kept": None if verdict.kept is None else list(verdict.kept),
            }
        )
    return steps


def accuracy_by_k(rows: Iterable[OutputRow]) -> list[dict[str, Any]]:
    """Returns accuracy, with ties shared, and tie rate over the first 1, 2, ... k critiques.

    Only labelled rows count: [{"k", "credit", "ties", "rows"}].
    """
    credits: dict[int, list[float]] = {}
    ties: dict[int, list[bool]] = {}
    for row in rows:
        if not row.get("error") and best_labels(row):
            for step in votes_by_k(row):
                credits.setdefault(step["k"], []).append(grade(row, step["scores"]) or 0.0)
                ties.setdefault(step["k"], []).append(votes.winner(step["scores"]) is None)
    return [
        {"k": k, "credit": mean(credits[k]), "ties": mean(ties[k]), "rows": len(credits[k])}
        for k in sorted(credits)
    ]
