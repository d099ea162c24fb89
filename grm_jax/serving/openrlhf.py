"""/get_reward: OpenRLHF's remote reward model.

OpenRLHF sends texts as the policy's tokenizer wrote them, special tokens included:

    prompt  <|im_start|>user\\nWhat is 2 + 2?<|im_end|>\\n<|im_start|>assistant\\n
    query   the prompt, then   It is 4.<|im_end|>

The judge gets the turns of the prompt, and the response without the prompt and special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from grm_jax.judging.groups import Group
from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving.bodies import RewardBody, parse
from grm_jax.serving.errors import Refusal, json_response
from grm_jax.serving.scoring import check_groups, numbers, rewards
from grm_jax.serving.service import Service
from grm_jax.types import Turn

_SPECIAL = (
    r"<\|[\w:-]{1,40}\|>|<｜[^<>｜]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    r"|\[/?INST\]|<</?SYS>>"
)
SPECIAL = re.compile(_SPECIAL)
AT_END = re.compile(rf"(?:\s*(?:{_SPECIAL}))+\s*\Z")
AT_START = re.compile(rf"\A\s*(?:(?:{_SPECIAL})\s*)+")
# The start of a turn: ChatML, Llama 3, Gemma, DeepSeek, Llama 2 and Mistral.
TURN = re.compile(
    r"<\|im_start\|>(?P<chatml>\w+)\n?|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\s*"
    r"|<start_of_turn>(?P<gemma>\w+)\n?|<｜(?P<deepseek>User|Assistant|System)｜>"
    r"|(?P<mistral>\[/?INST\])"
)
ROLES = {"model": "assistant", "[INST]": "user", "[/INST]": "assistant"}
THINKING = re.compile(r"\s*<think>\s*(?:</think>)?\s*\Z")  # some templates begin the answer


async def get_reward(service: Service, http: HTTPRequest) -> Response:
    """Answers POST /get_reward. Queries of one prompt in a call are judged as one group."""
    body = parse(RewardBody, await http.body())
    owners: dict[tuple[str, str], list[int]] = {}
    split = split_queries(body.query, body.prompts)
    labels = _labels(body)
    for i, (prompt, _) in enumerate(split):
        owners.setdefault((prompt, labels[i]), []).append(i)
    try:
        groups = [
            Group(conversation(prompt), tuple(split[i][1] for i in members), label or None)
            for (prompt, label), members in owners.items()
        ]
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    check_groups(service, groups)
    results = await rewards(service, http, groups, RewardOptions(), body.timeout)
    values = numbers(results)
    places = [i for members in owners.values() for i in members]
    ordered = [value for _, value in sorted(zip(places, values))]
    return json_response({"rewards": ordered, "scores": ordered, "extra_logs": {}})


def _labels(body: RewardBody) -> list[str]:
    """Returns the label of each query, "" without one. Raises Refusal."""
    labels = body.labels or [None] * len(body.query)
    if len(labels) != len(body.query):
        raise Refusal(400, f"{len(body.query)} queries and {len(labels)} labels", "labels")
    return ["" if label is None else str(label) for label in labels]


def split_queries(queries: Sequence[str], prompts: Sequence[str] | None) -> list[tuple[str, str]]:
    """Returns (prompt, response) of each query, the response without special tokens at its ends.

    Without prompts, the last turn of a query is the response. Raises Refusal that names the query.
    """
    if prompts is not None and len(prompts) != len(queries):
        raise Refusal(400, f"{len(queries)} queries and {len(prompts)} prompts", "prompts")
    split = []
    for i, query in enumerate(queries):
        if prompts is not None:
            start = len(prompts[i]) if query.startswith(prompts[i]) else -1
        else:
            turns = list(TURN.finditer(query))
            start = turns[-1].end() if len(turns) > 1 else -1
        if start < 0:
            reason = "has no turns: send prompts too" if prompts is None else "is not its prefix"
            name = "query" if prompts is None else "prompts"
            raise Refusal(400, f"{name}[{i}] {reason}", name)
        response = AT_START.sub("", AT_END.sub("", query[start:]))
        split.append((query[:start], response))
    return split


def conversation(prompt: str) -> str | list[Turn]:
    """Returns the turns of a templated prompt; the text alone if it has one user turn, or none."""
    hits = list(TURN.finditer(prompt))
    if not hits:
        return SPECIAL.sub("", prompt).strip()
    turns: list[Turn] = []
    if before := SPECIAL.sub("", prompt[: hits[0].start()]).strip():
        turns.append({"role": "system", "content": before})  # DeepSeek writes no role
    ends = [hit.start() for hit in hits[1:]] + [len(prompt)]
    for hit, end in zip(hits, ends):
        name = next(group for group in hit.groups() if group)
        role = ROLES.get(name, name.lower())
        content = SPECIAL.sub("", prompt[hit.end() : end]).strip()
        turns.append({"role": role, "content": content})
    last = turns[-1]
    if last["role"] == "assistant" and not THINKING.sub("", last["content"]):
        turns.pop()  # the answer begins here
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return turns
