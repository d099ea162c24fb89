"""Prompts, rewards and padded arrays of rollouts; grpo.py has the step.

Axes: P prompts, S prompt tokens, G samples per prompt, T completion tokens.
"""

import contextlib
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from grm_jax import sampling
from grm_jax.models.transformer import Transformer
from grm_jax.sampling import weights
from grm_jax.sharding import device_mesh, widen_tensor
from grm_jax.text import rendering
from grm_jax.text.layout import MissingTurns
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.training import losses, rft_data
from grm_jax.training.errors import TrainingError
from grm_jax.training.replies import CritiqueReply
from grm_jax.types import UNPARSED, Comparison, Critique


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A comparison rendered for the policy: response order, template name and token ids."""

    comparison: Comparison
    order: tuple[int, ...]
    template: str
    tokens: list[int]

    @property
    def id(self) -> str | None:
        """The comparison's id, for logs and errors."""
        return self.comparison.id


class HasTokens(Protocol):
    """A prompt of any environment."""

    @property
    def tokens(self) -> list[int]: ...

    @property
    def id(self) -> str | None: ...


AnyPrompt = TypeVar("AnyPrompt", bound=HasTokens)


class PromptBatch(NamedTuple):
    """The prompts of a step.

    Attributes:
      prompts: each `HasTokens`; the environment's rewards read its further fields.
      too_long: number of prompts that were too long; others of the batch replace them.
      seed: of the step, for the sampler and a judge.
    """

    prompts: Sequence[Any]
    too_long: int
    seed: int


class Rewards(NamedTuple):
    """The rewards of a step.

    Attributes:
      values: float32 (P, G); ignored where a sample has no reward.
      metrics: of the step, for the log.
      scored: bool (P, G): which samples have a reward; None if all have one.
    """

    values: np.ndarray
    metrics: Mapping[str, float]
    scored: np.ndarray | None = None

    @property
    def counted(self) -> np.ndarray | None:
        """Which samples count in the loss: those with a reward, in groups with at least two."""
        if self.scored is None:
            return None
        return self.scored & (self.scored.sum(axis=1, keepdims=True) >= 2)


Replies = Sequence[Sequence[CritiqueReply]]  # P prompts, G samples of each


@dataclasses.dataclass(frozen=True)
class Environment:
    """The prompts and rewards of a GRPO stage; stages share everything else.

    Attributes:
      stage: name of the stage.
      prompts: (step, seed) -> the prompts of the step.
      rewards: (prompts, replies, lengths in tokens (P, G)) -> rewards. Both depend on their
        arguments alone, so that a run resumes exactly.
      identity: of the data; it must be equal on resume.
      shown: metrics beside the progress bar.
      settings: values that the rewards depend on; a change on resume is logged.
    """

    stage: str
    prompts: Callable[[int, int], PromptBatch]
    rewards: Callable[[PromptBatch, Replies, np.ndarray], Rewards]
    identity: str
    shown: tuple[str, ...] = ("reward",)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def make_prompts(
    comparisons: Sequence[Comparison],
    family: str,
    tokenizer: Tokenizer,
    seed: int,
    max_len: int,
    section: str = "rl",
) -> tuple[list[Prompt], int]:
    """Renders comparisons, with response orders drawn from the seed.

    Random orders keep the data from favouring a position (SPCT section 4).

    section: config section that an error names.

    Returns:
      (prompts, number of prompts that were too long): see `fitting`.

    Raises:
      TrainingError: all prompts are too long, a label does not name one best response, or the
        template does not show a conversation.
    """
    rng = random.Random(f"orders/{seed}")
    prompts = []
    for comparison in comparisons:
        rft_data.check_label(comparison)
        order = tuple(rng.sample(range(comparison.n), comparison.n))
        template = rft_data.training_template(family, comparison)
        try:
            messages = rendering.render(template, comparison, order)
        except MissingTurns as error:
            raise TrainingError(f"comparison {comparison.id!r}: {error}") from error
        prompts.append(Prompt(comparison, order, template, tokenizer.encode_chat(messages)))
    return fitting(prompts, max_len, section)


