"""Collects responses that arrive one per call into groups, and scores each group once; no JAX.

    cohorts = Cohorts(score)     # score: await score(Group) -> GroupRewards
    group = Group(prompt, [response], id="step 12, prompt 3")
    reward = await cohorts.reward(group, size=8, index=5)

The rules:
- A response is named by (id of its group, attempt, index). The same one again is a retry: it gets
  the reward of the first, also after the group was scored. Another text under that name is refused.
- A group is scored when all `size` responses have arrived. If one is missing `timeout` seconds
  after the first, those that wait fail with a reason.
- A cancelled call withdraws its response. When every call of a group is cancelled, so is scoring.
- A group that failed is forgotten: the same names may be sent again, and it is scored anew.
- Responses without an index are numbered as they arrive. A retry among them cannot be recognised,
  and the next response after a full group begins a new one.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from grm_jax.judging.groups import FAILED, Group, GroupRewards, ResponseReward

Rewards = tuple[ResponseReward, ...]


@dataclasses.dataclass(eq=False)
class _Cohort:
    """One group: its first call, and digests and texts of the responses by index."""

    first: Group
    size: int
    has_indices: bool
    same: bytes  # digest of all fields but the response
    digests: dict[int, bytes] = dataclasses.field(default_factory=dict)
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    calls: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    full: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    task: asyncio.Task[Rewards] | None = None
    error: Exception | None = None  # instead of scoring

    @property
    def group(self) -> Group:
        responses = tuple(self.texts[i] for i in range(self.size))
        return dataclasses.replace(self.first, responses=responses)

    def add(self, index: int, text: str) -> None:
        """Adds a response, or another call for one that is there."""
        if index not in self.digests:
            self.digests[index], self.texts[index] = _digest(text), text
        self.calls[index] += 1
        if len(self.digests) == self.size:
            self.full.set()

    def withdraw(self, index: int) -> bool:
        """Ends one call; drops its response unless the group is full. Returns whether any waits."""
        self.calls[index] -= 1
        if not self.calls[index] and not self.full.is_set():
            del self.digests[index], self.texts[index]
        return any(self.calls.values())


class Cohorts:
    """The groups that are being collected, and the rewards of those that were scored.

    For one event loop.

    Args:
      score: returns the rewards of a full group, one per response. It ends in finite time; what it
        raises, every call of the group raises.
      timeout: seconds from the first response of a group to the last.
      kept: scored groups whose rewards are kept for retries.
    """

    def __init__(
        self,
        score: Callable[[Group], Awaitable[GroupRewards]],
        timeout: float = 300.0,
        kept: int = 4096,
    ) -> None:
        self.score, self.timeout, self.kept = score, timeout, kept
        self._cohorts: dict[tuple[str, int], _Cohort] = {}
        self._scored: collections.deque[tuple[tuple[str, int], _Cohort]] = collections.deque()
        self._closed: Exception | None = None

    def close(self, error: Exception) -> None:
        """Raises the error in every call of a group that is not full, and in every later call."""
        self._closed = error
        for cohort in self._cohorts.values():
            if not cohort.full.is_set():
                cohort.error = error
                cohort.full.set()

    async def reward(
        self, group: Group, size: int, index: int | None = None, attempt: int = 0
    ) -> ResponseReward:
        """Returns the reward of one response once its whole group is scored.

        Args:
          group: the prompt and this response alone; `id` names the group.
          size: responses of the whole group.
          index: of this response in the group, from 0; None to number them as they arrive.
          attempt: another number begins the group anew.

        Raises:
          ValueError: the call contradicts an earlier one of its group, or itself.
          Exception: that of `close`.
        """
        if len(group.responses) != 1:
            raise ValueError(f"{len(group.responses)} responses in one call: send them one by one")
        if group.id is None:
            raise ValueError("the group has no id: give all responses to one prompt the same id")
        if size < 1 or not (index is None or 0 <= index < size):
            raise ValueError(f"index {index} in a group of {size}: count from 0 to size - 1")
        if self._closed is not None:
            raise self._closed
        key = group.id, attempt
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = _Cohort(group, size, index is not None, _digest(_shared(group)))
            self._cohorts[key] = cohort
            cohort.task = asyncio.create_task(self._run(key, cohort))
        else:
            _check(cohort, group, size, index)
        place = index
        if place is None:  # the first free one: a withdrawn call may have left a gap
            place = next(i for i in range(size) if i not in cohort.digests)
        cohort.add(place, group.responses[0])
        if index is None and cohort.full.is_set():
            self._forget(key, cohort)
        assert cohort.task is not None
        try:
            return (await asyncio.shield(cohort.task))[place]
        except asyncio.CancelledError:
            if not cohort.task.done() and not cohort.withdraw(place):
                cohort.task.cancel()
                self._forget(key, cohort)
            raise

    async def _run(self, key: tuple[str, int], cohort: _Cohort) -> Rewards:
        """Waits for all responses and scores them."""
        kept = False
        try:
            try:
                async with asyncio.timeout(self.timeout):
                    await cohort.full.wait()
            except TimeoutError:
                reason = self._missing(cohort)
                return (ResponseReward(None, FAILED, reason),) * cohort.size
            if cohort.error is not None:
                raise cohort.error
            rewards = (await self.score(cohort.group)).rewards
            if len(rewards) != cohort.size:
                raise RuntimeError(f"{len(rewards)} rewards for {cohort.size} responses")
            kept = cohort.has_indices and all(reward.status != FAILED for reward in rewards)
            return rewards
        finally:
            cohort.texts.clear()
            if kept and self._cohorts.get(key) is cohort:
                self._keep(key, cohort)
            else:
                self._forget(key, cohort)

    def _missing(self, cohort: _Cohort) -> str:
        text = f"{len(cohort.digests)} of {cohort.size} responses of group {cohort.first.id!r:.80}"
        if cohort.has_indices:
            missing = [i for i in range(cohort.size) if i not in cohort.digests]
            text += f" (without index {', '.join(map(str, missing[:8]))}"
            text += ", ...)" if len(missing) > 8 else ")"
        return f"{text} arrived within {self.timeout:g} s: send the group again"

    def _keep(self, key: tuple[str, int], cohort: _Cohort) -> None:
        self._scored.append((key, cohort))
        while len(self._scored) > self.kept:
            self._forget(*self._scored.popleft())

    def _forget(self, key: tuple[str, int], cohort: _Cohort) -> None:
        if self._cohorts.get(key) is cohort:
            del self._cohorts[key]


def _check(cohort: _Cohort, group: Group, size: int, index: int | None) -> None:
    """Raises ValueError if a call contradicts the first one of its group."""
    name = f"group {group.id!r:.80}"
    if size != cohort.size:
        raise ValueError(f"{name} has {cohort.size} responses, and {size} in this call")
    if (index is not None) != cohort.has_indices:
        raise ValueError(f"{name}: send an index with every response, or with none")
    if _digest(_shared(group)) != cohort.same:
        raise ValueError(f"{name} has another prompt, reference or principles in an earlier call")
    if index in cohort.digests and cohort.digests[index] != _digest(group.responses[0]):
        raise ValueError(
            f"response {index} of {name} has another text in an earlier call: raise attempt"
        )


def _shared(group: Group) -> list[Any]:
    return [group.prompt, group.reference, group.principles]


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest()
