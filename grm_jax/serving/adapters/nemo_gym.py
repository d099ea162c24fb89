"""NeMo-Gym's calls of `grm serve`: a whole group to /compare, one rollout at a time to /verify.

    rewards = compare(client, history, response_objs)       # GroupRewards
    reward = await verify_async(client, body, group="step 3, prompt 7", index=0, size=8)

Both routes give a reward or an error, never a neutral number. Here an error is a status with its
reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.endpoint import Call, Failure
from grm_jax.endpoint.replies import BadReply, parse_object
from grm_jax.judging.groups import FAILED, UNPARSED, GroupRewards, ResponseReward
from grm_jax.serving.client import Client

UNPARSED_KIND = "HTTP 422"  # of a server that has critiques without scores


def compare(
    client: Client,
    conversation_history: Sequence[Mapping[str, Any]],
    response_objs: Sequence[Mapping[str, Any]],
    principle: str | None = None,
) -> GroupRewards:
    """Returns the rewards of all responses to a conversation; blocks.

    Args:
      client: its options are not sent: the server's settings apply.
      response_objs: of OpenAI's Responses API, one or more.
      principle: text of the principles to judge by.
    """
    (reply,) = client.post([compare_call(conversation_history, response_objs, principle)])
    return _group(reply, len(response_objs))


async def compare_async(
    client: Client,
    conversation_history: Sequence[Mapping[str, Any]],
    response_objs: Sequence[Mapping[str, Any]],
    principle: str | None = None,
) -> GroupRewards:
    """Returns the rewards of all responses to a conversation; see `compare`."""
    call = compare_call(conversation_history, response_objs, principle)
    (reply,) = await client.post_async([call])
    return _group(reply, len(response_objs))


async def verify_async(
    client: Client,
    body: Mapping[str, Any],
    group: str,
    size: int,
    index: int | None = None,
    attempt: int = 0,
) -> ResponseReward:
    """Returns the reward of one rollout, when the server has all rollouts of its group.

    The server collects a group over all processes, by the rules of `serving/cohorts.py`.

    Args:
      body: NeMo-Gym's: responses_create_params, response, principle.
      group: name of the group.  size: rollouts of the group.
      index: of this rollout, from 0, by which the server recognises a retry.
      attempt: another number begins the group anew.
    """
    (reply,) = await client.post_async([verify_call(body, group, size, index, attempt)])
    return without_reply(reply) if isinstance(reply, Failure) else ResponseReward(reply)


def compare_call(
    conversation_history: Sequence[Mapping[str, Any]],
    response_objs: Sequence[Mapping[str, Any]],
    principle: str | None = None,
) -> Call:
    """Returns the request to /compare."""
    body: dict[str, Any] = {
        "conversation_history": list(conversation_history),
        "response_objs": list(response_objs),
    }
    if principle is not None:
        body["principle"] = principle

    def parse(reply: Any) -> list[float]:
        rewards = parse_object(reply, "no rewards").get("rewards")
        if not isinstance(rewards, list) or len(rewards) != len(response_objs):
            raise BadReply("no rewards", f"no list of {len(response_objs)} rewards")
        return [_number(reward) for reward in rewards]

    return Call(body, "compare", parse)


def verify_call(
    body: Mapping[str, Any], group: str, size: int, index: int | None = None, attempt: int = 0
) -> Call:
    """Returns the request to /verify."""
    names = {"_ng_group_id": group, "_ng_group_attempt": attempt, "group_size": size}
    if index is not None:
        names["_ng_rollout_index"] = index
    return Call(
        {**body, **names},
        "verify",
        lambda reply: _number(parse_object(reply, "no rewards").get("reward")),
    )


def response_obj(text: str) -> dict[str, Any]:
    """Returns a text as an object of OpenAI's Responses API."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"output": [{"type": "message", "role": "assistant", "content": content}]}


def without_reply(failure: Failure) -> ResponseReward:
    """Returns the reward of a response to which the server gave none."""
    status = UNPARSED if failure.kind == UNPARSED_KIND else FAILED
    return ResponseReward(None, status, failure.reason)


def _group(reply: list[float] | Failure, size: int) -> GroupRewards:
    if isinstance(reply, Failure):
        return GroupRewards(None, (without_reply(reply),) * size)
    return GroupRewards(None, tuple(map(ResponseReward, reply)))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadReply("no rewards", f"a reward of {value!r:.40}")
    return float(value)
