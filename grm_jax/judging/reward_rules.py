"""Rewards: from the critiques of a prompt to a number per response. No JAX is imported.

To add a reward, register it here:

    @REWARDS.register("median")
    @reward_rule(label="median score", description="median of the scores")
    def median(critiques, n):
        return tuple(statistics.median(c.scores[i] for c in critiques) for i in range(n))
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.judging.votes import VOTES, Scores
from grm_jax.registry import Registry
from grm_jax.types import Critique

EQUAL = 1e-9  # scores this close are tied, as in `votes.top`


@dataclasses.dataclass(frozen=True)
class RewardRule:
    """A reward: from critiques to a number per response.

    Attributes:
      function: (critiques, n responses) -> a value per response. All critiques are parsed and have
        the field `needs`. Values must be comparable up to a constant per prompt (`blocks.combine`).
      label: name in tables.
      description: what it computes, with its range.
      needs: a field of `Critique` that must not be None for a critique to count.
      min_responses: of a group.
      in_group: the values of all responses of a group -> their rewards; None if they are equal.
    """

    function: Callable[[Sequence[Critique], int], Scores]
    label: str
    description: str
    needs: str = "scores"
    min_responses: int = 1
    in_group: Callable[[Sequence[float]], Scores] | None = None


REWARDS: Registry[RewardRule] = Registry("reward")


def reward_rule(**fields: Any) -> Callable[[Callable[..., Scores]], RewardRule]:
    """Returns a decorator that makes a function a `RewardRule` with these fields."""
    return lambda function: RewardRule(function, **fields)


def normalised_ranks(values: Sequence[float]) -> Scores:
    """Returns (values below + half of the other values that are equal) / (n - 1), from 0 to 1.

    The highest single value gets 1, the lowest 0, all equal ones 0.5; the mean is always 0.5.
    """
    others = len(values) - 1
    below = [sum(other < value - EQUAL for other in values) for value in values]
    ties = [sum(abs(other - value) <= EQUAL for other in values) - 1 for value in values]
    return tuple((b + t / 2) / others for b, t in zip(below, ties))


def win_rate(critiques: Sequence[Critique], n: int) -> Scores:
    """Returns the share of (critique, other response) pairs with a lower score; ties count half."""
    ranks = [normalised_ranks(critique.scores or ()) for critique in critiques]
    return tuple(sum(rank[i] for rank in ranks) / len(ranks) for i in range(n))


REWARDS.add(
    "mean",
    RewardRule(VOTES["mean"].function, "mean score", "mean score over the critiques, 1 to 10"),
)
REWARDS.add(
    "rank",
    RewardRule(
        VOTES["mean"].function,
        "rank",
        "rank of the mean score within the group, 0 (lowest) to 1 (highest), ties share",
        min_responses=2,
        in_group=normalised_ranks,
    ),
)
REWARDS.add(
    "win_rate",
    RewardRule(
        win_rate,
        "win rate",
        "share of (critique, other response) pairs won, 0 to 1, ties count half",
        min_responses=2,
    ),
)
REWARDS.add(
    "expected",
    RewardRule(
        VOTES["expected"].function,
        "expected score",
        "mean of the expected scores over the critiques, 1 to 10",
        needs="expected_scores",
    ),
)
