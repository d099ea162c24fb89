"""Cells of the models' table: credits, blocks of votes, intervals and differences."""

import numpy as np
import pytest

from grm_jax.evals import cells, content_blind, findings
from grm_jax.evals.benchmark import credit, is_tie
from grm_jax.evals.bootstrap import Resampler, prompt_key
from grm_jax.evals.cells import Cell, cell
from grm_jax.evals.judged import JudgedComparison, vote
from grm_jax.types import Comparison, Critique


def comparison(n=2, best=0, responses=None):
    return Comparison("q", responses or tuple("abcdef"[:n]), label=best, id="x")


def judged(scores, meta=None, expected=None):
    """A comparison of two responses, the first of them better, judged by critiques of `scores`."""
    unset = [None] * len(scores)
    critiques = [
        Critique(
            "t",
            scores=s,
            status="ok" if s else "no_scores",
            order=(0, 1),
            meta_score=m,
            expected_scores=e,
        )
        for s, m, e in zip(scores, meta or unset, expected or unset)
    ]
    return vote(comparison(), critiques)


def measure(one: JudgedComparison, method: str, k: int) -> Cell:
    return cell("m", method, k, [one], Resampler(["q"]))


@pytest.mark.parametrize(
    "n, best, scores, expected, tie",
    [
        (2, 0, (8, 3), 1.0, False),
        (2, 0, (3, 8), 0.0, False),
        (2, 0, (8, 8), 0.5, True),
        (3, 0, (2, 8, 8), 0.0, True),
        (3, 0, (8, 8, 8), pytest.approx(1 / 3), True),
        (4, 0, None, 0.25, False),
    ],
)
def test_credit_is_the_expected_accuracy_of_a_random_choice_among_ties(
    n, best, scores, expected, tie
):
    one = JudgedComparison(comparison(n, best), scores)
    assert (credit(one), is_tie(one)) == (expected, tie)


def test_samples_are_cut_into_blocks_of_k():
    # Alone: right, wrong, right, right. Sums of pairs: (9, 9) ties, (16, 6) is right.
    one = judged([(8, 1), (1, 8), (8, 3), (8, 3)])
    assert measure(one, "Voting", 1).accuracy == 0.75
    pairs = measure(one, "Voting", 2)
    assert (pairs.accuracy, pairs.tie_rate) == (0.75, 0.5)
    assert measure(one, "Voting", 4).accuracy == 1.0


def test_every_block_counts():
    """The last of 32 single samples is right, all others are wrong."""
    one = judged([(1, 8)] * 31 + [(8, 1)])
    assert measure(one, "Voting", 1).accuracy == 1 / 32


def test_unparsed_critiques_do_not_vote_and_lower_the_parse_rate():
    one = judged([None, (8, 3), None, None])
    single, four = measure(one, "Voting", 1), measure(one, "Voting", 4)
    assert four.accuracy == 1.0 and four.parse_rate == 0.25
    assert single.accuracy == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)
    assert single.tie_rate == 0.75  # a vote without any parsed critique has no winner


def test_a_failed_comparison_counts_as_unparsed():
    failed = JudgedComparison(comparison(), None, error="too long")
    right = judged([(8, 3), (8, 3)])
    measured = cell("m", "Voting", 2, [right, failed, right], Resampler(["a", "b", "c"]))
    assert measured.accuracy == pytest.approx(2.5 / 3)
    assert measured.parse_rate == pytest.approx(2 / 3)
    assert measured.credits == (1.0, 0.5, 1.0)


def test_the_meta_rm_selects_half_of_each_block():
    one = judged([(1, 9), (8, 3), (1, 9), (7, 3)], meta=[-2.0, 3.0, -1.0, 1.0])
    assert measure(one, "Voting", 4).accuracy == 0.0
    assert measure(one, "MetaRM", 4).accuracy == 1.0


def test_expected_scores_vote_where_critiques_have_them():
    one = judged([(5, 5), (5, 5)], expected=[(5.5, 5.0), None])
    assert measure(one, "Expected", 2).accuracy == 1.0
    assert measure(one, "Expected", 1).accuracy == 0.75  # the second block cannot vote: 1/2


def test_content_blind_baselines():
    items = [comparison(2, 0, ("short", "a longer one")), comparison(2, 1, ("long enough", "tiny"))]
    resampler = Resampler(["a", "b"])
    accuracy = {
        name: cell(name, "Rule", 1, [content_blind.judge(name, c) for c in items], resampler)
        for name in ("first", "longest")
    }
    assert {name: c.accuracy for name, c in accuracy.items()} == {"first": 0.5, "longest": 0.0}
    chance = cell("chance", "Rule", 1, [JudgedComparison(c, (0.0, 0.0)) for c in items], resampler)
    assert (chance.accuracy, chance.low, chance.high, chance.tie_rate) == (0.5, None, None, 1.0)
    assert chance.parse_rate == 1.0 and chance.method_at_k == "Rule"


def test_comparisons_of_one_prompt_are_resampled_together():
    """Forty copies of ten prompts are ten observations, not four hundred."""
    few = np.random.default_rng(1).random(10) < 0.6
    alone, copies = few.astype(float), np.repeat(few.astype(float), 40)
    prompts = [str(i) for i in range(10) for _ in range(40)]

    def width(estimate):
        return estimate.high - estimate.low

    together = Resampler(prompts).mean(copies)
    single = Resampler([str(i) for i in range(10)]).mean(alone)
    assert (together.low, together.high) == (single.low, single.high)
    apart = Resampler([str(i) for i in range(400)]).mean(copies)
    assert width(apart) < 0.3 * width(single)
    items = [
        Comparison(f"q{i}", (f"a{j}", "b"), label=0, id=f"{i}/{j}")
        for i in range(3)
        for j in range(2)
    ]
    assert len(set(map(prompt_key, items))) == 3


def test_intervals_contain_the_mean_and_pairing_narrows_them():
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.8).astype(float)
    b = np.where(rng.random(400) < 0.1, 0.0, a)
    resampler = Resampler([str(i) for i in range(400)])
    estimate = resampler.mean(a)
    assert estimate.low < a.mean() < estimate.high and 0.06 < estimate.high - estimate.low < 0.1
    first, second = (
        Cell("m", "Voting", 1, 0.0, 0.0, 0.0, 0.0, 1.0, tuple(credits)) for credits in (a, b)
    )
    paired = cells.difference(first, second, resampler)
    assert 0 < paired["low"] < paired["mean"] < paired["high"]
    assert paired["high"] - paired["low"] < 0.07
    assert findings.gain_text(paired).startswith(f"{100 * paired['mean']:+.1f} points")


def test_the_grid_has_a_row_per_method_and_a_column_per_k():
    values = [("chance", "Rule", 1), ("rl", "Greedy", 1), ("rl", "Voting", 1), ("rl", "Voting", 8)]
    made = [Cell(*value, 0.5, 0.452, 0.55, 0.0, 1.0) for value in values]
    made.append(Cell("rl", "Voting", 2, 0.75, None, None, 0.0, 1.0))
    assert cells.grid(made) == (
        ["", "k = 1", "k = 2", "k = 8"],
        [
            ["chance", "50.0±4.9", "", ""],
            ["rl Greedy", "50.0±4.9", "", ""],
            ["rl Voting", "50.0±4.9", "75.0", "50.0±4.9"],
        ],
    )
