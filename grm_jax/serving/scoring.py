"""/v1/score: groups of responses in, rewards with status out; and what the other hosts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from grm_jax.commands import Number
from grm_jax.judging.groups import FAILED, SCORED, Group, GroupRewards, groups_of, rewards_to_json
from grm_jax.judging.rewards import RewardOptions, options_of
from grm_jax.serving.bodies import json_object
from grm_jax.serving.errors import Refusal, json_response
from grm_jax.serving.service import Service

TIMEOUT = Number(float, above=0)


async def scores(service: Service, http: HTTPRequest) -> Response:
    """Answers POST /v1/score: {"groups": [...], fields of RewardOptions, "timeout"}."""
    fields = json_object(await http.body())
    rows = fields.pop("groups", None)
    size, seconds = fields.pop("group_size", None), fields.pop("timeout", None)
    try:
        groups = groups_of(rows)
        if seconds is not None:
            TIMEOUT.check("timeout = ", seconds)
        options = options_of(fields)
    except (ValueError, TypeError) as error:
        raise Refusal(400, str(error).replace("\n", " ")) from None
    check_groups(service, groups, size)
    results = await rewards(service, http, groups, options, seconds)
    answer = [rewards_to_json(result) for result in results]
    return json_response({"groups": answer, "model": service.judge.name})


async def rewards(
    service: Service,
    http: HTTPRequest,
    groups: Sequence[Group],
    options: RewardOptions,
    seconds: float | None,
) -> list[GroupRewards]:
    """Returns the rewards of groups within the queue, the deadline and the client's patience.

    Raises Refusal.
    """
    check_options(service, options)
    with service.admitted(seconds) as context:
        return await service.run(http, context, lambda: service.scored(context, groups, options))


def check_groups(service: Service, groups: Sequence[Group], size: Any = None) -> None:
    """Raises Refusal for no or too many groups or responses, or a part of a group.

    size: responses that every group must have; None for any number.
    """
    limits = service.limits
    if not groups:
        raise Refusal(400, "groups is empty: send at least one", "groups")
    if len(groups) > limits.groups:
        raise Refusal(
            400,
            f"{len(groups)} groups: this server takes {limits.groups} in a request; send several "
            "requests, or raise --groups",
            "groups",
        )
    if size is not None and (type(size) is not int or size < 1):
        raise Refusal(400, f"group_size = {size!r:.40}: use an integer from 1", "group_size")
    for i, group in enumerate(groups):
        n = len(group.responses)
        if n > limits.responses:
            raise Refusal(
                400,
                f"groups[{i}] has {n} responses: this server takes {limits.responses}; raise "
                "--responses",
                "groups",
            )
        if size is not None and n != size:
            raise Refusal(
                400,
                f"groups[{i}] has {n} of {size} responses: the group is split over processes. "
                f"Collect it before the call, make the batch of each process a multiple of {size}, "
                "or send each response to /verify with its group and index",
                "groups",
            )


def check_options(service: Service, options: RewardOptions) -> None:
    """Raises Refusal for options beyond the server's limits."""
    limits, most = service.limits, service.lengths.max_new_tokens
    if service.judge.is_scalar:
        return  # it refuses whatever has no effect
    if options.k > limits.n:
        raise Refusal(400, f"k = {options.k}: this server samples at most {limits.n}", "k")
    if options.max_new_tokens is not None and options.max_new_tokens > most:
        raise Refusal(
            400,
            f"max_new_tokens = {options.max_new_tokens}: this server samples at most {most}",
            "max_new_tokens",
        )
    if options.rule.needs == "expected_scores" and not service.expected:
        raise Refusal(
            400,
            f"reward {options.reward!r} needs the probabilities of scores: start the server with "
            "--expected",
            "reward",
        )
    if options.k_meta is not None and service.judge.meta_rm is None:
        raise Refusal(400, "k_meta needs a meta reward model: start with --meta_rm", "k_meta")


def numbers(results: Sequence[GroupRewards]) -> list[float]:
    """Returns the rewards of all groups, for hosts that take nothing but numbers.

    Raises Refusal if one is missing: no number stands for a failure.
    """
    rewards = [reward for result in results for reward in result.rewards]
    for i, reward in enumerate(rewards):
        if reward.status != SCORED:
            status = 503 if reward.status == FAILED else 422
            count = sum(other.status != SCORED for other in rewards)
            raise Refusal(
                status,
                f"{count} of {len(rewards)} responses have no reward; response {i} is "
                f"{reward.status}: {reward.reason}",
            )
    return [float(reward.reward or 0.0) for reward in rewards]
