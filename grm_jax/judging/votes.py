"""From critiques to one score per response. Scores are in the caller's order here; critiques that could not be read do not vote."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grm_jax.types import Critique, Verdict

RULES = ("sum", "mean", "expected", "majority")


class NoVote(ValueError):
    """Critiques could be read, but none of them can vote by the rule that was asked for."""


def readable(critiques: Sequence[Critique]) -> list[Critique]:
    """The critiques whose scores could be read."""
    return [
        critique
        for critique in critiques
        if critique.status == "ok" and critique.scores is not None
    ]


def sum_scores(critiques: Sequence[Critique], n: int) -> tuple[float, ...]:
    """SPCT's vote (eq. 14): the sum over samples of each response's score."""
    return tuple(math.fsum(critique.scores[i] for critique in critiques) for i in range(n))


def mean_scores(critiques: Sequence[Critique], n: int) -> tuple[float, ...]:
    """The mean over samples: the sum on the scale of one critique, comparable between comparisons with different k."""
    return tuple(total / len(critiques) for total in sum_scores(critiques, n))


def majority(critiques: Sequence[Critique], n: int) -> tuple[float, ...]:
    """How many critiques have each response first; t responses that share the first place get 1/t each."""
    counts = [0.0] * n
    for critique in critiques:
        winners = top(critique.scores)
        for i in winners:
            counts[i] += 1 / len(winners)
    return tuple(counts)


def expected(critiques: Sequence[Critique], n: int) -> tuple[float, ...] | None:
    """The mean of the expected scores under the model's own score tokens, over the critiques that have them.

    A readable critique has none where a score is no whole number ("7.5") or its tokens cannot be located: it does not vote here.
    None where no critique has them.
    """
    having = [
        critique.expected_scores for critique in critiques if critique.expected_scores is not None
    ]
    return (
        tuple(math.fsum(scores[i] for scores in having) / len(having) for i in range(n))
        if having
        else None
    )


def votes(critiques: Sequence[Critique], n: int) -> dict[str, tuple[float, ...]]:
    """Every rule that can be applied to the readable among these critiques; empty where none can be read."""
    voting = readable(critiques)
    if not voting:
        return {}
    found = {"sum": sum_scores, "mean": mean_scores, "expected": expected, "majority": majority}
    results = {rule: vote(voting, n) for rule, vote in found.items()}
    return {rule: scores for rule, scores in results.items() if scores is not None}


def top(scores: Sequence[float]) -> list[int]:
    """Indices of the highest score; several on a tie. Sums of thirds count as equal to within 1e-9."""
    best = max(scores)
    return [
        i for i, score in enumerate(scores) if math.isclose(score, best, rel_tol=1e-9, abs_tol=1e-9)
    ]


def kept_by_meta(critiques: Sequence[Critique], k_meta: int | None = None) -> tuple[int, ...]:
    """Positions of the k_meta readable critiques with the highest meta score, in rising order (SPCT, section 4).

    k_meta: half of all critiques when None, at least one. Equal meta scores keep the earlier sample.
    Raises ValueError where a readable critique has no meta score.
    """
    k_meta = max(1, len(critiques) // 2) if k_meta is None else k_meta
    if k_meta < 1:
        raise ValueError(f"k_meta = {k_meta}: keep at least one critique")
    candidates = [
        i
        for i, critique in enumerate(critiques)
        if critique.status == "ok" and critique.scores is not None
    ]
    missing = [i for i in candidates if critiques[i].meta_score is None]
    if missing:
        raise ValueError(
            f"critique {missing[0]} has no meta score: run the meta reward model over all that can be read"
        )
    ranked = sorted(candidates, key=lambda i: (-critiques[i].meta_score, i))
    return tuple(sorted(ranked[:k_meta]))


def verdict(
    critiques: Sequence[Critique],
    n: int,
    id: str | None = None,
    rule: str = "sum",
    guided: bool = False,
    k_meta: int | None = None,
) -> Verdict:
    """The verdict of critiques whose scores are already in the caller's order.

    rule: which vote decides scores and best.  guided: let only the critiques vote that the meta reward model keeps.
    Where nothing can be read the scores are all 0, best is None, and unparsed equals the number of critiques.
    Raises ValueError for an unknown rule, NoVote for "expected" where no critique that votes has expected scores.
    """
    if rule not in RULES:
        raise ValueError(f"vote {rule!r}: use one of {', '.join(RULES)}")
    kept = kept_by_meta(critiques, k_meta) if guided else None
    results = votes([critiques[i] for i in kept] if guided else critiques, n)
    if results and rule not in results:
        raise NoVote(
            "vote 'expected': none of the critiques that vote has expected scores, which need whole numbers in the box: "
            "judge with expected=True, with more critiques, or vote by sum"
        )
    scores = results.get(rule, (0.0,) * n)
    winners = top(scores) if results else []
    return Verdict(
        id=id,
        scores=scores,
        best=winners[0] if len(winners) == 1 else None,
        critiques=tuple(critiques),
        unparsed=len(critiques) - len(readable(critiques)),
        votes=results,
        kept=kept,
    )
