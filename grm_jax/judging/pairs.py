"""Two runs of `grm judge` over one file: matches their rows, and measures how verdicts differ."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from grm_jax.judging.codec import OutputRow
from grm_jax.judging.summary import grade, mean

DRAWS = 1000  # bootstrap resamples, as in `grm eval`
LEVEL = 0.95
FEW = 30  # comparisons or prompts: fewer establish nothing
Pair = tuple[OutputRow | None, ...]  # a row of each run


def match(rows_a: Sequence[OutputRow], rows_b: Sequence[OutputRow]) -> list[Pair]:
    """Returns the rows of both runs in pairs, in the order of run A; None where one lacks a row.

    Rows of one input file match by line, rows of two files by id. Rows that match but have other
    texts are two pairs, each with one row.

    Raises:
      ValueError: no rows match.
    """
    inputs = {str(row.get("input")) for row in (*rows_a[:1], *rows_b[:1])}
    by = "line" if len(inputs) == 1 else "id"
    remaining = dict(zip(_keys(rows_b, by), rows_b))
    pairs: list[Pair] = []
    for key, row in zip(_keys(rows_a, by), rows_a):
        partner = remaining.get(key)
        if partner is not None and _same_texts(row, partner):
            del remaining[key]
            pairs.append((row, partner))
        else:
            pairs.append((row, None))
    if not any(b for _, b in pairs):
        raise ValueError(
            f"the two runs share no comparison (rows matched by {by} and texts): name two outputs "
            "of `grm judge` for one input"
        )
    return pairs + [(None, row) for row in remaining.values()]


def _keys(rows: Sequence[OutputRow], by: str) -> list[tuple[str, int]]:
    """Returns each row's line or id, with its number among the rows that share it."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        keys.append((str(row[by]), seen[str(row[by])]))
        seen[str(row[by])] += 1
    return keys


def _same_texts(a: OutputRow, b: OutputRow) -> bool:
    """Whether two rows have the same texts; rows without texts (errors, private data) may match."""
    fields = [name for name in ("query", "responses") if a.get(name) and b.get(name)]
    return all(a[name] == b[name] for name in fields)


def agreement(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Returns how the verdicts of paired rows differ; rates are None where they have no cases.

    pairs: rows that both runs judged.  unpaired: rows of one run only.
    agreement: share of the pairs with several responses that have the same best response, or tie in
    both, or are unparsed in both.  changed: the others.  labelled: pairs with labels.
    accuracy: of each run, on these.  tie_credit: the same with ties shared.  difference: B - A of
    tie_credit with its 95% interval.  gained, lost: labelled pairs that only B, only A has right.
    p: of the exact McNemar test.
    """
    pairs = list(pairs)
    judged = [(a, b) for a, b in pairs if a and b and not a.get("error") and not b.get("error")]
    several = [(a, b) for a, b in judged if a["n"] > 1]
    choices = [(a["best"], a["tie"]) == (b["best"], b["tie"]) for a, b in several]
    credits = [
        (credit_a, credit_b, json.dumps(a.get("query") or [a["id"], a["line"]]))
        for a, b in judged
        if (credit_a := grade(a)) is not None and (credit_b := grade(b)) is not None
    ]
    right = [(a == 1, b == 1) for a, b, _ in credits]
    gained, lost = (sum(pair == one for pair in right) for one in ((False, True), (True, False)))
    return {
        "pairs": len(judged),
        "unpaired": sum(a is None or b is None for a, b in pairs),
        "several": len(several),
        "agreement": mean(choices),
        "changed": choices.count(False),
        "labelled": len(credits),
        "accuracy": [mean(values) for values in zip(*right)] or [None, None],
        "tie_credit": [mean(values) for values in list(zip(*credits))[:2]] or [None, None],
        "difference": difference([b - a for a, b, _ in credits], [q for *_, q in credits]),
        "gained": gained,
        "lost": lost,
        "p": mcnemar(gained, lost),
    }


def difference(values: Sequence[float], prompts: Sequence[str]) -> dict[str, float | None] | None:
    """Returns {"value", "low", "high"}: the mean of paired differences and its 95% interval.

    The bootstrap draws prompts, as `grm eval` does, so comparisons of one prompt stay together.
    None without values.
    """
    if not values:
        return None
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    codes = [numbers[prompt] for prompt in prompts]
    sums, counts = np.bincount(codes, values), np.bincount(codes)
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(sums), size=len(sums)) for _ in range(DRAWS))
    means = [sums[places].sum() / counts[places].sum() for places in drawn]
    low, high = interval(means, len(sums))
    return {"value": float(np.mean(values)), "low": low, "high": high}


def interval(
    draws: Sequence[float], prompts: int, level: float = LEVEL
) -> tuple[float | None, float | None]:
    """Returns the percentile interval of bootstrap draws of some prompts.

    Both bounds are None where fewer than half of the draws have a value, and where all draws of
    fewer than FEW prompts are equal: such draws do not show how far another sample differs.
    """
    known = np.array([value for value in draws if not math.isnan(value)])
    if len(known) < max(2, len(draws) / 2) or (prompts < FEW and np.ptp(known) < 1e-9):
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float | None:
    """Returns the p-value of the exact McNemar test; None if no row changed sides."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else None
