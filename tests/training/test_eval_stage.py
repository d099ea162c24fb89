"""Tests stage `eval`: a stopped stage resumes, and failed comparisons count as unparsed."""

import dataclasses

import pytest

from grm_jax.judging import votes
from grm_jax.judging.judge import Unjudged
from grm_jax.judging.options import Options
from grm_jax.text import rendering
from grm_jax.training import eval_stage
from grm_jax.types import Comparison, Critique, Principle


@dataclasses.dataclass(init=False)
class FakeJudge:
    """Prefers the first response; raises after `stops_at` chunks; fails the ids in `failing`."""

    family, single, meta_rm, name, expected = "grm", None, None, "toy@1", None
    tokenizer, is_scalar = None, False
    settings: dict

    def __init__(self, stops_at=None, failing=()):
        self.stops_at, self.failing, self.chunks, self.settings = stops_at, failing, [], {}

    def templates(self):
        return [rendering.load("grm/judge")]

    def template_for(self, comparison, options):
        return rendering.load(rendering.choose(self.family, comparison))

    def stream(self, comparisons, options, chunk):
        for start in range(0, len(comparisons), chunk):
            batch = comparisons[start : start + chunk]
            if len(self.chunks) == self.stops_at:
                raise KeyboardInterrupt
            self.chunks.append(len(batch))
            for i in reversed(range(len(batch))):
                critiques = (
                    Critique(
                        batch[i].query,
                        scores=(8.0, 3.0),
                        order=(1, 0),
                        status="ok",
                        meta_score=0.1,
                        expected_scores=(1 / 3, 2.0),
                        principles=(Principle("Accuracy", 60.0, "is it right"),),
                    ),
                    Critique("nothing", order=(0, 1), sample=1),
                )
                verdict = votes.verdict(critiques, 2, batch[i].id)
                yield start + i, Unjudged("too long") if batch[i].id in self.failing else verdict


@pytest.fixture
def items():
    return [Comparison(f"q{i}", ("a", "b"), label=0, id=str(i)) for i in range(150)]


def test_a_stopped_evaluation_resumes_with_equal_results(items, tmp_path):
    judge = FakeJudge()
    whole = eval_stage.judge_all(judge, items, Options(k=2), tmp_path / "whole")
    assert judge.chunks == [64, 64, 22] and [j.comparison.id for j in whole] == [
        c.id for c in items
    ]
    assert whole[0].critiques[0].expected_scores == (1 / 3, 2.0)
    with pytest.raises(KeyboardInterrupt):
        eval_stage.judge_all(FakeJudge(stops_at=2), items, Options(k=2), tmp_path / "stopped")
    judge = FakeJudge()
    assert eval_stage.judge_all(judge, items, Options(k=2), tmp_path / "stopped") == whole
    assert judge.chunks == [22]
    # With other options, all comparisons are judged again.
    greedy = FakeJudge()
    eval_stage.judge_all(greedy, items, Options(k=2, temperature=0.0), tmp_path / "stopped")
    assert greedy.chunks == [64, 64, 22]


def test_failed_comparisons_are_unparsed_and_an_error_if_all_fail(items, tmp_path):
    items = items[:3]
    judged = eval_stage.judge_all(FakeJudge(failing={"1"}), items, Options(k=2), tmp_path / "one")
    assert [j.error for j in judged] == [None, "too long", None]
    assert [j.scores for j in judged] == [(8.0, 3.0), None, (8.0, 3.0)]
    for _ in range(2):  # a second start fails in the same way
        with pytest.raises(
            ValueError, match="none of 3 comparisons was judged; the last failed with: too long"
        ):
            judge = FakeJudge(failing={"0", "1", "2"})
            eval_stage.judge_all(judge, items, Options(k=2), tmp_path / "all")
