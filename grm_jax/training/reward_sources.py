"""Sources of a policy's rewards: a judge on this mesh, a judge behind a server, or a function.

To add one, register a function that makes a scorer:

    @SOURCES.register("shortest")
    def shortest(settings, run):
        return lambda questions, groups, seed: [
            rewards_of(group, [-len(text) for text in group.responses]) for group in groups
        ]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from grm_jax import checkpoints
from grm_jax.endpoint import check_url
from grm_jax.hosts import distributed
from grm_jax.judging.groups import (
    Group,
    GroupRewards,
    ResponseReward,
    rewards_of as rewards_from_json,
    rewards_to_json,
)
from grm_jax.judging.judge import Judge
from grm_jax.judging.rewards import score
from grm_jax.models import TransformerConfig, abstract_model
from grm_jax.registry import Registry
from grm_jax.sampling import weights
from grm_jax.serving.client import Client
from grm_jax.storage import fetch
from grm_jax.training import loop
from grm_jax.training.errors import TrainingError
from grm_jax.training.judge_settings import JudgeSettings as JudgeSettings
from grm_jax.training.machines import argument_bytes
from grm_jax.types import Turn

RULE = "rule"  # the rule-based reward of the RL stage; its prompts are comparisons


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt of the policy.

    Attributes:
      prompt: the user's text, or a conversation.
      tokens: token ids of the prompt in the policy's chat format.
      id: for logs and errors.
      truth: answer -> its true quality; None if the data have none.
    """

    prompt: str | list[Turn]
    tokens: list[int]
    id: str | None = None
    truth: Callable[[str], float] | None = None


# (questions, the group of answers to each, seed) -> the rewards of each group, in the same order.
Scorer = Callable[[Sequence[Question], Sequence[Group], int], list[GroupRewards]]


SOURCES: Registry[Callable[[JudgeSettings, loop.Run], Scorer]] = Registry("reward source")


def rewards_of(group: Group, values: Sequence[float]) -> GroupRewards:
    """Returns one number per response as the rewards of a group."""
    return GroupRewards(group.id, tuple(ResponseReward(float(value)) for value in values))


@SOURCES.register("colocated")
def colocated(settings: JudgeSettings, run: loop.Run) -> Scorer:
    """Loads a judge onto the training mesh, where its weights stay; returns its scorer."""
    judge = Judge.load(
        fetch(settings.path),
        meta_rm=fetch(settings.meta_rm) if settings.meta_rm else None,
        mesh=run.mesh,
        dtype=settings.dtype,
        quantize=settings.quantize or None,
        prompt_slots=settings.prompt_slots or None,
        rows=settings.rows or None,
    )
    return by_judge(judge, settings)


def resident_bytes(settings: JudgeSettings, mesh: Mesh) -> int:
    """Returns the bytes per device that a colocated judge and its meta RM occupy during training.

    Their copies for decoding are included. Reads only the headers of their files. Other sources
    occupy 0 bytes.
    """
    paths = settings.models().values()
    configs = [in_use(checkpoints.open_checkpoint(p).model_config(), settings) for p in paths]
    return sum(sum(held_bytes(cfg, mesh)) for cfg in configs)


def in_use(cfg: TransformerConfig, settings: JudgeSettings) -> TransformerConfig:
    """Returns a judge's model config with the dtype and quantisation of the settings."""
    quantize = settings.quantize or cfg.quantize
    return cfg.replace(dtype=settings.dtype, param_dtype=settings.dtype, quantize=quantize)


def held_bytes(cfg: TransformerConfig, mesh: Mesh) -> tuple[int, int]:
    """Returns (bytes per device of a model's weights, bytes of their copy for decoding).

    A model with a scalar head does not decode: its second number is 0.
    """
    stored = argument_bytes(abstract_model(cfg, mesh)[1])
    if cfg.scalar_head:
        return stored, 0
    return stored, argument_bytes(abstract_model(cfg, mesh, weights.SAMPLING_AXES)[1])


def by_judge(judge: Judge, settings: JudgeSettings) -> Scorer:
    """Returns the scorer of a judge in this process: one listwise call per group."""
    return lambda questions, groups, seed: score(groups, judge, settings.options(seed))


@SOURCES.register("served")
def served(settings: JudgeSettings, run: loop.Run) -> Scorer:
    """Returns the scorer of a judge behind `grm serve`.

    Process 0 sends the requests and broadcasts the results.
    """
    client = Client(
        settings.url,
        key_variable=settings.key_variable,
        parallel=settings.parallel,
        retries=settings.retries,
        timeout=settings.timeout,
        deadline=settings.deadline,
    )

    def scores(
        questions: Sequence[Question], groups: Sequence[Group], seed: int
    ) -> list[GroupRewards]:
        judge = dataclasses.replace(client, options=settings.options(seed))
        results = distributed.from_first(lambda: [rewards_to_json(one) for one in judge(groups)])
        return [rewards_from_json(fields) for fields in results]

    return scores


@SOURCES.register("truth")
def truth(settings: JudgeSettings, run: loop.Run) -> Scorer:
    """Returns the scorer of the true quality, which only the judging world has."""

    def scores(
        questions: Sequence[Question], groups: Sequence[Group], seed: int
    ) -> list[GroupRewards]:
        return [true_rewards(*pair) for pair in zip(questions, groups, strict=True)]

    return scores


def true_rewards(question: Question, group: Group) -> GroupRewards:
    """Returns the true quality of each answer. Raises TrainingError if the data have none."""
    if question.truth is None:
        raise TrainingError(
            "config.policy.judge.source='truth': only the judging world has the true quality "
            "of any answer. Set config.data.judging=world, or use a judge"
        )
    return rewards_of(group, [question.truth(text) for text in group.responses])


@SOURCES.register("longest")
def longest(settings: JudgeSettings, run: loop.Run) -> Scorer:
    """Returns the scorer of a content-blind rule: the number of characters."""
    return lambda questions, groups, seed: [
        rewards_of(group, [len(text) for text in group.responses]) for group in groups
    ]


def check(settings: JudgeSettings, complete: bool = False) -> None:
    """Raises ValueError, naming the field, for invalid settings.

    complete: a missing `path` or `url` is invalid too, if the source needs it.
    """
    needed = {"colocated": "path", "served": "url"}.get(settings.source)
    if complete and needed and not getattr(settings, needed):
        raise ValueError(
            f"config.policy.judge.{needed} is empty: source={settings.source!r} needs it"
        )
    try:
        settings.options()
        if settings.url:
            check_url(settings.url)  # it is written to the workdir
            Client(settings.url)
    except ValueError as error:
        raise ValueError(f"config.policy.judge.{error}") from error
