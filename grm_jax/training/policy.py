"""The stage `policy`: GRPO of a policy that answers questions, rewarded by a judge.

    questions -> G answers to each -> one listwise judgement per group -> rewards with status
    -> the GRPO step of grpo.py

The stage `sft` is its supervised start. An answer whose judgement is unparsed or failed has no
reward: it is masked out of the loss, counted and logged. No placeholder replaces the reward.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from grm_jax.data import sft
from grm_jax.data.world import answers
from grm_jax.judging.groups import FAILED, SCORED, UNPARSED, Group, GroupRewards
from grm_jax.storage import PathLike
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.training import grpo, loop, memory, optim, reward_sources, rft, rollouts, sources
from grm_jax.training.errors import TrainingError
from grm_jax.training.reward_sources import RULE, SOURCES, JudgeSettings, Question, Scorer
from grm_jax.types import Turn

log = logging.getLogger(__name__)
SHOWN = ("reward", "true_reward", "kl_sequence", "entropy", "length")

# The fields (prompt, id, truth) of a `Question`; the tokens are added by `make_question`.
Place = tuple[str | list[Turn], str | None, Callable[[str], float] | None]


def train(
    run: loop.Run,
    start: Callable[[], Any],
    folder: PathLike,
    report: Callable[[str], None] = log.info,
) -> Any:
    """Trains a policy with the rewards of `config.policy.judge`.

    Args:
      run: config, mesh, tokenizer and stop signal; `config.policy` has the settings.
      start: () -> the initial float32 parameters, new arrays on each call. The reference of the KL
        penalty is a copy of them.
      folder: of the stage. Training resumes from the newest checkpoint there.
      report: receives the line of `memory.choose`.

    Returns:
      The trained parameters.
    """
    config = with_section(run.config, "rl", "policy")
    if memory.is_open(config, "rl"):
        judge = JudgeSettings.of(config.policy.judge)
        taken = reward_sources.resident_bytes(judge, run.mesh)
        named = lambda line: report("policy" + line.removeprefix("rl"))
        config = memory.choose(config, "rl", run.mesh, report=named, taken=taken)
    run = run.with_config(config)
    return grpo.train_in(run, environment(run), start, folder)


def with_section(config: ConfigDict, name: str, source: str) -> ConfigDict:
    """Returns a copy of the config whose section `name` is its section `source`.

    The GRPO programs read their settings from `config.rl`, fine-tuning from `config.rft`.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config[name] = config[source]
    return config


def environment(run: loop.Run) -> rollouts.Environment:
    """Returns the prompts and rewards of `config.policy`.

    With the source "rule" these are the comparisons and the rule of the RL stage.
    """
    settings = JudgeSettings.of(run.config.policy.judge)
    if settings.source == RULE:
        return grpo.critique_environment(run, "policy")
    return judged_environment(run, SOURCES[settings.source](settings, run), settings.shown())


def judged_environment(
    run: loop.Run, scorer: Scorer, settings: dict[str, Any] | None = None
) -> rollouts.Environment:
    """Returns the environment of questions whose answers a scorer rewards.

    settings: values that the rewards depend on, for the checkpoint's record.
    """
    config, section = run.config, run.config.policy
    at, identity = question_source(config, run.workdir)

    def prompts(i: int, seed: int) -> rollouts.PromptBatch:
        first = section.first_item + i * section.prompts
        questions = [
            make_question(run.tokenizer, at(place))
            for place in range(first, first + section.prompts)
        ]
        chosen, too_long = rollouts.fitting(questions, section.prompt_len, "policy")
        return rollouts.PromptBatch(chosen, too_long, seed)

    def rewards(
        batch: rollouts.PromptBatch, replies: rollouts.Replies, lengths_PxG: np.ndarray
    ) -> rollouts.Rewards:
        judged, judge_s = judge(batch, replies, scorer)
        result = rewards_of(batch, replies, judged, lengths_PxG)
        check_scored(judged, section.max_unscored)
        tokens = sum(group.new_tokens for group in judged if group is not None)
        speed = {"judge_s": judge_s, "judge_tokens_per_s": tokens / judge_s}
        return result._replace(metrics={**result.metrics, **speed})

    return rollouts.Environment("policy", prompts, rewards, identity, SHOWN, settings or {})


# ---------------------------------------------------------------- questions


