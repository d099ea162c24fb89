"""Requests rewards of `grm serve` over HTTP; no JAX is imported.

    score = Client("http://localhost:8000", RewardOptions(k=8))
    (rewards,) = score([Group("What is 2 + 2?", ["It is 4.", "It is 5."])])
    rewards.values                          # such as [8.25, 1.5]

A client is a `Scorer`, as is `functools.partial(score, judge=judge)` in this process.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from grm_jax.endpoint import Call, Failure, Server, post, post_async
from grm_jax.endpoint.replies import BadReply, parse_object
from grm_jax.judging.groups import FAILED, Group, GroupRewards, group_to_json, groups_of, rewards_of
from grm_jax.judging.rewards import RewardOptions

Scorer = Callable[[Sequence[Group]], list[GroupRewards]]
AsyncScorer = Callable[[Sequence[Group]], Awaitable[list[GroupRewards]]]
KEY_VARIABLE = "GRM_API_KEY"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Client:
    """Scores groups by a server. Calling it blocks; `score_async` does not.

    Each group is one request, so that the server batches the groups of all clients. Rewards depend
    on (weights, group, options) alone, so a request may be repeated. Whatever goes wrong, a call
    ends within `deadline` and returns a result for every group: without a reply, status "failed"
    and the reason.

    Attributes:
      url: address of the server, without /v1.
      options: of the rewards.
      key_variable: environment variable with the server's API key, if it has one.
      parallel: requests in flight.
      retries: further tries after one that may pass: no connection, status 429 or 5xx, a reply that
        is no result. A longer Retry-After of the server wins over the pause.
      timeout: seconds for one try.
      deadline: seconds for one call: all groups, tries and pauses.
      pause: seconds before the second try, doubled each time, with a random factor of 0.5 to 1.5.

    Raises ValueError, beginning with the field's name, for a value outside its range.
    """

    url: str
    options: RewardOptions = RewardOptions()
    _: dataclasses.KW_ONLY
    key_variable: str = KEY_VARIABLE
    parallel: int = 32
    retries: int = 8
    timeout: float = 600.0
    deadline: float = 1800.0
    pause: float = 1.0

    def __post_init__(self) -> None:
        if self.url.rstrip("/").endswith("/v1"):
            raise ValueError(f"url={self.url}: give the server's address without /v1")
        if not self.deadline > 0:
            raise ValueError(f"deadline={self.deadline}: give a number of seconds above 0")
        _ = self._server

    def __call__(self, groups: Sequence[Group]) -> list[GroupRewards]:
        """Returns the rewards of every group. Raises ValueError for a malformed group."""
        groups = groups_of(groups)
        replies = self.post([self._score_call(group) for group in groups])
        return [_rewards(group, reply) for group, reply in zip(groups, replies)]

    async def score_async(self, groups: Sequence[Group]) -> list[GroupRewards]:
        """Returns the rewards of every group; cancelling it cancels them on the server."""
        groups = groups_of(groups)
        replies = await self.post_async([self._score_call(group) for group in groups])
        return [_rewards(group, reply) for group, reply in zip(groups, replies)]

    def post(self, calls: Sequence[Call]) -> list[Any]:
        """Returns the result or `Failure` of every call."""
        results = dict(post(self._server, calls, _failed_try, [0] * len(calls)))
        return [results[i] for i in range(len(calls))]

    async def post_async(self, calls: Sequence[Call]) -> list[Any]:
        """Returns the result or `Failure` of every call."""
        return await post_async(self._server, calls, _failed_try, [0] * len(calls))

    @property
    def _server(self) -> Server:
        fields = ("key_variable", "parallel", "retries", "timeout", "pause")
        limits: dict[str, Any] = {name: getattr(self, name) for name in fields}
        return Server(self.url, "", total_timeout=self.deadline, **limits)

    def _score_call(self, group: Group) -> Call:
        options = dataclasses.asdict(self.options)
        body = {name: value for name, value in options.items() if value is not None}
        return Call(
            {"groups": [group_to_json(group)], **body},
            "v1/score",
            lambda reply: parse_rewards(reply, group),
        )


def parse_rewards(reply: Any, group: Group) -> GroupRewards:
    """Returns the rewards of a group from the reply to /v1/score.

    Raises BadReply for anything but one finite reward or a reason for each of its responses.
    """
    fields = parse_object(reply, "no rewards")
    groups = fields.get("groups")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], Mapping):
        raise BadReply("no rewards", "no list of one group")
    try:
        rewards = rewards_of(groups[0])
    except ValueError as error:
        raise BadReply("no rewards", str(error)) from None
    if rewards.id != group.id:
        raise BadReply("no rewards", f"the rewards of group {rewards.id!r:.80}, not {group.id!r}")
    if len(rewards.rewards) != len(group.responses):
        raise BadReply(
            "no rewards", f"{len(rewards.rewards)} rewards for {len(group.responses)} responses"
        )
    for reward in rewards.rewards:
        if reward.reward is not None and not math.isfinite(reward.reward):
            raise BadReply("no rewards", f"a reward of {reward.reward}")
    return rewards


def _rewards(group: Group, reply: GroupRewards | Failure) -> GroupRewards:
    if isinstance(reply, Failure):
        return GroupRewards.without(group, FAILED, reply.reason)
    return reply


def _failed_try(kind: str, reason: str, repeated: bool) -> None:
    if repeated:
        _log.info("%s; trying again", reason)
    else:
        _log.warning("%s; giving up", reason)
