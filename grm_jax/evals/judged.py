"""A comparison with its judgement, from a row of `grm judge`, a scores file, or a baseline.

Scores are in the caller's order everywhere. A benchmark's metric reads only these objects, so every
judge is measured alike.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from grm_jax.judging import votes
from grm_jax.judging.codec import critique_from_json, is_scalar
from grm_jax.judging.votes import Order
from grm_jax.types import FAILED, Comparison, Critique

Scores = tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class JudgedComparison:
    """One judged comparison.

    Attributes:
      scores: the vote over all critiques, one per response; None if none parsed.
      views: the vote within each order in which the responses were shown, None where no critique of
        that order parsed; none of an order whose requests all failed. Empty for judges that do not
        see an order.
      critiques: of a generative judge, with scores in the caller's order.
      num_votes: how many critiques the scores sum over (1 for other judges and rules), which puts a
        threshold on the scale of one critique.
      error: the reason why the comparison was not judged.
    """

    comparison: Comparison
    scores: Scores
    views: tuple[tuple[Order, Scores], ...] = ()
    critiques: tuple[Critique, ...] = ()
    num_votes: int = 1
    error: str | None = None

    @property
    def group(self) -> str:
        """The key that comparisons of one prompt share: the bootstrap draws them together."""
        return str(self.comparison.meta.get("group", self.comparison.id))

    @property
    def subset(self) -> str:
        """The comparison's subset of the benchmark."""
        return str(self.comparison.meta.get("subset", "all"))


def from_row(comparison: Comparison, row: dict[str, Any]) -> JudgedComparison:
    """Builds the judged comparison of a row of `grm judge`; an error row has no scores.

    Raises ValueError for a row of other responses.
    """
    if row.get("error"):
        return JudgedComparison(
            comparison, None, error=str(row["error"].get("reason", "not judged"))
        )
    responses = row.get("responses")
    if len(row["scores"]) != comparison.n or (
        responses is not None and tuple(responses) != comparison.responses
    ):
        raise ValueError(
            f"row {row.get('id')!r} has {len(row['scores'])} responses that differ from the "
            "comparison's: it was judged from other data than --data names"
        )
    if is_scalar(row):
        return JudgedComparison(comparison, tuple(map(float, row["scores"])))
    critiques = tuple(critique_from_json(c, with_text=False) for c in row["critiques"])
    guided = row.get("kept") is not None
    return vote(comparison, critiques, row.get("vote") or "sum", guided, row.get("k_meta"))


def vote(
    comparison: Comparison,
    critiques: Sequence[Critique],
    rule: str = "sum",
    guided: bool = False,
    k_meta: int | None = None,
) -> JudgedComparison:
    """Votes over critiques of a comparison, overall and within each order.

    guided: only the k_meta critiques with the highest meta scores vote; an order without any of
    them has no view.
    """
    verdict = votes.verdict(critiques, comparison.n, rule=rule, guided=guided, k_meta=k_meta)
    parsed = votes.parsed(critiques)
    voting = parsed if verdict.kept is None else [critiques[i] for i in verdict.kept]
    parsed_orders, voting_orders = ({c.order for c in members} for members in (parsed, voting))
    views = tuple(
        (order, votes.all_votes([c for c in voting if c.order == order], comparison.n).get(rule))
        for order in dict.fromkeys(c.order for c in critiques if c.status != FAILED)
        if order in voting_orders or order not in parsed_orders
    )
    return JudgedComparison(
        comparison,
        tuple(verdict.scores) if verdict.votes else None,
        views,
        tuple(critiques),
        num_votes=max(1, len(voting)) if votes.VOTES[rule].additive else 1,
    )
