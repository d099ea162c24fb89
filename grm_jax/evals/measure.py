"""One benchmark's entry in a results file: metrics under every rule, content-blind baselines, curves, biases, gains, and what could not be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from grm_jax.evals import biases, content_blind, scaling
from grm_jax.evals.benchmark import Benchmark
from grm_jax.evals.bootstrap import DRAWS, Resampler, mcnemar
from grm_jax.evals.judged import JudgedComparison

SHOWN_BASELINES = ("longest", "first")


def measure(
    benchmark: Benchmark,
    judged: Sequence[JudgedComparison],
    total: int,
    judge: dict,
    draws: int = DRAWS,
    greedy: Sequence[JudgedComparison] | None = None,
    cost: dict | None = None,
) -> dict:
    """A JSON-ready entry.

    total: comparisons of the whole benchmark, where only a part was judged.  judge: what to call the judge, and its settings.
    greedy: the same comparisons at temperature 0.
    Curves and greedy value are under the headline's rule; "by_paper" has them under the paper's, where it is another.
    """
    rule, resampler = headline_rule(benchmark, judged), Resampler(judged, draws)
    metrics, grades = {}, {}
    for name in benchmark.rules:
        grades[name] = benchmark.grade(judged, name)
        estimates = resampler.estimate(lambda w, g=grades[name]: benchmark.aggregate(g, w))
        metrics[name] = {key: estimate.as_json() for key, estimate in estimates.items()}
    entry = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "judge": judge,
        "comparisons": len(judged),
        "of": total,
        "prompts": len({j.group for j in judged}),
        "rule": rule,
        "rules": benchmark.rules,
        "headline": next(iter(metrics[rule])),
        "metrics": metrics,
        "chance": benchmark.chance,
        "content_blind": content_blind_values(benchmark, judged, rule, draws),
        "parsing": reading(judged),
        "position": biases.position(judged),
        "length": biases.length(judged),
        "curves": scaling.curves(benchmark, judged, rule),
        "gains": gains(benchmark, judged, rule, greedy),
        "cost": cost or {},
        "notes": notes(benchmark, judged),
        "published": [
            {"model": p.model, "values": p.values, "source": p.source} for p in benchmark.published
        ],
    }
    if greedy is not None:
        entry["greedy"] = headline_of(benchmark, greedy, rule, resampler)
    if "paper" in benchmark.rules and rule != "paper":
        entry["by_paper"] = {"curves": scaling.curves(benchmark, judged, "paper")}
        if greedy is not None:
            entry["by_paper"]["greedy"] = headline_of(benchmark, greedy, "paper", resampler)
    return entry


def headline_of(
    benchmark: Benchmark, judged: Sequence[JudgedComparison], rule: str, resampler: Resampler
) -> dict:
    """The headline estimate of other judgements of the resampler's comparisons."""
    graded = benchmark.grade(judged, rule)
    return next(
        iter(resampler.estimate(lambda w: _first(benchmark.aggregate(graded, w))).values())
    ).as_json()


def notes(benchmark: Benchmark, judged: Sequence[JudgedComparison]) -> str:
    """The benchmark's notes, and what this run did otherwise than its protocol asks."""
    one = sum(j.scores is not None and len(j.views) == 1 for j in judged)
    if benchmark.both_orders and one:
        text = f"The protocol shows both orders; {one} comparisons were read in one order only (an even k shows both)."
        return f"{benchmark.notes} {text}".strip()
    return benchmark.notes


def headline_rule(benchmark: Benchmark, judged: Sequence[JudgedComparison]) -> str:
    """The benchmark's own rule; for judges without critiques its rule for single scores, where it has one."""
    generative = any(j.critiques for j in judged)
    for name in () if generative else ("scalar", "single"):
        if name in benchmark.rules and not any(len(j.views) > 1 for j in judged):
            return name
    return next(iter(benchmark.rules))


def _first(metrics: dict) -> dict:
    return dict([next(iter(metrics.items()))])


def content_blind_values(
    benchmark: Benchmark, judged: Sequence[JudgedComparison], rule: str, draws: int
) -> dict:
    """The headline of the length rule and of the first-is-better rule on the same comparisons."""
    found = {}
    for name in SHOWN_BASELINES:
        rows = [content_blind.judge(name, j.comparison) for j in judged]
        grades = benchmark.grade(rows, rule)
        metrics = Resampler(rows, min(draws, 200)).estimate(
            lambda w, g=grades: _first(benchmark.aggregate(g, w))
        )
        found[name] = next(iter(metrics.values())).as_json()
    return found


def reading(judged: Sequence[JudgedComparison]) -> dict:
    """How much could be read: critiques by status, comparisons without any score, ties, tokens."""
    critiques = [c for j in judged for c in j.critiques]
    scored = [j for j in judged if j.scores is not None]
    several = [j for j in scored if j.comparison.n > 1]
    return {
        "critiques": len(critiques),
        "statuses": dict(Counter(c.status for c in critiques)),
        "parsed": sum(c.status == "ok" for c in critiques) / len(critiques) if critiques else None,
        "unparsed": len(judged) - len(scored),
        "errors": dict(Counter(j.error for j in judged if j.error).most_common(5)),
        "ties": sum(scores.count(max(scores)) > 1 for scores in (j.scores for j in several))
        / len(several)
        if several
        else None,
        "tokens_per_critique": sum(c.tokens for c in critiques) / len(critiques)
        if critiques
        else None,
    }


def gains(
    benchmark: Benchmark,
    judged: Sequence[JudgedComparison],
    rule: str,
    greedy: Sequence[JudgedComparison] | None,
) -> dict:
    """The headline against greedy decoding and against one sample (the average over the samples), paired."""
    found = {}
    if any(len(j.critiques) > 1 for j in judged):
        found["voting@1"] = scaling.gain(
            benchmark, judged, scaling.blocks(benchmark, judged, "sum", 1, rule), rule
        )
    if greedy is not None:
        grades = benchmark.grade(greedy, rule)
        found["greedy"] = scaling.gain(
            benchmark, judged, lambda w: benchmark.aggregate(grades, w), rule
        )
    return found


def compare(
    benchmark: Benchmark,
    ours: Sequence[JudgedComparison],
    theirs: Sequence[JudgedComparison],
    draws: int = DRAWS,
) -> dict:
    """Ours minus theirs under every rule of ours, paired by comparison; McNemar's exact test where each comparison is right or wrong."""
    rule = headline_rule(benchmark, ours)
    grades = benchmark.grade(theirs, rule), benchmark.grade(ours, rule)
    difference = Resampler(ours, draws).difference(
        *(lambda w, g=g: benchmark.aggregate(g, w) for g in grades)
    )
    entry: dict = {
        "rule": rule,
        "metrics": {n: d for n, d in difference.items() if not math.isnan(d["value"] or 0.0)},
    }
    values = [g.get("value") for g in grades]
    if values[0] is not None and len(values[0]) == len(values[1]) == len(ours):
        entry["mcnemar"] = mcnemar(*values)
    return entry
