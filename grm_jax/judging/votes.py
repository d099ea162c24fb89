"""Voting rules: from critiques to one score per response.

Scores are in the caller's order. Unparsed critiques do not vote. To add a rule, register it here:

    @VOTES.register("median")
    @vote_rule(label="median", description="median score", colour="#5a6b78")
    def median_scores(critiques, n):
        return tuple(statistics.median(c.scores[i] for c in critiques) for i in range(n))

`grm judge --vote`, `grm eval --vote`, output rows, the report page, curves over k, plots and tables
read this registry.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from grm_jax.registry import Registry
from grm_jax.types import FAILED, Critique, Verdict

Scores = tuple[float, ...]
Order = tuple[int, ...]  # in which a prompt shows the responses
View = tuple[Order, Sequence[float] | None]  # an order, and the scores within it


@dataclasses.dataclass(frozen=True)
class VoteRule:
    """A voting rule, with everything that tools need to offer and to draw it.

    Attributes:
      function: (critiques, n responses) -> a score per response. All critiques are parsed and have
        the field `needs`.
      label: name in legends.
      description: what it computes, for tables.
      colour: of its curve.
      needs: a field of `Critique` that must not be None for a critique to vote, besides scores.
      min_responses: the rule applies to comparisons of at least so many responses.
      additive: scores grow with the number of critiques that vote.
      curve: draw it over k. False for a rule that ranks responses as another one does.
    """

    function: Callable[[Sequence[Critique], int], Scores]
    label: str
    description: str
    colour: str
    needs: str = "scores"
    min_responses: int = 1
    additive: bool = False
    curve: bool = True

    def __call__(self, critiques: Sequence[Critique], n: int) -> Scores:
        return self.function(critiques, n)


VOTES: Registry[VoteRule] = Registry("vote")


class NoVote(ValueError):
    """Some critiques are parsed, but none of them has the field that the chosen rule needs."""


def vote_rule(**fields: Any) -> Callable[[Callable[..., Scores]], VoteRule]:
    """Returns a decorator that makes a function a `VoteRule` with these fields."""
    return lambda function: VoteRule(function, **fields)


@VOTES.register("sum")
@vote_rule(
    label="sum", description="sum of scores (the paper's voting)", colour="#2f6fb0", additive=True
)
def sum_scores(critiques: Sequence[Critique], n: int) -> Scores:
    """Sums each response's scores over the samples (SPCT, eq. 14)."""
    return tuple(math.fsum(critique.scores[i] for critique in critiques) for i in range(n))


# Not a rule of its own: the sum over the critiques that `kept_by_meta` returns.
META_GUIDED = dataclasses.replace(
    sum_scores,
    label="sum, meta-guided",
    description="sum over the half that the meta reward model keeps",
    colour="#8a4fb0",
)


@VOTES.register("mean")
@vote_rule(label="mean", description="mean of scores", colour="#5a6b78", curve=False)
def mean_scores(critiques: Sequence[Critique], n: int) -> Scores:
    """Averages over the samples: the sum on the scale of one critique, comparable for any k."""
    return tuple(total / len(critiques) for total in sum_scores(critiques, n))


@VOTES.register("expected")
@vote_rule(
    label="expected", description="expected scores", colour="#3c8d5a", needs="expected_scores"
)
def expected_scores(critiques: Sequence[Critique], n: int) -> Scores:
    """Averages the expected scores under the model's distribution over score tokens.

    A parsed critique has none if a score is not a whole number ("7.5") or its tokens cannot be
    located.
    """
    return tuple(
        math.fsum(c.expected_scores[i] for c in critiques) / len(critiques) for i in range(n)
    )


@VOTES.register("majority")
@vote_rule(
    label="majority", description="majority of first places", colour="#b5651d", min_responses=2
)
def majority(critiques: Sequence[Critique], n: int) -> Scores:
    """Counts the critiques that rank each response first; t tied responses get 1/t each."""
    counts = [0.0] * n
    for critique in critiques:
        winners = top(critique.scores or ())
        for i in winners:
            counts[i] += 1 / len(winners)
    return tuple(counts)


def curve_rules() -> list[str]:
    """Returns the rules that curves over k show; those that need more than scores come last."""
    names = [name for name, rule in VOTES.items() if rule.curve]
    return sorted(names, key=lambda name: VOTES[name].needs != "scores")


