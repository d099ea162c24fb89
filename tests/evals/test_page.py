"""The page of `grm eval`: why comparisons were not judged, and names of runs in figures."""

from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.measure import measure
from grm_jax.evals.page import page
from grm_jax.types import Comparison

LABELLED = Comparison("q", ("a", "b"), None, 0, "1")


def test_the_page_counts_what_was_not_judged():
    reasons = [f"the prompt of {5001 + i:,} tokens is too long" for i in range(7)]
    reasons += [f"{kind} is missing" for kind in "abcdefg"]
    judged = [JudgedComparison(LABELLED, (1.0, 0.0))]
    judged += [JudgedComparison(LABELLED, None, error=reason) for reason in reasons]
    judge = {"kind": "scores", "name": "m"}
    entry = measure(BENCHMARKS["humanevalpack"], judged, len(judged), judge, 20)
    text = page([entry])
    for line in ("7: the prompt of 5,001 tokens", "1: d is missing", "and 3 others"):
        assert f"<dt>Not judged</dt><dd>{line}" in text
    assert "<dt>Without any score</dt><dd>14 comparisons</dd>" in text