def fitting(
    prompts: Sequence[AnyPrompt], max_len: int, section: str
) -> tuple[list[AnyPrompt], int]:
    """Replaces prompts of more than `max_len` tokens by others of the batch.

    section: config section that the error names.

    Returns:
      (prompts, number of prompts that were too long).

    Raises:
      TrainingError: all prompts are too long.
    """
    fits = [prompt for prompt in prompts if len(prompt.tokens) <= max_len]
    if not fits:
        shortest = min(len(prompt.tokens) for prompt in prompts)
        raise TrainingError(
            f"all {len(prompts)} prompts are too long, the shortest has {shortest} tokens: "
            f"raise config.{section}.prompt_len ({max_len})"
        )
    spare = itertools.cycle(fits)
    kept = [prompt if len(prompt.tokens) <= max_len else next(spare) for prompt in prompts]
    return kept, len(prompts) - len(fits)


def advantages(
    values_PxG: np.ndarray, counted_PxG: np.ndarray | None, normalise_std: bool
) -> np.ndarray:
    """Returns float32 group advantages (P, G) among the counted samples; the others get 0."""
    if counted_PxG is None:
        return np.asarray(losses.group_advantages(values_PxG, normalise_std))
    result_PxG = np.zeros(values_PxG.shape, np.float32)
    for advantages_G, values_G, counted_G in zip(result_PxG, values_PxG, counted_PxG):
        if counted_G.any():
            group = losses.group_advantages(values_G[None, counted_G], normalise_std)
            advantages_G[counted_G] = np.asarray(group)[0]
    return result_PxG


