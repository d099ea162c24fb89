"""Measures a judge on one benchmark: the entry of results.json.

An entry holds the metrics under every rule with intervals, content-blind baselines, curves over k,
gains, position and length biases, and parsing statistics.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from grm_jax.evals import biases, content_blind, scaling
from grm_jax.evals.benchmark import Benchmark, is_tie
from grm_jax.evals.bootstrap import DRAWS, MetricFunction, Resampler, mcnemar
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging.summary import error_kinds, mean
from grm_jax.types import FAILED

SHOWN_BASELINES = ("longest", "first")
# Resamples of intervals that cost many metrics each, or that are only drawn.
CURVE_DRAWS, BIAS_DRAWS = 200, 500


def measure(
    benchmark: Benchmark,
    judged: Sequence[JudgedComparison],
    total: int,
    judge: dict,
    draws: int = DRAWS,
    greedy: Sequence[JudgedComparison] | None = None,
    cost: dict | None = None,
) -> dict:
    """Measures judged comparisons of one benchmark.

    Args:
      total: comparisons in the whole benchmark, of which `judged` may be a subset.
      judge: the judge's kind, name and settings.
      draws: resamples of the metrics' intervals. Curves, gains and content-blind baselines use
        200, biases 500.
      greedy: the same comparisons judged at temperature 0.
      cost: seconds, tokens, critiques and parameters, as far as known.

    Returns:
      A JSON-ready entry. Curves and the greedy value are under the headline's rule; "by_paper" has
      them under the paper's rule if that is another one.
    """
    rule, resampler = headline_rule(benchmark, judged), Resampler.of(judged, draws)
    curve_resampler = Resampler.of(judged, CURVE_DRAWS)
    metrics = {
        name: {
            metric: estimate.as_json()
            for metric, estimate in resampler.estimate(metrics_of(benchmark, judged, name)).items()
        }
        for name in benchmark.rules
    }
    blind = {
        name: [content_blind.judge(name, j.comparison) for j in judged] for name in SHOWN_BASELINES
    }
    entry = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "judge": judge,
        "comparisons": len(judged),
        "of": total,
        "prompts": resampler.num_prompts,
        "smallest_subset": min(map(len, resampler.strata), default=0),
        "rule": rule,
        "rules": benchmark.rules,
        "headline": next(iter(metrics[rule])),
        "metrics": metrics,
        "chance": benchmark.chance,
        "content_blind": {
            name: curve_resampler.headline(metrics_of(benchmark, scores, rule)).as_json()
            for name, scores in blind.items()
        },
        "parsing": parsing(judged),
        "position": biases.position(judged, BIAS_DRAWS),
        "length": biases.length(judged, BIAS_DRAWS),
        "gains": gains(benchmark, judged, rule, greedy, curve_resampler),
        "cost": cost or {},
        "notes": notes(benchmark, judged),
        "published": [
            {"model": p.model, "values": p.values, "source": p.source} for p in benchmark.published
        ],
    }
    shown_rules = {rule, "paper"} & set(benchmark.rules)
    for shown in sorted(shown_rules, key=lambda name: name != rule):
        measured = {"curves": scaling.curves(benchmark, judged, shown, curve_resampler)}
        if greedy is not None:
            measured["greedy"] = resampler.headline(metrics_of(benchmark, greedy, shown)).as_json()
        entry |= measured if shown == rule else {"by_paper": measured}
    return entry


def metrics_of(
    benchmark: Benchmark, judged: Sequence[JudgedComparison], rule: str
) -> MetricFunction:
    """The benchmark's metrics of judged comparisons as a function of their weights."""
    grades = benchmark.grade(judged, rule)
    return lambda weights_I: benchmark.aggregate(grades, weights_I)


def headline_rule(benchmark: Benchmark, judged: Sequence[JudgedComparison]) -> str:
    """The benchmark's own rule; for judges without critiques its rule for scalars if it has one."""
    generative = any(j.critiques for j in judged)
    for name in () if generative else ("scalar", "single"):
        if name in benchmark.rules and not any(len(j.views) > 1 for j in judged):
            return name
    return next(iter(benchmark.rules))


def parsing(judged: Sequence[JudgedComparison]) -> dict:
    """Critiques by status, comparisons without any score, kinds of errors, ties, tokens."""
    critiques = [c for j in judged for c in j.critiques]
    errors = error_kinds({"reason": j.error} for j in judged if j.error)
    several = [j for j in judged if j.scores is not None and j.comparison.n > 1]
    return {
        "critiques": len(critiques),
        "statuses": dict(Counter(c.status for c in critiques)),
        "parsed": mean(c.status == "ok" for c in critiques if c.status != FAILED),
        "unparsed": sum(j.scores is None for j in judged),
        "errors": {first["reason"]: count for first, count in errors},
        "ties": mean(map(is_tie, several)),
        "tokens_per_critique": mean(c.tokens for c in critiques),
    }


def gains(
    benchmark: Benchmark,
    judged: Sequence[JudgedComparison],
    rule: str,
    greedy: Sequence[JudgedComparison] | None,
    resampler: Resampler,
) -> dict:
    """The headline minus that of greedy decoding and of single samples, paired."""
    baselines = {}
    if any(len(j.critiques) > 1 for j in judged):
        single = scaling.blocks(judged, "sum", 1)
        baselines["voting@1"] = scaling.mean_metrics(benchmark, single, rule)
    if greedy is not None:
        baselines["greedy"] = metrics_of(benchmark, greedy, rule)
    voted = metrics_of(benchmark, judged, rule)
    return {
        name: next(iter(resampler.difference(baseline, voted).values()))
        for name, baseline in baselines.items()
    }


def notes(benchmark: Benchmark, judged: Sequence[JudgedComparison]) -> str:
    """The benchmark's notes, and where this run departs from its protocol."""
    single = sum(j.scores is not None and len(j.views) == 1 for j in judged)
    if not benchmark.both_orders or not single:
        return benchmark.notes
    text = (
        f"The protocol shows both orders; {single} comparisons were judged in one order only (an "
        "even k shows both)."
    )
    return f"{benchmark.notes} {text}".strip()


def compare(
    benchmark: Benchmark,
    ours: Sequence[JudgedComparison],
    theirs: Sequence[JudgedComparison],
    draws: int = DRAWS,
) -> dict:
    """Tests ours minus theirs, paired by comparison, under the headline rule of ours.

    Adds McNemar's exact test where the benchmark grades each comparison by one value.
    """
    rule = headline_rule(benchmark, ours)
    difference = Resampler.of(ours, draws).difference(
        metrics_of(benchmark, theirs, rule), metrics_of(benchmark, ours, rule)
    )
    entry: dict = {
        "rule": rule,
        "metrics": {n: d for n, d in difference.items() if not math.isnan(d["value"] or 0.0)},
    }
    values = [np.asarray(benchmark.grade(j, rule).get("value", ())) for j in (theirs, ours)]
    if len(values[0]) == len(values[1]) == len(ours):
        entry["mcnemar"] = mcnemar(*values)
    return entry