def question_source(
    config: ConfigDict, workdir: PathLike | None = None
) -> tuple[Callable[[int], Place], str]:
    """Returns (position -> fields of a question, identity of the data).

    The judging world yields tasks, which have the true quality of any answer. Other data yield the
    queries of their comparisons, without a truth.
    """
    data = config.data
    if data.judging == sources.WORLD:
        families, world = tuple(data.get("families", ())) or None, sources.world_config(data)

        def task_at(place: int) -> Place:
            task = answers.task(place, data.seed, "train", families, world)
            return task.query, task.id, task.truth

        levels = sorted((str(level), weight) for level, weight in world.levels.items())
        digest = hashlib.sha256(json.dumps([families, levels]).encode()).hexdigest()[:12]
        return task_at, f"tasks/train/{data.seed}/{digest}"
    source = sources.judging(config, workdir=workdir)

    def query_at(place: int) -> Place:
        comparison = source.at(place)
        return comparison.query, comparison.id, None

    return query_at, source.identity


def make_question(tokenizer: Tokenizer, place: Place) -> Question:
    """Returns a question with the tokens of its prompt."""
    prompt, id, truth = place
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Question(prompt, tokenizer.encode_chat(turns, add_generation_prompt=True), id, truth)


# ---------------------------------------------------------------- rewards


def judge(
    batch: rollouts.PromptBatch, replies: rollouts.Replies, scorer: Scorer
) -> tuple[list[GroupRewards | None], float]:
    """Scores the groups whose answers differ.

    Returns:
      (rewards of each group, seconds). None for a group of equal answers: it is not judged, since
      its advantages are 0.
    """
    start = time.perf_counter()
    groups = [
        Group(q.prompt, tuple(reply.text for reply in group), id=f"{i} {q.id}")
        for i, (q, group) in enumerate(zip(batch.prompts, replies))
    ]
    places = [i for i, group in enumerate(groups) if len(set(group.responses)) > 1]
    questions = [batch.prompts[i] for i in places]
    results = scorer(questions, [groups[i] for i in places], judge_seed(batch.seed))
    judged: list[GroupRewards | None] = [None] * len(groups)
    for i, result in zip(places, results, strict=True):
        judged[i] = result
    return judged, time.perf_counter() - start


def judge_seed(seed: int) -> int:
    """Derives the judge's 31-bit seed from a step's seed, which the policy's sampler uses."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]) >> 1


def rewards_of(
    batch: rollouts.PromptBatch,
    replies: rollouts.Replies,
    judged: Sequence[GroupRewards | None],
    lengths_PxG: np.ndarray,
) -> rollouts.Rewards:
    """Returns the rewards of a step. Groups of equal answers count, with advantage 0.

    Args:
      batch: P prompts.
      replies: G answers to each.
      judged: rewards of each group, None for a group of equal answers.
      lengths_PxG: tokens of each answer.
    """
    values_PxG = np.zeros(lengths_PxG.shape, np.float32)
    scored_PxG = np.ones(lengths_PxG.shape, bool)
    for p, group in enumerate(judged):
        if group is not None:
            scored_PxG[p] = [reward.status == SCORED for reward in group.rewards]
            values_PxG[p] = [0.0 if value is None else value for value in group.values]
    metrics = rollout_metrics(batch, replies, judged, lengths_PxG)
    return rollouts.Rewards(values_PxG, metrics, None if scored_PxG.all() else scored_PxG)


def rollout_metrics(
    batch: rollouts.PromptBatch,
    replies: rollouts.Replies,
    judged: Sequence[GroupRewards | None],
    lengths_PxG: np.ndarray,
) -> dict[str, float]:
    """Computes the metrics of a step; `reward` is missing if no answer has one.

    Args: see `rewards_of`.
    """
    groups = [group for group in judged if group is not None]
    results = [reward for group in groups for reward in group.rewards]
    values = [reward.reward for reward in results if reward.reward is not None]
    truths = [
        [q.truth(reply.text) for reply in group]
        for q, group in zip(batch.prompts, replies)
        if q.truth is not None
    ]
    flat = [reply for group in replies for reply in group]
    metrics = {"reward": float(np.mean(values))} if values else {}
    if truths:
        metrics["true_reward"] = float(np.mean(truths))
        metrics |= pair_accuracy(judged, truths)
    equal = [group is None or len(set(group.values)) == 1 for group in judged]
    return metrics | {
        "unparsed": share(reward.status == UNPARSED for reward in results),
        "failed": share(reward.status == FAILED for reward in results),
        "group_same": share(group is None for group in judged),
        "group_zero": share(equal),
        "length": float(lengths_PxG.mean()),
        "length_max": float(lengths_PxG.max()),
        "characters": float(np.mean([len(reply.text) for reply in flat])),
        "truncated": share(reply.finish == "length" for reply in flat),
    }


def share(flags: Any) -> float:
    """Returns the share of true flags; 0 if there are no flags."""
    flags = list(flags)
    return sum(map(bool, flags)) / len(flags) if flags else 0.0


def pair_accuracy(
    judged: Sequence[GroupRewards | None], truths: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Returns {"pair_accuracy": share of answer pairs whose rewards are ordered as their truths}.

    A pair is two answers of a group that both have a reward and differ in true quality. Equal
    rewards count half. Returns {} if there is no pair.

    Args:
      judged: rewards of each group; None counts as no rewards.
      truths: true quality of each group's answers.
    """
    credits = []
    for group, true in zip(judged, truths):
        values = [] if group is None else group.values
        for i, one in enumerate(values):
            for j, other in enumerate(values[:i]):
                if one is not None and other is not None and true[i] != true[j]:
                    right = (one > other) == (true[i] > true[j])
                    credits.append(0.5 if one == other else float(right))
    return {"pair_accuracy": float(np.mean(credits))} if credits else {}


