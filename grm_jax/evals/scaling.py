"""Inference-time scaling: each metric over k, for each voting method, from one run of K critiques.

The K critiques of a comparison are cut into K // k blocks of k. Each block votes on its own, and
the metric is averaged over all blocks, so the values at small k use every sample.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import Benchmark, Metrics, nan_mean
from grm_jax.evals.bootstrap import MetricFunction, Resampler
from grm_jax.evals.judged import JudgedComparison, vote
from grm_jax.judging.votes import META_GUIDED, VOTES, NoVote, VoteRule, curve_rules

META = "meta"  # the sum over the critiques that the meta reward model keeps


def all_kinds() -> list[str]:
    """The voting methods that curves show: registered rules (`judging.votes`), then META."""
    return [*curve_rules(), META]


def voting_method(kind: str) -> VoteRule:
    """The label, description and colour of a voting method."""
    return META_GUIDED if kind == META else VOTES[kind]


def ks_up_to(count: int) -> list[int]:
    """1, 2, 4, ... and `count` itself."""
    return sorted({2**i for i in range(count.bit_length()) if 2**i <= count} | {count})


def kinds(judged: Sequence[JudgedComparison]) -> list[str]:
    """The voting methods that the critiques allow."""
    parsed = [c for j in judged for c in j.critiques if c.status == "ok"]
    most = max((j.comparison.n for j in judged), default=0)
    allowed = [
        name
        for name in curve_rules()
        if most >= VOTES[name].min_responses
        and any(getattr(c, VOTES[name].needs) is not None for c in parsed)
    ]
    guided = parsed and all(c.meta_score is not None for c in parsed)
    return [*allowed, META] if guided else allowed


def revote(judged: JudgedComparison, kind: str, k: int, block: int) -> JudgedComparison:
    """The vote of one block of k critiques; scores are None where none of them can vote."""
    critiques = judged.critiques[block * k : (block + 1) * k]
    try:
        if critiques and kind == META:
            return vote(judged.comparison, critiques, "sum", guided=True)
        if critiques:
            return vote(judged.comparison, critiques, kind)
    except NoVote:  # none of the block's critiques has expected scores
        pass
    return dataclasses.replace(judged, scores=None, views=())


def blocks(judged: Sequence[JudgedComparison], kind: str, k: int) -> list[list[JudgedComparison]]:
    """The votes of every block of k critiques: K // k lists of one vote per comparison."""
    count = max(len(j.critiques) for j in judged) // k
    return [[revote(j, kind, k, block) for j in judged] for block in range(max(1, count))]


def mean_metrics(
    benchmark: Benchmark, votes: Sequence[Sequence[JudgedComparison]], rule: str
) -> MetricFunction:
    """Averages the benchmark's metrics over several votes, as a function of the weights."""
    graded = [benchmark.grade(judged, rule) for judged in votes]

    def metrics(weights_I: np.ndarray) -> Metrics:
        values = [benchmark.aggregate(grades, weights_I) for grades in graded]
        return {name: nan_mean(v.get(name, float("nan")) for v in values) for name in values[0]}

    return metrics


def curves(
    benchmark: Benchmark, judged: Sequence[JudgedComparison], rule: str, resampler: Resampler
) -> dict:
    """{kind: {k: {"value", "low", "high"}}} of the headline; empty for judges without critiques."""
    total = max((len(j.critiques) for j in judged), default=0)
    return {
        kind: {
            k: resampler.headline(mean_metrics(benchmark, blocks(judged, kind, k), rule)).as_json()
            for k in ks_up_to(total)
            if k > 1 or kind != META  # the meta reward model needs several to choose from
        }
        for kind in kinds(judged)
    }
