"""The templates of the benchmarks: their worked examples parse, and no response is named best."""

from pathlib import Path

import pytest

from benchmarks import common
from grm_jax.text import parse, templates
from grm_jax.types import Comparison

SMALL_MODEL = Path(common.ROOT) / "benchmarks" / "judge_small_model.jinja"


def examples(n):
    """Returns the critiques that a prompt with n responses shows."""
    comparison = Comparison("Which?", tuple(f"answer {i}" for i in range(n)))
    (message,) = templates.render(SMALL_MODEL, comparison)
    shown = message["content"].split("[Query]")[1:]
    assert "answer 0" in shown.pop()  # the comparison itself comes last, without a critique
    return [block.split(f"[/Response {n}]")[1] for block in shown]


@pytest.mark.parametrize("n", [2, 4])
def test_worked_examples_parse_with_principles_analysis_and_different_scores(n):
    critiques = [parse(text, n) for text in examples(n)]
    assert {critique.status for critique in critiques} == {"ok"}
    for critique in critiques:
        assert [p.weight for p in critique.principles] and critique.analysis
        assert sum(p.weight for p in critique.principles) == 100
        assert len(set(critique.scores)) == n


def test_in_the_examples_of_pairs_each_place_is_better_equally_often():
    best = [critique.scores.index(max(critique.scores)) for critique in map(pair, examples(2))]
    assert sorted(best) == [0, 0, 1, 1]


def pair(text):
    return parse(text, 2)
