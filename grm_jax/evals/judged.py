"""A comparison with what a judge said about it, from a row of `grm judge`, a scores file, or a rule.

Scores are in the caller's order everywhere. A benchmark's metric reads nothing but these objects, so that any judge whose
output can be brought into them gets the same treatment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grm_jax.judging import votes
from grm_jax.judging.codec import critique_from_json
from grm_jax.types import Comparison, Critique

Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class JudgedComparison:
    """One judged comparison.

    scores: of the vote over all critiques, one per response; None where nothing could be read.
    views: scores of the vote by the order in which the responses were shown, None where no critique of that order could be read.
    Empty for judges that see each response alone, or no order at all.
    critiques: of a generative judge, scores in the caller's order.  num_votes: how many critiques the scores sum over
    (1 for other judges), so that a threshold on the scale of one critique can be applied.
    """

    comparison: Comparison
    scores: tuple[float, ...] | None
    views: tuple[tuple[Order, tuple[float, ...] | None], ...] = ()
    critiques: tuple[Critique, ...] = ()
    num_votes: int = 1
    error: str | None = None

    @property
    def group(self) -> str:
        """What is resampled as one in the bootstrap: comparisons that share a prompt."""
        return str(self.comparison.meta.get("group", self.comparison.id))

    @property
    def subset(self) -> str:
        """The part of the benchmark that the comparison belongs to."""
        return str(self.comparison.meta.get("subset", "all"))


def from_row(comparison: Comparison, row: dict, rule: str | None = None) -> JudgedComparison:
    """The judged comparison of a row of `grm judge`; an error row has no scores. rule: the row's own vote when None."""
    if row.get("error"):
        return JudgedComparison(
            comparison, None, error=str(row["error"].get("reason", "not judged"))
        )
    critiques = tuple(critique_from_json(c, with_text=False) for c in row["critiques"])
    responses = row.get("responses")
    if len(row["scores"]) != comparison.n or (
        responses is not None and tuple(responses) != comparison.responses
    ):
        raise ValueError(
            f"row {row.get('id')!r} is about {len(row['scores'])} responses that are not those of the comparison: "
            "it was judged from other data than --data names"
        )
    guided = row.get("kept") is not None
    return vote(comparison, critiques, rule or row.get("vote") or "sum", guided, row.get("k_meta"))


def vote(
    comparison: Comparison,
    critiques: Sequence[Critique],
    rule: str = "sum",
    guided: bool = False,
    k_meta: int | None = None,
) -> JudgedComparison:
    """The vote over some critiques of a comparison, and the same vote within each order that they saw.

    guided: in both only the critiques vote that the meta reward model keeps; an order of which it keeps none has no view.
    """
    verdict = votes.verdict(critiques, comparison.n, rule=rule, guided=guided, k_meta=k_meta)
    readable = votes.parsed(critiques)
    voting = [critiques[i] for i in verdict.kept] if verdict.kept is not None else readable
    read, chosen = ({critique.order for critique in those} for those in (readable, voting))
    views = []
    for order in dict.fromkeys(critique.order for critique in critiques):
        if order in chosen or order not in read:
            results = votes.all_votes(
                [critique for critique in voting if critique.order == order], comparison.n
            )
            views.append((order, results.get(rule)))
    scores = tuple(verdict.scores) if verdict.votes else None
    return JudgedComparison(
        comparison,
        scores,
        tuple(views),
        tuple(critiques),
        max(1, len(voting)) if rule == "sum" else 1,
    )
