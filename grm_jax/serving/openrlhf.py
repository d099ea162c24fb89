"""/get_reward: OpenRLHF's remote reward model.

OpenRLHF sends texts as the policy's tokenizer wrote them, special tokens included:

    prompt  <|im_start|>user\\nWhat is 2 + 2?<|im_end|>\\n<|im_start|>assistant\\n
    query   the prompt, then   It is 4.<|im_end|>

The judge gets the turns of the prompt, and the response without the prompt and special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from grm_jax.judging.groups import Group
from grm_jax.serving import transcripts
from grm_jax.serving.bodies import RewardBody, parse
from grm_jax.serving.errors import Refusal, json_response
from grm_jax.serving.scoring import check_groups, numbers, rewards
from grm_jax.serving.service import Service


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
            Group(transcripts.turns_of(prompt), tuple(split[i][1] for i in members), label or None)
            for (prompt, label), members in owners.items()
        ]
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    check_groups(service, groups)
    results = await rewards(service, http, groups, service.options, body.timeout)
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
    """Returns (prompt, response) of each query, the response without special tokens at its end.

    Without prompts, the last turn of a query is the response. Raises Refusal that names the query.
    """
    if prompts is not None and len(prompts) != len(queries):
        raise Refusal(400, f"{len(queries)} queries and {len(prompts)} prompts", "prompts")
    pairs = []
    for i, query in enumerate(queries):
        try:
            pairs.append(transcripts.split(query, prompts[i] if prompts is not None else None))
        except ValueError:
            reason = "has no turns: send prompts too" if prompts is None else "is not its prefix"
            name = "query" if prompts is None else "prompts"
            raise Refusal(400, f"{name}[{i}] {reason}", name) from None
    return pairs
