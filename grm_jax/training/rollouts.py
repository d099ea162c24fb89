"""Rollouts of reinforcement learning: comparisons -> prompts -> G critiques each -> scores -> rewards -> arrays.

Axes: P prompts, S prompt slots, G samples per prompt, T completion tokens.
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Sequence

import numpy as np

from grm_jax import sampling
from grm_jax.text import rendering
from grm_jax.training import losses, rft_data
from grm_jax.types import Comparison, Critique

RIGHT, WRONG = 1.0, -1.0  # SPCT equation 11: no other reward, none for form


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A comparison as the policy sees it: the order of its responses, the template, and the token ids."""

    comparison: Comparison
    order: tuple[int, ...]
    template: str
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What one round of sampling gave. Scores inside the critiques are in the caller's order.

    batch: the arrays that `steps.rollout_shapes` names, and `sampler_logps`.
    metrics: reward, accuracy, read and tie rates, share of groups without advantage, lengths, tokens per second.
    """

    prompts: list[Prompt]
    critiques: list[list[Critique]]
    rewards_PxG: np.ndarray
    batch: dict[str, np.ndarray]
    metrics: dict[str, float]


def make_prompt(comparison: Comparison, family: str, tokenizer, rng: random.Random) -> Prompt:
    """The prompt of a comparison, its responses in a random order: no place is favoured by the data (SPCT section 4)."""
    order = tuple(rng.sample(range(comparison.n), comparison.n))
    template = rft_data.training_template(family, comparison)
    return Prompt(
        comparison,
        order,
        template,
        tokenizer.encode_chat(rendering.render(template, comparison, order)),
    )


def make_prompts(
    comparisons: Sequence[Comparison], family: str, tokenizer, seed: int, longest: int
) -> tuple[list[Prompt], int]:
    """Prompts of comparisons, orders drawn from the seed, and how many were too long.

    A prompt of more than `longest` tokens is replaced by another one of the batch, so that the batch keeps its size.

    Raises:
      ValueError: all are too long, or a comparison's label does not say which response is best.
    """
    rng = random.Random(f"orders/{seed}")
    prompts = []
    for comparison in comparisons:
        rft_data.is_correct(
            comparison, None
        )  # Raises for a label that does not say which response is best.
        prompts.append(make_prompt(comparison, family, tokenizer, rng))
    fitting = [prompt for prompt in prompts if len(prompt.tokens) <= longest]
    if not fitting:
        shortest = min(len(prompt.tokens) for prompt in prompts)
        raise ValueError(
            f"all {len(prompts)} prompts are too long, the shortest has {shortest} tokens: raise config.rl.prompt_len ({longest})"
        )
    spare = itertools.cycle(fitting)
    kept = [prompt if len(prompt.tokens) <= longest else next(spare) for prompt in prompts]
    return kept, len(prompts) - len(fitting)


def read(prompt: Prompt, tokens: Sequence[int], finish: str, tokenizer) -> Critique:
    """One completion as text and scores."""
    reply = rft_data.CritiqueReply(tokenizer.decode(tokens), str(finish))
    return rft_data.parse_reply(prompt.comparison, prompt.order, reply, prompt.template)


def reward(comparison: Comparison, critique: Critique) -> float:
    """+1 for a critique that is right by the strict rule, -1 for any other, unread ones included (SPCT equation 11)."""
    return RIGHT if rft_data.is_correct(comparison, critique.scores) else WRONG


def roll_out(model, prompts: list[Prompt], tokenizer, rl, seed: int) -> Rollouts:
    """Samples `rl.group_size` critiques of each prompt and gives them their rewards.

    Args:
      model: the policy; runs under the mesh in context.
      rl: section of a config: group_size, max_new_tokens, temperature, prompt_len, prompt_slots, normalise_std.
      seed: of the sampling; a step's own.
    """
    start = time.perf_counter()
    samples = sampling.sample(
        model,
        [prompt.tokens for prompt in prompts],
        rl.group_size,
        rl.max_new_tokens,
        temperature=rl.temperature,
        stop=tokenizer.stop_ids,
        seed=seed,
        prompt_slots=rl.prompt_slots or len(prompts),
    )
    seconds = time.perf_counter() - start
    if samples.errors:
        index, reason = next(iter(samples.errors.items()))
        raise ValueError(
            f"{len(samples.errors)} prompts could not be sampled, first {prompts[index].comparison.id}: {reason}"
        )
    P, G, T = samples.tokens.shape
    critiques = [
        [
            read(
                prompt,
                samples.tokens[p, g, : samples.lengths[p, g]].tolist(),
                samples.finish[p, g],
                tokenizer,
            )
            for g in range(G)
        ]
        for p, prompt in enumerate(prompts)
    ]
    rewards_PxG = np.array(
        [[reward(prompt.comparison, c) for c in row] for prompt, row in zip(prompts, critiques)],
        np.float32,
    )
    batch = {
        **prompt_arrays(prompts, rl.prompt_len, tokenizer.pad_id),
        "completions": samples.tokens,
        "mask": (np.arange(T) < samples.lengths[..., None]).astype(np.float32),
        "sampler_logps": samples.logprobs,
        "advantages": np.asarray(losses.group_advantages(rewards_PxG, rl.normalise_std)),
    }
    metrics = summary(prompts, rewards_PxG, critiques, samples.lengths)
    metrics["rollout_tokens_per_s"] = samples.stats.tokens / seconds
    metrics["rollout_s"] = seconds
    return Rollouts(prompts, critiques, rewards_PxG, batch, metrics)


def prompt_arrays(prompts: Sequence[Prompt], slots: int, pad_id: int) -> dict[str, np.ndarray]:
    """Prompts left-padded to `slots` tokens, and their lengths."""
    tokens_PxS = np.full((len(prompts), slots), pad_id, np.int32)
    for row, prompt in zip(tokens_PxS, prompts):
        row[slots - len(prompt.tokens) :] = prompt.tokens
    return {
        "prompts": tokens_PxS,
        "prompt_lengths": np.array([len(p.tokens) for p in prompts], np.int32),
    }


def trim(batch: dict[str, np.ndarray], buckets: int) -> dict[str, np.ndarray]:
    """Cuts padding that no row of the batch needs: right of the completions, left of the prompts.

    Lengths are rounded up to one of `buckets` equal steps of the full length, so that few programs are compiled; 1 cuts nothing.
    """

    def rounded(needed: int, full: int) -> int:
        return next(
            -(-full * i // buckets)
            for i in range(1, buckets + 1)
            if -(-full * i // buckets) >= needed
        )

    S, T = batch["prompts"].shape[1], batch["mask"].shape[2]
    S_cut = rounded(int(batch["prompt_lengths"].max()), S)
    T_cut = rounded(int(batch["mask"].sum(axis=2).max()), T)
    cut = {name: x[:, :, :T_cut] for name, x in batch.items() if x.ndim == 3}
    return {**batch, **cut, "prompts": batch["prompts"][:, S - S_cut :]}


def summary(
    prompts: Sequence[Prompt],
    rewards_PxG: np.ndarray,
    critiques: Sequence[Sequence[Critique]],
    lengths_PxG: np.ndarray,
) -> dict[str, float]:
    """Shares over the samples of one round, and the share of groups that teach nothing because all rewards are equal."""
    flat = [critique for row in critiques for critique in row]
    outcomes = [
        rft_data.outcome_of(p.comparison, c) for p, row in zip(prompts, critiques) for c in row
    ]
    equal = rewards_PxG.max(axis=1) == rewards_PxG.min(axis=1)
    return {
        "reward": float(rewards_PxG.mean()),
        "accuracy": float((rewards_PxG > 0).mean()),
        "parse_rate": float(np.mean([c.status == "ok" for c in flat])),
        "tie_rate": float(np.mean([outcome == "tie" for outcome in outcomes])),
        "group_zero": float(equal.mean()),
        "length": float(lengths_PxG.mean()),
        "length_max": float(lengths_PxG.max()),
        "truncated": float(np.mean([c.finish == "length" for c in flat])),
    }
