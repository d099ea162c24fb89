"""Input and output of a judge: plain frozen dataclasses, standard library only.

`Comparison` is a query with its candidate responses, `Critique` is one sampled and parsed text,
`Verdict` is the vote over the critiques of a comparison, and `Ranking` its responses, best first.

Orders: "caller's order" is the order of `Comparison.responses`, "prompt order" the order in which a
prompt shows them; `order[j]` is the caller's index of the response at position j.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from grm_jax import display, strict_json

# Statuses of critiques without scores: (what is wrong, what to do). The one list of them.
_MODEL = "use another model or --template"
UNPARSED: dict[str, tuple[str, str]] = {
    "truncated": ("are cut off", "raise --max_new_tokens"),
    "unfinished_thinking": ("end within their thinking", "raise --max_new_tokens"),
    "only_thinking": (
        "have no scores after their thinking",
        "raise --max_new_tokens, or turn the model's thinking off",
    ),
    "no_scores": ("have no scores", _MODEL),
    "wrong_count": ("have another number of scores than responses", _MODEL),
    "wrong_labels": ("name responses that are missing, doubled or unknown", _MODEL),
    "malformed_box": ("have a box that is not a list of numbers", _MODEL),
    "malformed_section": ("have a scores section without scores that can be parsed", _MODEL),
    "wrong_scale": (
        "have scores out of another maximum",
        "use another model, or a --template that states the scale",
    ),
    "out_of_range": (
        "have scores outside the scale",
        "use another model, or a --template that states the scale",
    ),
}
STATUSES = ("ok", *UNPARSED)  # of a text
FAILED = "failed"  # status of a critique without a text: its request to an endpoint failed for good

ROLES = ("user", "assistant", "system", "tool")  # of a turn
ROLE_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}

Turn = dict[str, str]  # {"role": one of ROLES, "content": text}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A query and the responses to be judged.

    Attributes:
      query: the user's text, or a conversation as a list of {"role", "content"} whose last turn is
        the one answered.
      responses: one or more texts.
      reference: a known good answer, shown to the judge only by templates that use one.
      label: index of the best response, or ground-truth rewards, one per response. Of a single
        response: 1 (correct) or 0 (incorrect), stored as (1.0,) or (0.0,).
      id, meta: copied into the verdict's row; meta holds values of JSON.

    Raises:
      ValueError: no responses, an empty query, a label that does not fit, a turn without role and
        content, a field of another type, or half a surrogate pair in a text.
    """

    query: str | list[Turn]
    responses: tuple[str, ...]
    reference: str | None = None
    label: int | tuple[float, ...] | None = None
    id: str | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    if TYPE_CHECKING:  # lists are accepted, and stored as tuples

        def __init__(
            self,
            query: str | list[Turn],
            responses: Sequence[str],
            reference: str | None = None,
            label: int | Sequence[float] | None = None,
            id: str | None = None,
            meta: dict[str, Any] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.responses, str):
            raise ValueError("responses is one string: pass a list of strings, one per response")
        if isinstance(self.responses, bytes | Mapping | Set) or not isinstance(
            self.responses, Iterable
        ):  # a set has no order that is the same twice
            raise ValueError(
                f"responses is a {type(self.responses).__name__}: pass a list of strings, one per "
                "response"
            )
        object.__setattr__(self, "responses", tuple(self.responses))
        if not self.responses:
            raise ValueError("responses is empty: a comparison needs at least one response")
        for i, response in enumerate(self.responses):
            if not isinstance(response, str):
                raise ValueError(
                    f"responses[{i}] is a {type(response).__name__}: every response must be a "
                    "string"
                )
        for name in ("reference", "id"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ValueError(f"{name} is {display.shown(value)}: give a string or None")
        if not isinstance(self.meta, dict):
            raise ValueError(f"meta is a {type(self.meta).__name__}: give a dict")
        _check_query(self.query)
        for name in ("query", "responses", "reference", "id", "meta"):
            if problem := strict_json.problem(getattr(self, name), name):
                raise ValueError(problem)
        object.__setattr__(self, "label", _checked_label(self.label, len(self.responses)))

    @property
    def n(self) -> int:
        """Number of responses."""
        return len(self.responses)

    @property
    def turns(self) -> list[Turn]:
        """The query as chat turns; a text is one user turn."""
        if isinstance(self.query, str):
            return [{"role": "user", "content": self.query}]
        return [dict(turn) for turn in self.query]

    @property
    def best(self) -> int | None:
        """Index of the best response by label; None without one, on ties, and for one response."""
        if self.label is None or self.n == 1:
            return None
        if isinstance(self.label, int):
            return self.label
        top = max(self.label)
        return self.label.index(top) if self.label.count(top) == 1 else None

    @property
    def rewards(self) -> tuple[float, ...] | None:
        """Ground-truth rewards, one per response; an index label gives 1.0 to the best one."""
        if isinstance(self.label, int):
            return tuple(float(i == self.label) for i in range(self.n))
        return self.label

    def __repr__(self) -> str:
        query = self.query if isinstance(self.query, str) else self.turns[-1]["content"]
        fields = [display.shortened(query), display.counted(self.n, "response")]
        fields += [f"label={self.label}"] if self.label is not None else []
        fields += [f"id={self.id!r}"] if self.id is not None else []
        return f"Comparison({', '.join(fields)})"


def _check_query(query: Any) -> None:
    if isinstance(query, str):
        if not query.strip():
            raise ValueError("query is empty: give the text or the turns that the responses answer")
        return
    if not isinstance(query, (list, tuple)):
        raise ValueError(
            f"query is {display.shown(query)}: give a string or a list of role/content turns"
        )
    if not query:
        raise ValueError("query has no turns: give the text or the turns to be answered")
    for i, turn in enumerate(query):
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(name), str) for name in ("role", "content")
        ):
            raise ValueError(
                f"query[{i}] is {display.shown(turn)}: every turn needs a string role and a string "
                "content"
            )
    if not any(turn["content"].strip() for turn in query):
        raise ValueError("query has no text: give the turns that the responses answer")


