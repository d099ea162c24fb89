"""Groups and their rewards: what a trainer sends to a judge and gets back; no JAX is imported.

`score` (judging/rewards.py) maps groups to rewards; the server and the adapters carry both as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax import strict_json
from grm_jax.judging.codec import critique_from_json, critique_to_json
from grm_jax.registry import nearest
from grm_jax.types import Comparison, Critique, Turn

SCORED, UNPARSED, FAILED = "scored", "unparsed", "failed"
STATUSES = (SCORED, UNPARSED, FAILED)  # of a reward


@dataclasses.dataclass(frozen=True)
class Group:
    """The responses of a policy to one prompt, rewarded together.

    Attributes:
      prompt: the user's text, or a conversation as a list of {"role", "content"}.
      responses: one or more texts; an empty text is a response.
      reference: a known good answer, shown to the judge; a scalar reward model ignores it.
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
        try:
            object.__setattr__(self, "responses", self.comparison.responses)
        except ValueError as error:
            text = str(error)
            raise ValueError("prompt" + text[5:] if text.startswith("query") else text) from None
        principles = self.principles
        if principles is not None and not isinstance(principles, str):
            raise ValueError(f"principles is a {type(principles).__name__}: give a text or None")
        if principles is not None and not principles.strip():
            raise ValueError("principles is empty: give a text or None")
        if problem := strict_json.problem(principles, "principles"):
            raise ValueError(problem)

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
      critiques: if requested; scores in the caller's order, one per response. In a group of several
        blocks a critique has the responses of its block alone: scores[j] is of sorted(order)[j].
        A text that several responses share was shown once; they follow each other in `order`.
      principles: the text that all critiques of the group judged by; None if each wrote its own.
      prompt_tokens: of the prompts, each counted once for all critiques that share it; by endpoint,
        of all requests, as the server counts them.
      new_tokens: of all critiques.
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


# ---------------------------------------------------------------- JSON


def group_of(fields: Mapping[str, Any]) -> Group:
    """Returns the group of a JSON object. Raises ValueError that names a wrong or unknown field."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"a group is a {type(fields).__name__}: give an object with its fields")
    names = [field.name for field in dataclasses.fields(Group)]
    for name in fields:
        if name not in names:
            raise ValueError(f"unknown field {name!r:.80}: {nearest(name, names)}")
    for name in ("prompt", "responses"):
        if name not in fields:
            raise ValueError(f"a group has no {name}")
    return Group(**fields)


def groups_of(rows: Sequence[Group | Mapping[str, Any]]) -> list[Group]:
    """Returns the groups of JSON objects; a Group is returned as it is.

    Raises ValueError that names the group, such as groups[3], and the field.
    """
    if isinstance(rows, str | bytes | Mapping | Group) or not isinstance(rows, Sequence):
        raise ValueError(f"groups is a {type(rows).__name__}: give a list of groups")
    groups = []
    for i, row in enumerate(rows):
        try:
            groups.append(row if isinstance(row, Group) else group_of(row))
        except ValueError as error:
            raise ValueError(f"groups[{i}]: {error}") from None
    return groups


def group_to_json(group: Group) -> dict[str, Any]:
    """Returns a group as a JSON object, without the fields that are None; see `group_of`."""
    fields = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    return {k: list(v) if k == "responses" else v for k, v in fields.items() if v is not None}


def rewards_to_json(rewards: GroupRewards) -> dict[str, Any]:
    """Returns the rewards of a group as a JSON object; see `rewards_of`.

    critiques and principles are in it only if there are any.
    """
    fields: dict[str, Any] = {
        "id": rewards.id,
        "rewards": [dataclasses.asdict(reward) for reward in rewards.rewards],
        "prompt_tokens": rewards.prompt_tokens,
        "new_tokens": rewards.new_tokens,
    }
    if rewards.critiques:
        fields["critiques"] = [critique_to_json(critique) for critique in rewards.critiques]
    if rewards.principles is not None:
        fields["principles"] = rewards.principles
    return fields


def rewards_of(fields: Mapping[str, Any]) -> GroupRewards:
    """Returns the rewards of a JSON object; fields of later versions are ignored.

    Critiques have no seed: the request has it.

    Raises ValueError for an object that is no result, or has a number without the status "scored".
    """
    try:
        return GroupRewards(
            id=fields["id"],
            rewards=tuple(_reward_of(reward) for reward in fields["rewards"]),
            critiques=tuple(critique_from_json(c) for c in fields.get("critiques") or ()),
            principles=fields.get("principles"),
            prompt_tokens=fields["prompt_tokens"],
            new_tokens=fields["new_tokens"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"not the rewards of a group ({type(error).__name__}: {error}): {fields!r:.80}"
        ) from None


def _reward_of(fields: Mapping[str, Any]) -> ResponseReward:
    reward = ResponseReward(fields["reward"], fields["status"], fields.get("reason"))
    is_number = isinstance(reward.reward, int | float) and not isinstance(reward.reward, bool)
    if reward.status not in STATUSES or is_number != (reward.status == SCORED):
        raise ValueError(f"reward {reward.reward!r:.40} with status {reward.status!r:.40}")
    return reward