def parsed(critiques: Sequence[Critique]) -> list[Critique]:
    """Returns the critiques that have scores."""
    return [c for c in critiques if c.status == "ok" and c.scores is not None]


def all_votes(critiques: Sequence[Critique], n: int) -> dict[str, Scores]:
    """Returns the scores by every rule with at least one voter; {} if no critique is parsed."""
    return {
        name: rule(voters, n)
        for name, rule in VOTES.items()
        if (voters := [c for c in parsed(critiques) if getattr(c, rule.needs) is not None])
    }


def top(scores: Sequence[float]) -> list[int]:
    """Returns the indices of the highest score: several on a tie.

    Scores within 1e-9 are equal, as sums of thirds are rounded.
    """
    best = max(scores)
    return [
        i for i, score in enumerate(scores) if math.isclose(score, best, rel_tol=1e-9, abs_tol=1e-9)
    ]


def winner(scores: Sequence[float] | None) -> int | None:
    """Returns the index of the highest score; None on a tie, and without scores."""
    winners = top(scores) if scores else []
    return winners[0] if len(winners) == 1 else None


def credit(scores: Sequence[float], best: Collection[int | None]) -> float:
    """Returns the share of the highest-scored responses that are in `best`.

    1 is right, 0 wrong, ties are between.
    """
    winners = top(scores)
    return sum(i in best for i in winners) / len(winners)


def decided(views: Iterable[View]) -> list[tuple[Order, int]]:
    """Returns (order, winner) of the views that have a single winner."""
    return [(order, best) for order, scores in views if (best := winner(scores)) is not None]


def flipped(views: Iterable[View]) -> bool | None:
    """Returns whether views name different winners; None if fewer than two have scores."""
    parsed = [view for view in views if view[1] is not None]
    return len({best for _, best in decided(parsed)}) > 1 if len(parsed) > 1 else None


def kept_by_meta(critiques: Sequence[Critique], k_meta: int | None = None) -> tuple[int, ...]:
    """Returns the indices of the k_meta parsed critiques with the highest meta scores, ascending.

    SPCT, section 4. Of equal meta scores the earlier sample is kept.

    Args:
      k_meta: None for half of all critiques, at least one.

    Raises:
      ValueError: k_meta is below 1, or a parsed critique has no meta score.
    """
    k_meta = max(1, len(critiques) // 2) if k_meta is None else k_meta
    if k_meta < 1:
        raise ValueError(f"k_meta = {k_meta}: keep at least one critique")
    scores = {}
    for i, critique in enumerate(critiques):
        if critique.status == "ok" and critique.scores is not None:
            if critique.meta_score is None:
                raise ValueError(
                    f"critique {i} has no meta score: run the meta reward model over all critiques "
                    "that were parsed"
                )
            scores[i] = critique.meta_score
    return tuple(sorted(sorted(scores, key=lambda i: -scores[i])[:k_meta]))


def verdict(
    critiques: Sequence[Critique],
    n: int,
    id: str | None = None,
    rule: str = "sum",
    guided: bool = False,
    k_meta: int | None = None,
) -> Verdict:
    """Returns the verdict of critiques whose scores are in the caller's order.

    If none is parsed, the scores are all 0, best is None and unparsed is the number of critiques.

    Args:
      n: number of responses.
      rule: name of the rule that decides scores and best.
      guided: only the critiques vote that the meta reward model keeps (`kept_by_meta`).

    Raises:
      ValueError: unknown rule.
      NoVote: no critique that votes has the field that the rule needs.
    """
    needs = VOTES[rule].needs.replace("_", " ")
    kept = kept_by_meta(critiques, k_meta) if guided else None
    votes = all_votes([critiques[i] for i in kept] if kept is not None else critiques, n)
    if votes and rule not in votes:
        raise NoVote(
            f"vote {rule!r}: none of the critiques that vote has {needs}. Judge "
            "with expected=True (scores must be whole numbers), with more critiques, or vote by sum"
        )
    scores = votes.get(rule, (0.0,) * n)
    return Verdict(
        id=id,
        scores=scores,
        best=winner(scores) if votes else None,
        critiques=tuple(critiques),
        unparsed=sum(c.status != FAILED for c in critiques) - len(parsed(critiques)),
        votes=votes,
        kept=kept,
    )
