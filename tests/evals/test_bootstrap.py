"""The bootstrap of few prompts: no interval and no p-value from draws that cannot differ."""

import pytest

from grm_jax.evals import tables
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.measure import compare, measure
from grm_jax.evals.page import page
from grm_jax.judging import pairs
from grm_jax.types import Comparison

UNKNOWN = {"value": 1.0, "low": None, "high": None}
MANY = [str(i) for i in range(pairs.FEW)]


def difference(prompts, before, after, subsets=None):
    means = [lambda weights, value=value: {"mean": value} for value in (before, after)]
    return Resampler(prompts, subsets, draws=50).difference(*means)["mean"]


@pytest.mark.parametrize("prompts, subsets", [(MANY[:1], None), (MANY[:-1], None), (MANY, MANY)])
def test_draws_that_cannot_differ_give_neither_interval_nor_p(prompts, subsets):
    assert difference(prompts, 0.0, 1.0, subsets) == UNKNOWN | {"p": None}
    assert difference(prompts, 1.0, 1.0, subsets)["p"] == 1.0
    assert Resampler(prompts, subsets).mean([1.0] * len(prompts)).as_json() == UNKNOWN


def test_many_equal_prompts_and_few_unequal_ones_have_an_interval():
    assert difference(MANY, 0.0, 1.0) == {"value": 1.0, "low": 1.0, "high": 1.0, "p": 2 / 51}
    assert Resampler(["a", "b", "c"]).mean([0.0, 1.0, 1.0]).low == 0.0


def test_two_outputs_of_few_prompts_have_no_interval():
    assert pairs.difference([1.0, 1.0], ["a", "b"]) == UNKNOWN
    assert pairs.difference([1.0] * len(MANY), MANY)["low"] == 1.0


def test_the_reports_say_that_the_comparisons_are_too_few():
    comparisons = [Comparison("q", ("a", "b"), None, 0, str(i)) for i in range(3)]
    right, wrong = (
        [JudgedComparison(c, scores) for c in comparisons] for scores in ((1.0, 0.0), (0.0, 1.0))
    )
    benchmark = BENCHMARKS["humanevalpack"]
    entry = measure(benchmark, right, 3, {"kind": "scores", "name": "m"}, 50)
    entry["against"] = {"run": "other", **compare(benchmark, right, wrong, 50)}
    assert "+100.0 points, p = – (paired bootstrap); 3 gained" in tables.against_line(entry)
    for text in (page([entry]), tables.markdown([entry])):
        assert "n = 3: too few for an interval" in text
        assert "100.0–100.0" not in text
    # A file of an earlier version has intervals of width 0.
    entry["smallest_subset"] = 1
    entry["metrics"][entry["rule"]][entry["headline"]] = {"value": 1.0, "low": 1.0, "high": 1.0}
    for text in (page([entry]), tables.markdown([entry])):
        assert "100.0–100.0" not in text
    # More comparisons, each the only one of its subset.
    entry["comparisons"] = 40
    assert tables.few_line(entry)[0].startswith("n = 40: the interval is too narrow")
    entry["metrics"][entry["rule"]][entry["headline"]] = {"value": 1.0, "low": None, "high": None}
    assert tables.few_line(entry)[0].startswith("n = 40: no interval, because")
