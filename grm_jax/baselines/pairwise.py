"""A pairwise judge without a critique: the number of the better of two responses.

Fine-tuned by the RFT stage on the labels alone. Of several responses it judges every pair; the
score of a response is the sum of its shares of wins.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from grm_jax.baselines.bench import BASELINES, RESUME, Baseline, Bench
from grm_jax.baselines.llm_judge import VOTES, fine_tuned
from grm_jax.baselines.results import Measured
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.run import judge_with_model
from grm_jax.training import rft_data
from grm_jax.training.replies import CritiqueReply, CritiqueRequest
from grm_jax.training.rft_data import best_index
from grm_jax.types import Comparison


def measure(bench: Bench, folder: Path) -> list[Measured]:
    """Trains the judge and measures its votes, and the probabilities of the number."""
    judge = fine_tuned(bench, folder, "pairwise", training_set)
    pairs = [pair for comparison in bench.comparisons for pair in all_pairs(comparison)]
    measured = []
    for vote, suffix in VOTES.items():
        options = dataclasses.replace(bench.options, vote=vote, expected=True)
        path = folder / f"{bench.benchmark.name}.pairs.{vote}.jsonl"
        judged_pairs, cost = judge_with_model(judge, pairs, path, options, RESUME)
        by_id = {judged.comparison.id: judged.scores for judged in judged_pairs}
        judged = [
            JudgedComparison(c, tuple(wins(c, [by_id[pair.id] for pair in all_pairs(c)])))
            for c in bench.comparisons
        ]
        measured.append(bench.measured(judged, f"pairwise{suffix}", options.k, cost))
    return measured


BASELINES.add("pairwise", Baseline(measure, unused=("rl", "meta_rm")))


def training_set(bench: Bench, options: rft_data.RftOptions) -> rft_data.RftSet:
    """Builds the set: each (best, other) pair once, in an order of its own, none rejected."""
    comparisons = bench.training_comparisons(bench.config.rft.comparisons)
    pairs = [pair for comparison in comparisons for pair in pairs_of(comparison)]
    # A label is always right and never sampled twice, so rejection has nothing to do.
    return rft_data.build(pairs, label, dataclasses.replace(options, samples=1, reject=False))


def label(requests: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
    """A sampler that replies with the number of the best response."""
    bests = [request.order.index(best_index(request.comparison)) for request in requests]
    return [CritiqueReply(f"\\boxed{{{best + 1}}}", "stop") for best in bests]


def pairs_of(comparison: Comparison) -> list[Comparison]:
    """Splits a comparison into its (best, other) pairs."""
    best = best_index(comparison)
    return [
        dataclasses.replace(
            comparison,
            responses=(comparison.responses[best], other),
            label=0,
            id=f"{comparison.id}-{i}",
            meta={},
        )
        for i, other in enumerate(comparison.responses)
        if i != best
    ]


def all_pairs(comparison: Comparison) -> list[Comparison]:
    """Splits a comparison into all pairs (i, j), i < j, without labels."""
    return [
        Comparison(
            comparison.query,
            (comparison.responses[i], comparison.responses[j]),
            id=f"{comparison.id}/{i}-{j}",
        )
        for i, j in itertools.combinations(range(comparison.n), 2)
    ]


def wins(
    comparison: Comparison, scores_of_pairs: Sequence[tuple[float, ...] | None]
) -> list[float]:
    """Returns each response's shares of the pairs of `all_pairs`; an unparsed pair is shared."""
    won = [0.0] * comparison.n
    pairs = itertools.combinations(range(comparison.n), 2)
    for (i, j), scores in zip(pairs, scores_of_pairs, strict=True):
        first, second = scores or (0.0, 0.0)
        share = first / (first + second) if first + second > 0 else 0.5
        won[i] += share
        won[j] += 1 - share
    return won
