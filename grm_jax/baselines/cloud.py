"""A semi-scalar judge after CLoud: a critique of each response by itself, then a scalar of the response with its critique.

The critiques come from SPCT's own RFT model under its template for one response, for training and for judging; only the
scalar is trained here. k critiques give k scalars, whose mean is the reward (SPCT, equation 12).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grm_jax.baselines import scalar
from grm_jax.judging.judge import Judge
from grm_jax.judging.options import Options
from grm_jax.training import sources
from grm_jax.training.rft_data import best_index
from grm_jax.types import Comparison


def singles(comparison: Comparison) -> list[Comparison]:
    """Each response as a comparison of its own, without label."""
    return [
        Comparison(comparison.query, (response,), None, None, f"{comparison.id}/{i}")
        for i, response in enumerate(comparison.responses)
    ]


def critiques(
    judge: Judge, comparisons: Sequence[Comparison], options: Options
) -> list[list[list[str]]]:
    """texts[comparison][response][sample]. A response that could not be judged has k empty critiques."""
    flat = [one for comparison in comparisons for one in singles(comparison)]
    texts: dict[int, list[str]] = {}
    for i, verdict in judge.stream(flat, options):
        texts[i] = [c.text for c in getattr(verdict, "critiques", ())] or [""] * options.k
    ordered = iter(range(len(flat)))
    return [[texts[next(ordered)] for _ in comparison.responses] for comparison in comparisons]


def pairs(config, section, judge: Judge, tokenizer, max_new_tokens: int) -> scalar.Pairs:
    """(best, other) texts with a critique each, of the comparisons that SPCT trains on."""
    taken = sources.judging(config).take(0, section.comparisons)
    comparisons = [c for c in taken if c.n > 1 and c.best is not None]
    options = Options(k=1, temperature=1.0, seed=config.seed, max_new_tokens=max_new_tokens)
    texts = []
    for comparison, written in zip(comparisons, critiques(judge, comparisons, options)):
        encoded = [
            scalar.encode_response(tokenizer, comparison, response, samples[0])
            for response, samples in zip(comparison.responses, written)
        ]
        best = best_index(comparison)
        texts += [(encoded[best], other) for i, other in enumerate(encoded) if i != best]
    return scalar.pair_up(texts, section.seq_len)


def scores(
    judge: Judge, reward: scalar.Scalar, comparisons: Sequence[Comparison], options: Options
) -> list[list[list[float]]]:
    """rewards[comparison][response][sample]: the mean over samples is the semi-scalar judge's score."""
    options = dataclasses.replace(options, vote="sum", expected=False, k_meta=None)
    written = critiques(judge, comparisons, options)
    flat = [
        scalar.encode_response(reward.tokenizer, comparison, response, text)
        for comparison, by_response in zip(comparisons, written)
        for response, texts in zip(comparison.responses, by_response)
        for text in texts
    ]
    values = iter(reward(flat))
    return [[[next(values) for _ in texts] for texts in by_response] for by_response in written]
