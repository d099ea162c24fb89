"""Rates over judged comparisons: accuracy, ties, unread critiques, and how much the place of a response decides.

Works on output rows (dicts) of `grm judge`, so that a report needs no model; `judged_row` in codec.py makes them
from verdicts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from grm_jax.judging import votes
from grm_jax.judging.codec import critique_from_json
from grm_jax.judging.votes import top


def summarise(rows: Iterable[dict]) -> dict:
    """Counts and rates over rows; a rate is None where nothing it is about was seen.

    accuracy: share of labelled comparisons where a best response was named; tie_credit counts a tie by its share of best
    ones; chance is what picking at random would get.  ties: share of comparisons of several responses that ended in a
    tie.  parsed: share of critiques read.  flips: share of comparisons, seen in several orders, whose orders name
    different winners.  first_place: share of decided critiques whose winner was shown first, and first_chance what it
    would be without position bias.
    """
    rows = list(rows)
    judged = [row for row in rows if not row.get("error")]
    critiques = [critique for row in judged for critique in row["critiques"]]
    several = [row for row in judged if row["n"] > 1]
    decided = [row for row in several if row["unparsed"] < len(row["critiques"])]
    graded = [(row, grade(row)) for row in judged]
    graded = [(row, credit) for row, credit in graded if credit is not None]
    flips = [flip for flip in map(flipped, several) if flip is not None]
    firsts = [first for row in several for first in _first_wins(row)]
    return {
        "rows": len(rows),
        "errors": len(rows) - len(judged),
        "comparisons": len(judged),
        "labelled": len(graded),
        "accuracy": _share([credit == 1 for _, credit in graded]),
        "tie_credit": _share([credit for _, credit in graded]),
        "chance": _share([len(best_labels(row)) / row["n"] for row, _ in graded]),
        "ties": _share([row["tie"] for row in decided]),
        "critiques": len(critiques),
        "parsed": _share([critique["status"] == "ok" for critique in critiques]),
        "statuses": dict(Counter(critique["status"] for critique in critiques)),
        "nothing_read": len(judged)
        - len([row for row in judged if row["unparsed"] < len(row["critiques"])]),
        "flips": _share(flips),
        "seen_in_several_orders": len(flips),
        "first_place": _share([won for won, _ in firsts]),
        "first_chance": _share([chance for _, chance in firsts]),
        "tokens": sum(critique["tokens"] for critique in critiques),
        "mean_tokens": _share([critique["tokens"] for critique in critiques]),
    }


def _share(values: Sequence) -> float | None:
    return math.fsum(values) / len(values) if values else None


def best_labels(row: dict) -> list[int]:
    """Indices of the responses that the label calls best; empty without a label, for one response, or if all are equal."""
    label, n = row.get("label"), row["n"]
    if label is None or n == 1:
        return []
    if isinstance(label, int):
        return [label]
    best = [i for i, reward in enumerate(label) if reward == max(label)]
    return best if len(best) < n else []


def grade(row: dict, scores: Sequence[float] | None = None) -> float | None:
    """The share of the highest-scored responses that the label calls best: 1 right, 0 wrong, between for ties.

    None without a label to compare. Nothing read counts as a tie of all n: no response was preferred. The official
    metrics of benchmarks have rules of their own.
    """
    best = best_labels(row)
    if not best:
        return None
    winners = top(row["scores"] if scores is None else scores)
    return sum(i in best for i in winners) / len(winners)


def by_order(row: dict) -> dict[tuple[int, ...], list[float]]:
    """Summed scores of the readable critiques of a row, apart for each order in which responses were shown."""
    sums: dict[tuple[int, ...], list[float]] = {}
    for critique in row["critiques"]:
        if critique["status"] == "ok":
            total = sums.setdefault(tuple(critique["order"]), [0.0] * row["n"])
            for i, score in enumerate(critique["scores"]):
                total[i] += score
    return sums


def flipped(row: dict) -> bool | None:
    """Whether two orders of a row name different winners; None where fewer than two orders were read."""
    sums = by_order(row)
    if len(sums) < 2:
        return None
    winners = [top(total) for total in sums.values()]
    named = [winner[0] for winner in winners if len(winner) == 1]
    return any(a != b for a, b in itertools.combinations(named, 2))


def _first_wins(row: dict):
    """For each decided critique of a row: whether its winner was shown first, and the chance of that."""
    for critique in row["critiques"]:
        if critique["status"] == "ok":
            winners = top(critique["scores"])
            if len(winners) == 1:
                yield winners[0] == critique["order"][0], 1 / row["n"]


def as_k_grew(row: dict) -> list[dict]:
    """The vote of a row's first 1, 2, ... k critiques, by the row's own rule: [{"k", "scores", "means", "best", "kept"}];
    scores are the vote itself, means the mean score per response on the scale of one critique.

    With a meta reward model, k_meta stands in the same ratio to k as in the whole row.
    """
    critiques = [critique_from_json(critique) for critique in row["critiques"]]
    guided = row.get("kept") is not None
    whole = row.get("k_meta") or max(1, len(critiques) // 2)
    steps = []
    for k in range(1, len(critiques) + 1):
        k_meta = max(1, whole * k // len(critiques)) if guided else None
        verdict = votes.verdict(
            critiques[:k], row["n"], rule=row.get("vote", "sum"), guided=guided, k_meta=k_meta
        )
        kept = None if verdict.kept is None else list(verdict.kept)
        steps.append(
            {
                "k": k,
                "scores": list(verdict.scores),
                "means": list(verdict.votes.get("mean", ())),
                "best": verdict.best,
                "kept": kept,
            }
        )
    return steps


def accuracy_by_k(rows: Iterable[dict]) -> list[dict]:
    """Accuracy (ties share their credit) and tie rate of the votes over the first 1, 2, ... k critiques of labelled rows."""
    credits: dict[int, list[float]] = {}
    ties: dict[int, list[bool]] = {}
    for row in rows:
        if row.get("error") or not best_labels(row):
            continue
        for step in as_k_grew(row):
            credits.setdefault(step["k"], []).append(grade(row, step["scores"]) or 0.0)
            ties.setdefault(step["k"], []).append(len(top(step["scores"])) > 1)
    return [
        {"k": k, "credit": _share(credits[k]), "ties": _share(ties[k]), "rows": len(credits[k])}
        for k in sorted(credits)
    ]
