"""What goes into a judge and what comes out: plain frozen dataclasses, standard library only.

`Comparison` is a query with its candidate responses, `Critique` is one sampled text as it was read, `Verdict` is the
vote over the critiques of a comparison.
Indices: "caller's order" is the order of `Comparison.responses`; "prompt order" is the order in which a prompt showed
them. `order[j]` is the caller's index of the response at position j.
"""

from __future__ import annotations

import dataclasses
from typing import Any

STATUSES = ("ok", "no_scores", "wrong_count", "out_of_range", "truncated")

Turn = dict[str, str]  # {"role": "user" | "assistant" | "system", "content": text}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A query and the responses to be judged.

    query: the user's text, or a conversation as a list of {"role", "content"} whose last turn is the one answered.
    responses: one or more texts.
    reference: a known good answer, shown to the judge only by templates that ask for it.
    label: index of the best response, or ground-truth rewards, one per response (for one response: (1.0,) right,
    (0.0,) wrong).
    Raises ValueError for no responses, an empty query, a label that does not fit, or a turn without role and content.
    """

    query: str | list[Turn]
    responses: tuple[str, ...]
    reference: str | None = None
    label: int | tuple[float, ...] | None = None
    id: str | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.responses, str):
            raise ValueError("responses is one string: pass a list of strings, one per response")
        object.__setattr__(self, "responses", tuple(self.responses))
        if not self.responses:
            raise ValueError("responses is empty: a comparison needs at least one response")
        for i, response in enumerate(self.responses):
            if not isinstance(response, str):
                raise ValueError(
                    f"responses[{i}] is a {type(response).__name__}: every response must be a string"
                )
        _check_query(self.query)
        object.__setattr__(self, "label", _check_label(self.label, len(self.responses)))

    @property
    def n(self) -> int:
        """Number of responses."""
        return len(self.responses)

    @property
    def turns(self) -> list[Turn]:
        """The query as chat turns, whichever way it was given."""
        if isinstance(self.query, str):
            return [{"role": "user", "content": self.query}]
        return [dict(turn) for turn in self.query]

    @property
    def best(self) -> int | None:
        """Index of the labelled best response; None without a label, for one response, or for several maxima."""
        if self.label is None or self.n == 1:
            return None
        if isinstance(self.label, int):
            return self.label
        top = max(self.label)
        return self.label.index(top) if self.label.count(top) == 1 else None

    @property
    def rewards(self) -> tuple[float, ...] | None:
        """Ground-truth rewards, one per response; an index label becomes 1.0 for the best and 0.0 for the others."""
        if isinstance(self.label, int):
            return tuple(float(i == self.label) for i in range(self.n))
        return self.label


def _check_query(query) -> None:
    if isinstance(query, str):
        if not query.strip():
            raise ValueError("query is empty: give the text or the turns that the responses answer")
        return
    if not isinstance(query, (list, tuple)) or not query:
        raise ValueError(
            f"query is a {type(query).__name__} of no turns: give a string or a list of role/content turns"
        )
    for i, turn in enumerate(query):
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("role"), str)
            or not isinstance(turn.get("content"), str)
        ):
            raise ValueError(
                f"query[{i}] is {turn!r:.80}: every turn needs a string role and a string content"
            )


def _check_label(label, n: int):
    if label is None:
        return None
    if isinstance(label, bool):
        raise ValueError("label is a bool: give an index, or a tuple of rewards")
    if hasattr(label, "__index__"):  # int, or an integer of numpy
        label = int(label)
        if not 0 <= label < n:
            raise ValueError(f"label {label} is not an index of {n} responses: use 0 to {n - 1}")
        return label
    try:
        rewards = tuple(float(x) for x in label)
    except (TypeError, ValueError):
        raise ValueError(f"label {label!r:.80} is neither an index nor a list of rewards") from None
    if len(rewards) != n:
        raise ValueError(
            f"label has {len(rewards)} rewards for {n} responses: give one per response"
        )
    return rewards


@dataclasses.dataclass(frozen=True)
class Principle:
    """A criterion that the judge wrote: its name, its weight in percent (None where it gave none) and what it asks."""

    name: str
    weight: float | None = None
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Critique:
    """One sampled text and what was read from it.

    scores: one per response, or None unless status is "ok". From the parser they are in prompt order with order =
    (0..n-1); inside a Verdict they are in the caller's order, whatever `order` the prompt had (see `in_caller_order`).
    expected_scores: the same, as the expectation over the model's score tokens.
    meta_score: logit of the meta reward model.
    tokens: length of the text in tokens.  sample: index among the k of its comparison.  finish: "stop" or "length".
    """

    text: str
    principles: tuple[Principle, ...] = ()
    analysis: str = ""
    scores: tuple[float, ...] | None = None
    order: tuple[int, ...] = ()
    status: str = "no_scores"
    meta_score: float | None = None
    expected_scores: tuple[float, ...] | None = None
    tokens: int = 0
    sample: int = 0
    seed: int = 0
    finish: str | None = None

    def in_caller_order(self, order: tuple[int, ...]) -> Critique:
        """This critique, read in prompt order, with its scores put back where the caller has the responses."""
        return dataclasses.replace(
            self,
            order=tuple(order),
            scores=_put_back(self.scores, order),
            expected_scores=_put_back(self.expected_scores, order),
        )


def _put_back(scores, order):
    if scores is None:
        return None
    back = [0.0] * len(order)
    for position, index in enumerate(order):
        back[index] = scores[position]
    return tuple(back)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The vote over a comparison's critiques.

    scores: one per response, caller's order (by default the sum over the votes; empty of meaning if no critique could
    be read: all 0).
    best: index of the highest score, None on a tie or where nothing could be read.  unparsed: critiques left out of
    the vote because they could not be read.
    votes: the same vote by every rule ("sum", "mean", "expected", "majority"), a rule missing where its inputs are.
    """

    id: str | None
    scores: tuple[float, ...]
    best: int | None
    critiques: tuple[Critique, ...]
    unparsed: int
    votes: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    kept: tuple[int, ...] | None = (
        None  # samples that the meta reward model let vote; None without one
    )

    @property
    def tie(self) -> bool:
        """Whether several responses share the highest score; False where no critique could be read."""
        return self.best is None and self.unparsed < len(self.critiques)
