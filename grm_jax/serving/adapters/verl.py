"""Rewards for verl: `compute_score` of a custom reward function.

verl calls it with one sample at a time, and `reward.num_workers` processes do so. The samples of a
prompt are collected into a group, which is scored once:

- `compute_score_by_server` sends each sample to /verify of `grm serve`, which collects the samples
  of all workers. The rewards have the server's settings.
- `compute_score` collects them in its process. It needs reward.num_workers=1.

verl takes nothing but numbers, so a sample without a reward raises `Unscored` with the reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from grm_jax.judging.groups import FAILED, UNPARSED, Group, GroupRewards, ResponseReward
from grm_jax.serving.adapters import nemo_gym
from grm_jax.serving.adapters.batches import Unscored, json_key, prompt_of
from grm_jax.serving.client import AsyncScorer, Client
from grm_jax.serving.cohorts import Cohorts

ComputeScore = Callable[..., Awaitable[dict[str, Any]]]
UIDS = ("uid", "group_id")  # fields of extra_info that name a group
INDEX = "rollout_index"  # and this one a sample of it
Sizes = int | Mapping[str, int]


def compute_score(
    scorer: AsyncScorer,
    size: Sizes,
    prompt: str = "question",
    reference: bool = False,
    unparsed: float | None = None,
    timeout: float = 600.0,
) -> ComputeScore:
    """Returns verl's reward function; collects the samples of a prompt in this process.

    Args:
      scorer: such as `Client(...).score_async`.
      size: samples of a prompt, rollout.n; or by the split of extra_info, such as
        {"train": 8, "test": 1}.
      prompt: field of extra_info with the prompt, a text or messages.
      reference: show ground_truth to the judge as a good answer.
      unparsed: the score of a sample whose critiques have no scores; None to raise `Unscored`.
      timeout: seconds from the first sample of a prompt to the last.

    The function returns {"score", "judge_unparsed"}; verl logs the second. It raises:
      Unscored: the sample has no reward, for example as a sample of its prompt is missing.
      ValueError: extra_info has no prompt, or nothing that names the group.
    """

    async def score(group: Group) -> GroupRewards:
        return (await scorer([group]))[0]

    cohorts = Cohorts(score, timeout)

    async def reward(group: Group, n: int, index: int | None) -> ResponseReward:
        result = await cohorts.reward(group, n, index)
        if result.status == FAILED and "arrived within" in (result.reason or ""):
            hint = "with reward.num_workers above 1 use compute_score_by_server"
            return ResponseReward(None, FAILED, f"{result.reason}; {hint}")
        return result

    return _compute_score(reward, size, prompt, reference, unparsed)


def compute_score_by_server(
    client: Client, size: Sizes, prompt: str = "question", unparsed: float | None = None
) -> ComputeScore:
    """Returns verl's reward function; the server collects the samples of a prompt.

    For any reward.num_workers. The arguments are those of `compute_score`; the server's
    --cohort_timeout is the time from the first sample of a prompt to the last.
    """

    async def reward(group: Group, n: int, index: int | None) -> ResponseReward:
        text = group.prompt
        turns = [{"role": "user", "content": text}] if isinstance(text, str) else text
        body = {
            "responses_create_params": {"input": turns},
            "response": nemo_gym.response_obj(group.responses[0]),
        }
        return await nemo_gym.verify_async(client, body, str(group.id), n, index)

    return _compute_score(reward, size, prompt, False, unparsed)


def _compute_score(
    reward: Callable[[Group, int, int | None], Awaitable[ResponseReward]],
    size: Sizes,
    prompt: str,
    reference: bool,
    unparsed: float | None,
) -> ComputeScore:
    async def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        info = extra_info or {}
        answer = str(ground_truth) if reference and ground_truth is not None else None
        name = _group_name(data_source, info)
        group = Group(_prompt(info, prompt), (solution_str,), answer, id=name)
        result = await reward(group, _size(size, info), _index(info))
        if result.reward is not None:
            return {"score": result.reward, "judge_unparsed": 0.0}
        if result.status == UNPARSED and unparsed is not None:
            return {"score": unparsed, "judge_unparsed": 1.0}
        raise Unscored(f"a sample of {name!r:.80} is {result.status}: {result.reason}")

    return compute_score


def _prompt(info: Mapping[str, Any], name: str) -> Any:
    value = info.get(name)
    if value is None or not len(value):
        raise ValueError(
            f"extra_info has no {name!r}, it has {', '.join(map(str, info)) or 'nothing'}: store "
            "the prompt there when you write the data set, or name its field: prompt=..."
        )
    return prompt_of(value if isinstance(value, str) else list(value))


def _group_name(data_source: str, info: Mapping[str, Any]) -> str:
    """Returns a name that the samples of a prompt share: a uid, or the row of the data set."""
    for name in UIDS:
        if info.get(name) is not None:
            return str(info[name])
    if info.get("index") is None:
        raise ValueError(
            "extra_info has neither 'uid' nor 'index': store the number of the row as 'index' "
            "when you write the data set, so that the samples of a prompt can be collected"
        )
    return json_key([data_source, info.get("split"), info["index"]])


def _index(info: Mapping[str, Any]) -> int | None:
    """Returns the number of a sample; None without a uid, as rows come again in the next epoch."""
    index = info.get(INDEX)
    has_uid = any(info.get(name) is not None for name in UIDS)
    return int(index) if has_uid and index is not None else None


def _size(size: Sizes, info: Mapping[str, Any]) -> int:
    if isinstance(size, int):
        return size
    split = info.get("split")
    if split not in size:
        raise ValueError(f"extra_info has split={split!r}: size has {', '.join(size)}")
    return size[split]
