"""Rewards for OpenRLHF: a file for `--reward.remote_url`, which defines `reward_func`.

    # reward.py
    from grm_jax.serving.adapters import openrlhf
    from grm_jax.serving.client import Client

    reward_func = openrlhf.reward_func(Client("http://localhost:8000"))

OpenRLHF calls it with one query at a time, in a thread: each response is judged alone. Without a
file, `--reward.remote_url http://localhost:8000/get_reward` does the same with the server's
settings.

OpenRLHF logs an error of the function and continues without the reward, then stops when it builds
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.judging.groups import FAILED, UNPARSED, Group
from grm_jax.serving.adapters import batches
from grm_jax.serving.client import Scorer
from grm_jax.serving.transcripts import split, turns_of


def reward_func(
    scorer: Scorer, reference: bool = True, unparsed: float | None = None
) -> Callable[..., dict[str, Any]]:
    """Returns OpenRLHF's reward function.

    Queries of one prompt in a call are judged as one group.

    Args:
      scorer: a `Client`, or `functools.partial(score, judge=judge)`.
      reference: show the label, if there is one, to the judge as a good answer.
      unparsed: the reward of a response whose critiques have no scores; None to raise `Unscored`.

    The function returns {"rewards", "scores", "extra_logs": {"judge_unparsed"}}. It raises:
      Unscored: a response has no reward.
      ValueError: a query does not begin with its prompt.
    """

    def judge(
        queries: Sequence[str],
        prompts: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        owners: dict[str, list[int]] = {}
        pairs = [
            split(query, prompts[i] if prompts is not None else None)
            for i, query in enumerate(queries)
        ]
        answers = [
            str(labels[i]) if reference and labels and labels[i] not in (None, "") else None
            for i in range(len(queries))
        ]
        for i, (prompt, _) in enumerate(pairs):
            owners.setdefault(batches.json_key([prompt, answers[i]]), []).append(i)
        groups = []
        for members in owners.values():
            texts = tuple(pairs[i][1] for i in members)
            groups.append(Group(turns_of(pairs[members[0]][0]), texts, answers[members[0]]))
        rewards = batches.flat(scorer(groups))
        for status in (FAILED, UNPARSED):
            if batches.shares(rewards)[status] and (status == FAILED or unparsed is None):
                raise batches.Unscored(batches.first_reason(rewards, status))
        places = [i for members in owners.values() for i in members]
        ordered = [reward for _, reward in sorted(zip(places, rewards), key=lambda pair: pair[0])]
        values = [unparsed if reward.reward is None else reward.reward for reward in ordered]
        logs = {"judge_unparsed": [float(reward.reward is None) for reward in ordered]}
        return {"rewards": values, "scores": values, "extra_logs": logs}

    return judge


def request(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]
) -> dict[str, list[Any]]:
    """Returns the body that OpenRLHF posts to /get_reward."""
    return {"query": list(queries), "prompts": list(prompts), "labels": list(labels)}
