"""What an experiment shows, in sentences: differences, intervals, and what is not established."""

import pytest

from grm_jax.evals import findings
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.cells import Cell

N = 60
RESAMPLER = Resampler([str(i) for i in range(N)], draws=200)


def cell(model, method, k, right, of=N):
    """A cell with `right` of N comparisons right."""
    credits = [1.0] * right + [0.0] * (N - right)
    return Cell(model, method, k, right / N, None, None, 0.0, 1.0, tuple(credits))


def chance():
    return Cell("chance", "Rule", 1, 0.5, None, None, 1.0, 1.0, (0.5,) * N)


def sentences(*cells):
    return findings.sentences(cells, findings.differences(cells, RESAMPLER))


def test_three_sentences_say_what_each_stage_added():
    first, second, third = sentences(
        chance(),
        *(cell("rft", "Voting", k, right) for k, right in ((1, 36), (8, 45), (32, 46))),
        *(cell("rl", "Voting", k, right) for k, right in ((1, 48), (8, 46), (32, 50))),
        cell("rl", "MetaRM", 8, 46),
    )
    assert first.startswith("RFT is right on 75.0% of 60 held-out comparisons with 8 votes: +25.0")
    assert first.endswith("over chance.") and "not established" not in first
    assert second.startswith("RL adds to RFT: +20.0 points (95% CI +")
    assert "with one vote, +1.7 points (95% CI +0.0 to +" in second
    assert second.count("not established") == 1  # the interval of +1.7 includes 0
    assert third.startswith("8 votes add -3.3 points (95% CI -")
    assert " to one vote; the meta reward model adds +0.0 points (95% CI " in third


def test_sentences_of_missing_stages_are_left_out():
    assert sentences(chance(), cell("base", "Greedy", 1, 30)) == []
    (only,) = sentences(chance(), cell("rl", "Voting", 1, 45))
    assert only.startswith("RL is right on 75.0% of 60 held-out comparisons with one vote: +25.0")
    first, votes = sentences(chance(), cell("rft", "Voting", 1, 40), cell("rft", "Voting", 4, 50))
    assert "with 4 votes" in first and votes.startswith("4 votes add +16.7 points")


def test_a_base_model_that_votes_is_compared_with():
    base, rft = (cell(name, "Voting", 8, right) for name, right in (("base", 40), ("rft", 50)))
    (first,) = sentences(chance(), base, rft)
    assert "over chance, +16.7 points (95% CI +" in first and first.endswith("over the base model.")


@pytest.mark.parametrize("n, wrong", [(1, 0), (29, 0), (29, 5)])
def test_few_comparisons_establish_nothing(n, wrong):
    resampler = Resampler([str(i) for i in range(n)], draws=200)
    cells = [
        Cell("chance", "Rule", 1, 0.5, None, None, 1.0, 1.0, (0.5,) * n),
        Cell("rft", "Voting", 1, 1.0, None, None, 0.0, 1.0, (0.0,) * wrong + (1.0,) * (n - wrong)),
    ]
    first, few = findings.sentences(cells, findings.differences(cells, resampler))
    assert ("95% CI" in first) == (wrong > 0) and "too few to tell) over chance" in first
    noun = "comparison is" if n == 1 else "comparisons are"
    assert few == f"{n} held-out {noun} too few to tell: hold out at least 30."
