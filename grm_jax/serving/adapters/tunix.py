"""Rewards for Tunix: `GRPOLearner(..., reward_fns=reward_fn(scorer))`.

Tunix takes nothing but numbers: it adds a NaN as 0, a real reward, and its logged minimum and
maximum become NaN. So a failed response raises, and `unparsed` decides about one whose critiques
have no scores.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.judging.groups import FAILED, UNPARSED, GroupRewards
from grm_jax.serving.adapters import batches
from grm_jax.serving.client import Scorer

_log = logging.getLogger(__name__)


def reward_fn(
    scorer: Scorer,
    unparsed: str = "group_mean",
    reference: str | None = None,
    principles: str | None = None,
    name: str = "judge",
) -> Callable[..., list[float]]:
    """Returns a reward function for Tunix.

    Args:
      scorer: `functools.partial(score, judge=judge)`, where the judge may use the trainer's mesh,
        or a `Client`.
      unparsed: what a response gets whose critiques have no scores. "group_mean": the mean reward
        of its group, which GRPO turns into an advantage of 0; without any in the group, the mean of
        the batch; the number of such responses is logged as a warning. "raise": `Unscored`.
      reference, principles: fields of the training examples with a good answer, and with the
        principles to judge by.
      name: of the reward in Tunix's log.

    The function raises:
      Unscored: a response failed, or is unparsed and so is every other of the batch.
      SplitGroup: num_generations successive samples have different prompts.
    """
    if unparsed not in ("group_mean", "raise"):
        raise ValueError(f"unparsed={unparsed!r}: use 'group_mean' or 'raise'")

    # Tunix passes num_generations of its GRPOConfig to a function with a parameter of that name.
    def judge(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        num_generations: int | None = None,
        **fields: Any,
    ) -> list[float]:
        prompts, completions = list(prompts), list(completions)
        size = num_generations or max(batches.sizes_of_runs(prompts))
        columns = [fields[name] if name is not None else None for name in (reference, principles)]
        groups = list(batches.groups_of_batch(prompts, completions, size, *columns))
        return _numbers(scorer(groups), unparsed)

    judge.__name__ = name
    return judge


def _numbers(results: Sequence[GroupRewards], unparsed: str) -> list[float]:
    rewards = batches.flat(results)
    for status in (FAILED, UNPARSED):
        if batches.shares(rewards)[status] and (status == FAILED or unparsed == "raise"):
            raise batches.Unscored(batches.first_reason(rewards, status))
    scored = [reward.reward for reward in rewards if reward.reward is not None]
    if not scored:
        raise batches.Unscored(batches.first_reason(rewards, UNPARSED))
    if len(scored) < len(rewards):
        _log.warning("%s. They get the mean", batches.first_reason(rewards, UNPARSED))
    numbers = []
    for result in results:
        group = [value for value in result.values if value is not None] or scored
        mean = math.fsum(group) / len(group)
        numbers += [mean if value is None else value for value in result.values]
    return numbers
