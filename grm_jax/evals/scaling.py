"""What more critiques buy: each metric over k, for each way of voting, from one run of K critiques.

The K critiques of a comparison are cut into K/k blocks, each block votes by itself, and the metric is averaged over the blocks
(at most BLOCKS): the values for small k use all the samples that are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import Benchmark, Metrics, nan_mean
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.judged import JudgedComparison, vote
from grm_jax.judging.votes import NoVote

BLOCKS = 8
DRAWS = 200
KINDS = {
    "sum": "sum of scores (the paper's voting)",
    "majority": "majority of first places",
    "expected": "expected scores",
    "meta": "sum over the half that the meta reward model keeps",
}


def steps(count: int) -> list[int]:
    """1, 2, 4, ... and `count` itself."""
    return sorted({2**i for i in range(count.bit_length()) if 2**i <= count} | {count})


def kinds(judged: Sequence[JudgedComparison]) -> list[str]:
    """The ways of voting that the critiques allow."""
    readable = [c for j in judged for c in j.critiques if c.status == "ok"]
    if not readable:
        return []
    found = ["sum"]
    if any(j.comparison.n > 1 for j in judged):
        found.append("majority")
    if any(c.expected_scores is not None for c in readable):
        found.append("expected")
    if all(c.meta_score is not None for c in readable):
        found.append("meta")
    return found


def revote(judged: JudgedComparison, kind: str, k: int, block: int) -> JudgedComparison:
    """The judgement of one block of k critiques."""
    part = judged.critiques[block * k : (block + 1) * k]
    if not part:
        return dataclasses.replace(judged, scores=None, views=())
    if kind == "meta":
        return vote(judged.comparison, part, "sum", guided=True, k_meta=max(1, k // 2))
    try:
        return vote(judged.comparison, part, kind)
    except NoVote:  # as a block that could not be read: none of its critiques has expected scores
        return dataclasses.replace(judged, scores=None, views=())


@dataclasses.dataclass
class Blocks:
    """Grades of the blocks of one (kind, k), whose metrics are the average over blocks."""

    benchmark: Benchmark
    grades: list

    def __call__(self, weights_I: np.ndarray) -> Metrics:
        metrics = [self.benchmark.aggregate(grades, weights_I) for grades in self.grades]
        return {name: nan_mean(m.get(name, float("nan")) for m in metrics) for name in metrics[0]}


def blocks(
    benchmark: Benchmark, judged: Sequence[JudgedComparison], kind: str, k: int, rule: str
) -> Blocks:
    """The blocks of one (kind, k)."""
    total = max(len(j.critiques) for j in judged)
    count = max(1, min(BLOCKS, total // k))
    return Blocks(
        benchmark,
        [benchmark.grade([revote(j, kind, k, b) for j in judged], rule) for b in range(count)],
    )


def curves(
    benchmark: Benchmark, judged: Sequence[JudgedComparison], rule: str, draws: int = DRAWS
) -> dict:
    """{kind: {k: {"value", "low", "high"}}} of the headline metric; empty for judges without critiques."""
    total = max((len(j.critiques) for j in judged), default=0)
    if not total:
        return {}
    resampler = Resampler(judged, draws)
    found: dict[str, dict] = {}
    for kind in kinds(judged):
        found[kind] = {}
        for k in steps(total):
            if kind == "meta" and k == 1:
                continue  # one critique leaves nothing to choose from
            metrics = blocks(benchmark, judged, kind, k, rule)
            headline = resampler.estimate(lambda w, m=metrics: dict([next(iter(m(w).items()))]))
            found[kind][k] = next(iter(headline.values())).as_json()
    return found


def gain(
    benchmark: Benchmark,
    judged: Sequence[JudgedComparison],
    baseline,
    rule: str,
    draws: int = DRAWS,
) -> dict:
    """The headline of a run minus that of a baseline (a function of weights), paired on the same draws."""
    grades = benchmark.grade(judged, rule)
    full = Resampler(judged, draws).difference(
        lambda w: dict([next(iter(baseline(w).items()))]),
        lambda w: dict([next(iter(benchmark.aggregate(grades, w).items()))]),
    )
    return next(iter(full.values()))
