"""Groups and their rewards: what a trainer sends to a judge and gets back; no JAX is imported.

`score` (judging/rewards.py) maps groups to rewards; the server and the adapters carry both as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from grm_jax.types import Comparison, Critique, Turn

SCORED, UNPARSED, FAILED = "scored", "unparsed", "failed"
STATUSES = (SCORED, UNPARSED, FAILED)  # of a reward


@dataclasses.dataclass(frozen=True)
class Group:
    """The responses of a policy to one prompt, rewarded together.

    Attributes:
      prompt: the user's text, or a conversation as a list of {"role", "content"}.
      responses: one or more texts.
      reference: a known good answer, shown to the judge.
      principles: text of the principles to judge by; None if the judge writes them.
      id: copied into the result.

    Raises ValueError as `Comparison`.
    """

    prompt: str | list[Turn]
    responses: tuple[str, ...]
    reference: str | None = None
    principles: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "responses", self.comparison.responses)
        if self.principles is not None and not isinstance(self.principles, str):
            raise ValueError(
                f"principles is a {type(self.principles).__name__}: give a text or None"
            )

    @property
    def comparison(self) -> Comparison:
        """The group as input of a judge."""
        return Comparison(self.prompt, self.responses, self.reference, id=self.id)


@dataclasses.dataclass(frozen=True)
class ResponseReward:
    """The reward of one response.

    Attributes:
      reward: None unless the status is "scored"; never a number that stands for a failure.
      status: "scored"; "unparsed": no critique has scores; "failed": the judge has no text.
      reason: why there is no reward; None if there is one.
    """

    reward: float | None
    status: str = SCORED
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class GroupRewards:
    """The rewards of a group, one per response in the caller's order.

    Attributes:
      critiques: if requested; scores in the caller's order.
      principles: the text that all critiques of the group judged by; None if each wrote its own.
      prompt_tokens, new_tokens: of all critiques.
    """

    id: str | None
    rewards: tuple[ResponseReward, ...]
    critiques: tuple[Critique, ...] = ()
    principles: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0

    @classmethod
    def without(cls, group: Group, status: str, reason: str) -> GroupRewards:
        """Returns the result of a group that has no rewards, all with one reason."""
        return cls(group.id, (ResponseReward(None, status, reason),) * len(group.responses))

    @property
    def values(self) -> list[float | None]:
        """The rewards as numbers, None where there is none."""
        return [reward.reward for reward in self.rewards]


def group_of(fields: dict[str, Any]) -> Group:
    """Returns the group of a JSON object. Raises ValueError that names a wrong or unknown field."""
    names = [field.name for field in dataclasses.fields(Group)]
    if unknown := sorted(set(fields) - set(names)):
        raise ValueError(f"unknown field {unknown[0]!r}: a group has {', '.join(names)}")
    for name in ("prompt", "responses"):
        if name not in fields:
            raise ValueError(f"a group has no {name}")
    return Group(**fields)


def groups_of(rows: Sequence[dict[str, Any]]) -> list[Group]:
    """Returns the groups of JSON objects. Raises ValueError that names the group."""
    groups = []
    for i, row in enumerate(rows):
        try:
            groups.append(group_of(row))
        except ValueError as error:
            raise ValueError(f"groups[{i}]: {error}") from None
    return groups
