"""Prompts and padded arrays of rollouts; the steps of the algorithm are in grpo.py.

Axes: P prompts, S prompt tokens, G samples per prompt, T completion tokens.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence

import numpy as np

from grm_jax.text import rendering
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.training import rft_data
from grm_jax.training.errors import TrainingError
from grm_jax.types import UNPARSED, Comparison, Critique


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A comparison as the policy reads it: response order, template name and token ids."""

    comparison: Comparison
    order: tuple[int, ...]
    template: str
    tokens: list[int]


def make_prompts(
    comparisons: Sequence[Comparison], family: str, tokenizer: Tokenizer, seed: int, max_len: int
) -> tuple[list[Prompt], int]:
    """Renders comparisons, with response orders drawn from the seed.

    Random orders keep the data from favouring a position (SPCT section 4).
    A prompt of more than `max_len` tokens is replaced by another one of the batch, so that the
    batch keeps its size.

    Returns:
      (prompts, number of prompts that were too long).

    Raises:
      TrainingError: all prompts are too long, or a label does not name one best response.
    """
    rng = random.Random(f"orders/{seed}")
    prompts = []
    for comparison in comparisons:
        rft_data.is_correct(comparison, None)  # raises for a label without one best response
        order = tuple(rng.sample(range(comparison.n), comparison.n))
        template = rft_data.training_template(family, comparison)
        tokens = tokenizer.encode_chat(rendering.render(template, comparison, order))
        prompts.append(Prompt(comparison, order, template, tokens))
    fitting = [prompt for prompt in prompts if len(prompt.tokens) <= max_len]
    if not fitting:
        shortest = min(len(prompt.tokens) for prompt in prompts)
        raise TrainingError(
            f"all {len(prompts)} prompts are too long, the shortest has {shortest} tokens: "
            f"raise config.rl.prompt_len ({max_len})"
        )
    spare = itertools.cycle(fitting)
    kept = [prompt if len(prompt.tokens) <= max_len else next(spare) for prompt in prompts]
    return kept, len(prompts) - len(fitting)


def prompt_arrays(prompts: Sequence[Prompt], length: int, pad_id: int) -> dict[str, np.ndarray]:
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


def rollout_metrics(
    prompts: Sequence[Prompt],
    rewards_PxG: np.ndarray,
    critiques: Sequence[Sequence[Critique]],
    lengths_PxG: np.ndarray,
) -> dict[str, float]:
    """Computes shares over the samples, and the share of groups whose rewards are all equal."""
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