def _checked_label(label: Any, n: int) -> int | tuple[float, ...] | None:
    if label is None:
        return None
    if isinstance(label, bool):
        raise ValueError("label is a bool: give an index, or a tuple of rewards")
    if (index := _as_index(label)) is not None:
        label = index
        if n == 1 and label in (0, 1):
            return (float(label),)
        if n == 1:
            raise ValueError(f"label {label} of one response: use 1 (correct) or 0 (incorrect)")
        if not 0 <= label < n:
            raise ValueError(f"label {label} is not an index of {n} responses: use 0 to {n - 1}")
        return label
    if isinstance(label, str | bytes | Mapping | Set) or not isinstance(label, Iterable):
        raise ValueError(f"label {display.shown(label)} is neither an index nor a list of rewards")
    rewards = tuple(_reward(x) for x in label)
    if len(rewards) != n:
        raise ValueError(
            f"label has {len(rewards)} rewards for {n} responses: give one per response"
        )
    if n == 1 and rewards[0] not in (0, 1):
        raise ValueError(f"label {rewards[0]:g} of one response: use 1 (correct) or 0 (incorrect)")
    return rewards


def _as_index(label: Any) -> int | None:
    """Returns an int of Python or NumPy as an int, None for anything else."""
    try:
        return operator.index(label)
    except TypeError:
        return None


def _reward(value: Any) -> float:
    is_number = hasattr(value, "__float__") and not isinstance(value, bool)
    try:
        reward = float(value) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):  # an array of several numbers, 10**400
        reward = math.nan
    if not math.isfinite(reward):
        raise ValueError(f"label has the reward {display.shown(value)}: give a finite number")
    return reward


@dataclasses.dataclass(frozen=True)
class Principle:
    """A criterion that the judge wrote: name, weight in percent (None if unset), description."""

    name: str
    weight: float | None = None
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Critique:
    """One sampled text, parsed.

    Attributes:
      scores: one per response; None unless status is "ok". In prompt order from the parser, with
        order = (0, ..., n - 1); in the caller's order in a Verdict (`in_caller_order`).
      order: the order in which the prompt showed the responses.
      status: "ok", a key of `UNPARSED`, which says why there are no scores, or `FAILED`.
      expected_scores: like scores, the expectation over the model's score tokens.
      meta_score: score of the meta reward model.
      tokens: length of the text in tokens.
      sample: index among the k samples of its comparison.
      finish: "stop" or "length"; None if unknown.
      prompt_tokens: length of its prompt as counted by an endpoint, else None.
      error: why the request failed, for the status `FAILED`.
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
    prompt_tokens: int | None = None
    error: str | None = None

    def __repr__(self) -> str:
        names = ", ".join(principle.name for principle in self.principles)
        return (
            f"Critique({self.status}, scores={display.tuple_text(self.scores)}, "
            f"order={self.order}, principles={display.shortened(names)}, sample={self.sample})"
        )

    def _repr_html_(self) -> str:
        """Returns the HTML that a notebook shows: scores, principles as bars, the text."""
        return display.critique_html(self)

    def in_caller_order(self, order: tuple[int, ...]) -> Critique:
        """Returns this critique, in prompt order, with its scores in the caller's order."""
        return dataclasses.replace(
            self,
            order=tuple(order),
            scores=_unpermuted(self.scores, order),
            expected_scores=_unpermuted(self.expected_scores, order),
        )


