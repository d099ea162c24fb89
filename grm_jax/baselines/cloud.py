"""A semi-scalar judge after CLoud: a critique of each response by itself, then a scalar of both.

SPCT's RFT model writes the critiques, for training and for judging, under its template for a single
response. Only the scalar is trained here. k critiques give k scalars; their mean is the reward
(SPCT, equation 12).
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from grm_jax.baselines import scalar
from grm_jax.baselines.bench import BASELINES, Baseline, Bench
from grm_jax.baselines.results import Measured
from grm_jax.evals.benchmark import nan_mean
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging.judge import Judge
from grm_jax.judging.options import Options
from grm_jax.judging.scalar_head import encode_response
from grm_jax.text import rendering
from grm_jax.training.rft_data import best_index
from grm_jax.types import Comparison

log = logging.getLogger(__name__)


def measure(bench: Bench, folder: Path) -> list[Measured]:
    """Trains the scalar and measures it at k = 1 and at k."""
    if not bench.has_stage("rft"):
        log.warning("cloud is skipped: %s has no finished RFT stage", bench.spct)
        return []
    params = bench.stage_params("rft")
    judge = bench.judge(params, rendering.single_binary(bench.config.template))
    reward = scalar.trained(
        bench, folder / "train", "cloud", lambda: params, lambda b: training_pairs(b, judge)
    )
    options = dataclasses.replace(bench.options, vote="sum", expected=False, k_meta=None)
    texts = critiques(judge, bench.comparisons, options)
    values = iter(
        reward(
            [
                encode_response(bench.tokenizer, comparison, response, text)
                for comparison, responses in zip(bench.comparisons, texts)
                for response, samples in zip(comparison.responses, responses)
                for text in samples
            ]
        )
    )
    # rewards[comparison][response][sample]
    rewards = [[[next(values) for _ in samples] for samples in responses] for responses in texts]
    measured = []
    for k in dict.fromkeys((1, options.k)):
        judged = [
            JudgedComparison(c, tuple(nan_mean(samples[:k]) for samples in responses))
            for c, responses in zip(bench.comparisons, rewards)
        ]
        measured.append(bench.measured(judged, "cloud", k))
    return measured


BASELINES.add("cloud", Baseline(measure, unused=("rl", *scalar.UNUSED)))


def critiques(
    judge: Judge, comparisons: Sequence[Comparison], options: Options
) -> list[list[list[str]]]:
    """Returns texts[comparison][response][sample]: k empty ones if a response is not judged."""
    singles = [
        Comparison(comparison.query, (response,), id=f"{comparison.id}/{i}")
        for comparison in comparisons
        for i, response in enumerate(comparison.responses)
    ]
    texts = {
        i: [c.text for c in getattr(verdict, "critiques", ())] or [""] * options.k
        for i, verdict in judge.stream(singles, options)
    }
    ordered = (texts[i] for i in range(len(singles)))
    return [[next(ordered) for _ in comparison.responses] for comparison in comparisons]


def training_pairs(bench: Bench, judge: Judge) -> list[scalar.TokenPair]:
    """Tokenises the (best, other) pairs of SPCT's training comparisons, with a critique each."""
    config = bench.config
    comparisons = bench.training_comparisons(config.rft.comparisons)
    options = dataclasses.replace(bench.options, k=1, temperature=1.0, seed=config.seed)
    pairs: list[tuple] = []
    for comparison, texts in zip(comparisons, critiques(judge, comparisons, options)):
        encoded = [
            encode_response(bench.tokenizer, comparison, response, samples[0])
            for response, samples in zip(comparison.responses, texts)
        ]
        pairs += scalar.best_and_others(encoded, best_index(comparison))
    return pairs
