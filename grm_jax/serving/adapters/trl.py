"""Rewards for TRL: `GRPOTrainer(reward_funcs=reward_func(scorer, num_generations=8), ...)`.

A response without a reward gets None, which TRL excludes from the mean of its group and gives an
advantage of 0. The shares of such responses are logged as judge/unparsed and judge/failed, and
the statuses are a column of TRL's table of completions, judge_status.

TRL calls a reward function in every process, on that process's samples alone. A group that is
split over processes is refused: its rewards would be of different prompts to the judge.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from grm_jax.judging.groups import Group, GroupRewards
from grm_jax.serving.adapters import batches
from grm_jax.serving.client import AsyncScorer, Scorer

Rewards = list[float | None]


def reward_func(
    scorer: Scorer,
    num_generations: int | None = None,
    num_generations_eval: int | None = None,
    reference: str | None = None,
    principles: str | None = None,
    name: str = "judge",
) -> Callable[..., Rewards]:
    """Returns a reward function for TRL.

    Args:
      scorer: a `Client`, or `functools.partial(score, judge=judge)`.
      num_generations, num_generations_eval: of the `GRPOConfig`. None: as many as equal prompts
        follow each other, the same number everywhere; refused with several processes, where that
        could be half a group.
      reference, principles: columns of the data set with a good answer, and with the principles to
        judge by.
      name: of the reward in TRL's log.

    The function raises:
      SplitGroup: the batch has parts of groups; names the batch size that keeps them whole.
    """

    def judge(prompts: Any, completions: Any, **columns: Any) -> Rewards:
        groups = _groups(prompts, completions, columns)
        return _rewards(scorer(groups), columns, name)

    _groups = functools.partial(
        _batch_groups, (num_generations, num_generations_eval), (reference, principles)
    )
    judge.__name__ = name
    return judge


def reward_func_async(
    scorer: AsyncScorer,
    num_generations: int | None = None,
    num_generations_eval: int | None = None,
    reference: str | None = None,
    principles: str | None = None,
    name: str = "judge",
) -> Callable[..., Awaitable[Rewards]]:
    """Returns a coroutine function for TRL, which runs it beside its other reward functions.

    Args:
      scorer: such as `Client(...).score_async`. For the others see `reward_func`.
    """

    async def judge(prompts: Any, completions: Any, **columns: Any) -> Rewards:
        groups = _groups(prompts, completions, columns)
        return _rewards(await scorer(groups), columns, name)

    _groups = functools.partial(
        _batch_groups, (num_generations, num_generations_eval), (reference, principles)
    )
    judge.__name__ = name
    return judge


def _batch_groups(
    sizes: tuple[int | None, int | None],
    names: tuple[str | None, str | None],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
) -> list[Group]:
    for name in names:
        if name is not None and name not in columns:
            known = ", ".join(sorted(column for column in columns if column not in _OF_TRL))
            raise ValueError(f"the data set has no column {name!r}; it has {known or 'no other'}")
    size = _group_size(prompts, *sizes)
    references, principles = (columns[name] if name is not None else None for name in names)
    return list(batches.groups_of_batch(prompts, completions, size, references, principles))


_OF_TRL = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


def _group_size(prompts: Sequence[Any], train: int | None, evaluation: int | None) -> int:
    """Returns how many successive samples are a group. Raises SplitGroup."""
    runs = batches.sizes_of_runs(prompts)
    sizes = [size for size in (train, evaluation) if size is not None]
    # A prompt may follow itself in the data set. Of two sizes that fit, the larger is not split.
    for size in sorted(sizes, reverse=True):
        if all(run % size == 0 for run in runs):
            return size
    if not sizes:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1:
            raise ValueError(
                f"num_generations is not set, and {processes} processes run: a group could be "
                "split over them. Give the num_generations of the GRPOConfig"
            )
        if len(set(runs)) == 1:
            return runs[0]
    size = sizes[0] if sizes else max(runs)
    whole = -(-len(prompts) // size) * size
    raise batches.SplitGroup(
        f"a group of {size} responses is split over processes or batches: this process has "
        f"{len(prompts)} responses, {', '.join(map(str, runs[:8]))} to successive prompts. Make "
        "per_device_train_batch_size x steps_per_generation (in evaluation "
        f"per_device_eval_batch_size) a multiple of {size}, such as {whole}"
    )


def _rewards(results: Sequence[GroupRewards], columns: Mapping[str, Any], name: str) -> Rewards:
    """Logs the statuses; returns the rewards."""
    rewards = batches.flat(results)
    if log_metric := columns.get("log_metric"):
        for status, share in batches.shares(rewards).items():
            log_metric(f"{name}/{status}", share)
    if log_extra := columns.get("log_extra"):
        log_extra(f"{name}_status", [reward.status for reward in rewards])
        log_extra(f"{name}_reason", [reward.reason or "" for reward in rewards])
    return [reward.reward for reward in rewards]