def _unpermuted(
    scores: tuple[float, ...] | None, order: tuple[int, ...]
) -> tuple[float, ...] | None:
    if scores is None:
        return None
    result = [0.0] * len(order)
    for position, index in enumerate(order):
        result[index] = scores[position]
    return tuple(result)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The vote over a comparison's critiques.

    Attributes:
      scores: one per response in the caller's order, by default the sum over critiques; all 0 if no
        critique was parsed. Of a scalar reward model: the rewards.
      best: index of the highest score; None on a tie, or if no critique was parsed.
      unparsed: number of critiques whose text has no scores; they do not vote.
      votes: the scores by every rule of `judging.votes.VOTES` whose inputs exist.
      kept: indices of the critiques that the meta reward model let vote; None without one.
      principles: the text that all critiques judged by; None if each wrote its own.
      prompt_tokens: of the prompts, one for each distinct order; by endpoint, of all requests.
    """

    id: str | None
    scores: tuple[float, ...]
    best: int | None
    critiques: tuple[Critique, ...]
    unparsed: int
    votes: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    kept: tuple[int, ...] | None = None
    principles: str | None = None
    prompt_tokens: int = 0

    @property
    def is_scalar(self) -> bool:
        """Whether the scores are the rewards of a scalar reward model, without critiques."""
        return bool(self.scores) and not self.critiques

    @property
    def failed(self) -> int:
        """Number of critiques that an endpoint did not return; they do not vote."""
        return sum(critique.status == FAILED for critique in self.critiques)

    @property
    def tie(self) -> bool:
        """Whether several responses share the highest score; False if no critique was parsed."""
        voted = self.is_scalar or self.unparsed + self.failed < len(self.critiques)
        return self.best is None and voted

    def explain(self, width: int = 80) -> str:
        """Returns the verdict as plain text: the vote, and every critique with its principles.

        Responses are numbered from 1, as in the prompts; `best` and `order` count from 0.

        Args:
          width: longest line in characters.
        """
        return display.verdict_text(self, width)

    def __repr__(self) -> str:
        fields = [f"id={self.id!r}"] if self.id is not None else []
        fields += [f"best={self.best}", f"scores={display.tuple_text(self.scores)}"]
        fields += [display.counted(len(self.critiques), "critique"), f"unparsed={self.unparsed}"]
        return f"Verdict({', '.join(fields)})"

    def _repr_html_(self) -> str:
        """Returns the HTML that a notebook shows: the vote, and each critique folded."""
        return display.verdict_html(self)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Responses in the order of a verdict's scores, best first.

    Attributes:
      order: the caller's indices, best first; responses with equal scores keep the caller's order.
      ranks: from 1, best first; responses with equal scores have the same rank.
      responses, scores: best first.
    """

    order: tuple[int, ...]
    ranks: tuple[int, ...]
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    verdict: Verdict

    @classmethod
    def of(cls, responses: tuple[str, ...], verdict: Verdict) -> Ranking:
        """Returns the ranking of the responses of a verdict, both in the caller's order."""
        scores = verdict.scores
        ranks: list[int] = []
        order = sorted(range(len(responses)), key=lambda i: -scores[i])
        for place, i in enumerate(order):
            above = scores[order[place - 1]] if place else math.inf
            equal = math.isclose(scores[i], above, rel_tol=1e-9, abs_tol=1e-9)
            ranks.append(ranks[-1] if equal else place + 1)
        order = [i for _, i in sorted(zip(ranks, order))]
        return cls(
            tuple(order),
            tuple(ranks),
            tuple(responses[i] for i in order),
            tuple(scores[i] for i in order),
            verdict,
        )

    def __repr__(self) -> str:
        return f"Ranking(order={self.order}, scores={display.tuple_text(self.scores)})"

    def _repr_html_(self) -> str:
        """Returns the HTML that a notebook shows: the responses, best first, and the critiques."""
        return display.ranking_html(self)