def check_scored(judged: Sequence[GroupRewards | None], most: float) -> None:
    """Logs the judged answers of a step that have no reward.

    Raises TrainingError if their share is above `most`.
    """
    results = [reward for group in judged if group is not None for reward in group.rewards]
    missing = [reward for reward in results if reward.status != SCORED]
    if not missing:
        return
    failed = sum(reward.status == FAILED for reward in missing)
    counts = (
        f"{len(missing)} of {len(results)} answers have no reward ({failed} failed, "
        f"{len(missing) - failed} unparsed), the first: {missing[0].reason}"
    )
    if len(missing) > most * len(results):
        raise TrainingError(
            f"{counts}. That is more than config.policy.max_unscored={most:g} of a step's judged "
            "answers: fix the judge, then run the same command to resume from the last checkpoint"
        )
    log.log(logging.WARNING if failed else logging.INFO, "policy: %s", counts)


# ---------------------------------------------------------------- supervised start


def train_sft(
    run: loop.Run,
    start: Callable[[], Any],
    folder: PathLike,
    report: Callable[[str], None] = log.info,
) -> Any:
    """Fine-tunes a policy on demonstrations, so that it answers at all.

    In the judging world these are answers of mixed quality, `sft.demonstrations` to each of
    `sft.tasks` tasks; with other data, the general instructions of `config.data.general`.

    Args, returns: see `train`.

    Raises:
      TrainingError: there are no demonstrations.
    """
    config = with_section(run.config, "rft", "sft")
    named = lambda line: report("sft" + line.removeprefix("rft"))
    run = run.with_config(memory.choose(config, "rft", run.mesh, report=named))
    examples = demonstrations(run.config, run.workdir)
    if not examples:
        raise TrainingError(
            "the stage sft has no examples: set config.data.general and config.data.general_items, "
            "or remove sft from config.stages"
        )
    encoded = sft.encode_all(examples, run.tokenizer)
    digest = hashlib.sha256(encoded.tokens.tobytes() + encoded.ends.tobytes()).hexdigest()[:16]
    return rft.fine_tune(run, rft.Examples("sft", encoded, digest), start, folder)


def demonstrations(config: ConfigDict, workdir: PathLike | None = None) -> list[sft.Example]:
    """Returns the examples of the stage sft."""
    data, section = config.data, config.sft
    if data.judging != sources.WORLD:
        return sources.general(config, workdir)
    families, world = tuple(data.get("families", ())) or None, sources.world_config(data)
    examples = []
    for place in range(section.first_item, section.first_item + section.tasks):
        task = answers.task(place, data.seed, "train", families, world)
        prompt = ({"role": "user", "content": task.query},)
        texts = task.demonstrations(section.demonstrations)
        examples += [sft.Example(prompt, text, "demonstration", task.id) for text in texts]
    return examples


# ---------------------------------------------------------------- checks


def check(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for settings that would fail during training."""
    optim.make_optimizer(config.policy, "policy")
    settings = JudgeSettings.of(config.policy.judge)
    reward_sources.check(settings)
    if (path := config.policy.get("easy_trials")) and settings.source != RULE:
        raise ValueError(
            f"config.policy.easy_trials={path}: only config.policy.judge.source={RULE!r} reads it; "
            "remove the field"
        )


def check_sft(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for settings that would fail during training."""
    optim.make_optimizer(config.sft, "sft")
