"""/compare and /verify: NeMo-Gym's calls for a whole group, and for one response at a time.

A reward that is missing is an error with a reason, never a neutral number.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from grm_jax import strict_json
from grm_jax.judging.groups import FAILED, SCORED, Group
from grm_jax.serving.bodies import CompareBody, VerifyBody, parse
from grm_jax.serving.errors import ClientGone, Refusal, json_response
from grm_jax.serving.scoring import check_groups, numbers, rewards
from grm_jax.serving.service import Service, disconnected
from grm_jax.types import Critique, Turn

TEXT_PARTS = ("text", "input_text", "output_text")


async def compare(service: Service, http: HTTPRequest) -> Response:
    """Answers POST /compare."""
    body = parse(CompareBody, await http.body())
    if not body.response_objs:
        return json_response({"rewards": [], "comparison_results": [], "metrics": {}})
    group = group_from(body.conversation_history, body.response_objs, body.principle)
    check_groups(service, [group])
    options = dataclasses.replace(service.options, critiques=True)
    results = await rewards(service, http, [group], options, body.timeout)
    values = numbers(results)
    critiques = [critique for critique in results[0].critiques if critique.scores]
    samples = len(results[0].critiques)
    if service.judge.is_scalar:  # its rewards count as the scores of one critique
        order = tuple(range(len(values)))
        critiques, samples = [Critique("", scores=tuple(values), order=order, status="ok")], 1
    spread = statistics.pstdev(values)
    metrics = {
        "mean_individual_score": statistics.fmean(values),
        "std_individual_score": spread,
        "parse_rate": len(critiques) / max(1, samples),
    }
    answer = {"rewards": values, "comparison_results": pairs(critiques), "metrics": metrics}
    return json_response(answer)


def pairs(critiques: Sequence[Critique]) -> list[dict[str, Any]]:
    """Returns each critique's scores of each response and the next one, in a circle.

    A critique of a large group has the responses of its block alone.
    """
    results = []
    for number, critique in enumerate(critiques):
        members, scores = sorted(critique.order), critique.scores or ()
        for j in range(len(members) if len(members) > 2 else len(members) - 1):
            after = (j + 1) % len(members)
            results.append(
                {
                    "response_i": members[j],
                    "response_j": members[after],
                    "judge_idx": number,
                    "score_1": scores[j],
                    "score_2": scores[after],
                }
            )
    return results


async def verify(service: Service, http: HTTPRequest) -> Response:
    """Answers POST /verify once the whole group has arrived and is scored."""
    body = parse(VerifyBody, await http.body())
    if problem := service.problem():
        raise Refusal(503, problem, headers={"retry-after": "5"})
    size = body.group_size or service.limits.group_size
    conversation = body.responses_create_params.get("input")
    if isinstance(conversation, str):
        conversation = [{"role": "user", "content": conversation}]
    if not isinstance(conversation, list):
        raise Refusal(400, "responses_create_params.input: give a text or a list of messages")
    group = group_from(
        conversation, [body.response], body.principle, group_name(body, conversation)
    )
    if size > service.limits.responses:
        raise Refusal(400, f"group_size = {size}: at most {service.limits.responses}", "group_size")
    # Tasks and prompts come again in the next epoch, with other responses under the same index.
    index = body.index if body.group is not None else None
    waiting = asyncio.ensure_future(service.cohorts.reward(group, size, index, body.attempt))
    gone = asyncio.ensure_future(disconnected(http))
    seconds = min(body.timeout or service.limits.timeout, service.limits.timeout)
    try:
        await asyncio.wait({waiting, gone}, timeout=seconds, return_when="FIRST_COMPLETED")
        if gone.done() and not waiting.done():
            raise ClientGone("the client has closed the connection")
        if not waiting.done():
            raise Refusal(504, f"the group was not complete and scored after {seconds:g} s")
        reward = await waiting
    except Refusal:
        raise
    except ValueError as error:  # it contradicts an earlier call, and so will a retry
        raise Refusal(400, str(error)) from None
    finally:
        waiting.cancel()
        gone.cancel()
    if reward.status != SCORED:
        status = 503 if reward.status == FAILED else 422
        raise Refusal(status, f"the response is {reward.status}: {reward.reason}")
    fields = body.model_dump(by_alias=True, exclude_unset=True)
    return json_response({**fields, "reward": reward.reward})


def group_name(body: VerifyBody, conversation: Sequence[Any]) -> str:
    """Returns the group of a call: its own name, its task's, or one of its prompt."""
    if body.group is not None:
        return body.group
    if body.task is not None:
        return f"task {body.task}"
    text = strict_json.dumps([list(conversation), body.principle], sort_keys=True)
    return f"prompt {hashlib.sha256(text.encode()).hexdigest()}"


def group_from(
    conversation: Sequence[Any],
    responses: Sequence[Mapping[str, Any]],
    principle: str | None,
    id: str | None = None,
) -> Group:
    """Returns the group of a conversation and response objects. Raises Refusal."""
    turns: list[Turn] = []
    for i, message in enumerate(conversation):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise Refusal(400, f"message {i} of the conversation has no role")
        role = "system" if message["role"] == "developer" else message["role"]
        turns.append({"role": role, "content": text_of(message.get("content"), f"message {i}")})
    try:
        texts = tuple(output_text(response) for response in responses)
        return Group(turns, texts, None, principle, id)
    except ValueError as error:
        raise Refusal(400, str(error).replace("\n", " ")) from None


def text_of(content: Any, name: str) -> str:
    """Returns the text of a message's content: a text, or a list of parts. Raises Refusal."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts: list[Any] = [
            part.get("text")
            for part in content
            if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS
        ]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(texts)
    raise Refusal(400, f"{name}: the content is not a text or a list of text parts")


def output_text(response: Mapping[str, Any]) -> str:
    """Returns the answer of a response object, without its reasoning. Raises Refusal."""
    output = response.get("output")
    if not isinstance(output, list):
        raise Refusal(400, "a response object has no list 'output'")
    messages = [
        item for item in output if isinstance(item, Mapping) and item.get("type") == "message"
    ]
    return "".join(text_of(item.get("content"), "a response") for item in messages)