def roll_out(
    policy: Transformer,
    environment: Environment,
    batch: PromptBatch,
    tokenizer: Tokenizer,
    rl: ConfigDict,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Samples `rl.group_size` completions per prompt, and computes rewards and advantages.

    With `rl.rollout_quantize` it samples from an int8 copy of the policy, made for this call.

    Returns:
      (arrays, metrics): the arrays of `grpo.rollout_shapes`, `sampler_logps` and `advantages`. The
      mask is 0 on samples that do not count (`Rewards.counted`).

    Raises:
      TrainingError: a prompt cannot be sampled.
    """
    start, prompts = time.perf_counter(), batch.prompts
    mesh, kind = device_mesh(), rl.get("rollout_quantize")
    if mesh is not None:
        mesh = widen_tensor(mesh, policy.cfg, rl.get("rollout_tensor", 0))
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        samples = sampling.sample(
            weights.quantized(policy, kind) if kind else policy,
            [prompt.tokens for prompt in prompts],
            rl.group_size,
            rl.max_new_tokens,
            temperature=rl.temperature,
            stop=tokenizer.stop_ids,
            seed=batch.seed,
            prompt_slots=rl.prompt_slots or len(prompts),
        )
    rollout_s = time.perf_counter() - start
    if samples.errors:
        index, reason = next(iter(samples.errors.items()))
        raise TrainingError(
            f"{len(samples.errors)} prompts cannot be sampled, the first of them "
            f"{prompts[index].id}: {reason}"
        )
    P, G, T = samples.tokens.shape

    def reply(p: int, g: int) -> CritiqueReply:
        text = tokenizer.decode(samples.tokens[p, g, : samples.lengths[p, g]].tolist())
        return CritiqueReply(text, str(samples.finish[p, g]))

    replies = [[reply(p, g) for g in range(G)] for p in range(P)]
    rewards = environment.rewards(batch, replies, samples.lengths)
    counted_PxG = rewards.counted
    mask = (np.arange(T) < samples.lengths[..., None]).astype(np.float32)
    arrays = {
        **prompt_arrays(prompts, rl.prompt_len, tokenizer.pad_id),
        "completions": samples.tokens,
        "mask": mask if counted_PxG is None else mask * counted_PxG[..., None],
        "sampler_logps": samples.logprobs,
        "advantages": advantages(rewards.values, counted_PxG, rl.normalise_std),
    }
    metrics = {
        **rewards.metrics,
        "rollout_tokens_per_s": samples.stats.tokens / rollout_s,
        "rollout_s": rollout_s,
    }
    return arrays, metrics


def prompt_arrays(prompts: Sequence[HasTokens], length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Returns prompts left-padded to `length` tokens, and their lengths."""
    tokens_PxS = np.full((len(prompts), length), pad_id, np.int32)
    for padded, prompt in zip(tokens_PxS, prompts):
        padded[length - len(prompt.tokens) :] = prompt.tokens
    return {
        "prompts": tokens_PxS,
        "prompt_lengths": np.array([len(p.tokens) for p in prompts], np.int32),
    }


def trim(batch: dict[str, np.ndarray], buckets: int) -> dict[str, np.ndarray]:
    """Trims padding that the whole batch shares: right of completions, left of prompts.

    Lengths are rounded up to one of `buckets` equal fractions of the full length, so that few
    programs are compiled; with 1 nothing is trimmed.
    """

    def rounded(needed: int, full: int) -> int:
        lengths = [-(-full * i // buckets) for i in range(1, buckets + 1)]
        return next(length for length in lengths if length >= needed)

    S, T = batch["prompts"].shape[1], batch["mask"].shape[2]
    new_S = rounded(int(batch["prompt_lengths"].max()), S)
    new_T = rounded(int(batch["mask"].sum(axis=2).max()), T)
    completions = {name: x[:, :, :new_T] for name, x in batch.items() if x.ndim == 3}
    return {**batch, **completions, "prompts": batch["prompts"][:, S - new_S :]}


def rescaled(
    metrics: Mapping[str, Any], rollout: Mapping[str, np.ndarray], arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """Rescales the metrics of an update to means over the completions that count.

    The update divides by all completions. Adds `kl_sequence` in nats per completion: the sum of
    log(sampler / reference) over its tokens, an unbiased estimate of KL(sampler || reference).

    Args:
      metrics: of the update.
      rollout: arrays of `roll_out`.
      arrays: the same on the devices, with `ref_logps`.
    """
    counted = int((rollout["mask"].sum(axis=2) > 0).sum())
    log_ratio = (arrays["sampler_logps"] - arrays["ref_logps"]) * arrays["mask"]
    kl_sequence = float(log_ratio.sum()) / max(1, counted)
    if counted == rollout["mask"][..., 0].size:
        return {**metrics, "kl_sequence": kl_sequence}
    factor = rollout["mask"][..., 0].size / max(1, counted)
    means = {name: metrics[name] * factor for name in ("kl", "clip_share")}
    return {**metrics, **means, "kl_sequence": kl_sequence}


def rollout_metrics(
    prompts: Sequence[Prompt],
    rewards_PxG: np.ndarray,
    critiques: Sequence[Sequence[Critique]],
    lengths_PxG: np.ndarray,
) -> dict[str, float]:
    """Computes the metrics of a step's critiques; `group_zero` is the share of all-equal groups."""
    flat = [critique for group in critiques for critique in group]
    outcomes = [
        rft_data.outcome_of(p.comparison, c) for p, group in zip(prompts, critiques) for c in group
    ]
    all_equal = rewards_PxG.max(axis=1) == rewards_PxG.min(axis=1)
    return {
        "reward": float(rewards_PxG.mean()),
        "accuracy": float((rewards_PxG > 0).mean()),
        "parse_rate": float(np.mean([c.status == "ok" for c in flat])),
        "tie_rate": float(np.mean([outcome == "tie" for outcome in outcomes])),
        "group_zero": float(all_equal.mean()),
        "length": float(lengths_PxG.mean()),
        "length_max": float(lengths_PxG.max()),
        "truncated": float(np.mean([c.finish == "length" for c in flat])),
        **{
            f"unparsed/{name}": float(np.mean([c.status == name for c in flat]))
            for name in UNPARSED
        },
    }
