"""Votes, computed by hand, and the registry of voting rules."""

import dataclasses
import statistics

import pytest
from test_report_data import details

from grm_jax.judging import cli, codec, report_data, summary, votes
from grm_jax.judging.options import Options
from grm_jax.types import Comparison, Critique

RUN = {"model": "m@1", "template": "t@1", "k": 3, "temperature": 0.5, "seed": 0}


def critique(scores, order=None, **fields):
    """Returns a critique with scores in the prompt's order, moved to the caller's order."""
    n = len(scores) if scores else 2
    parsed = Critique(
        "text",
        scores=scores,
        order=tuple(range(n)),
        status="ok" if scores else "no_scores",
        **fields,
    )
    return parsed.in_caller_order(order or tuple(range(n)))


# SPCT's table 17: three samples, the last two with the responses swapped in the prompt.
PAPER = [critique((8, 8)), critique((9, 5), (1, 0)), critique((10, 7), (1, 0))]


def test_the_papers_example_sums_to_20_against_27():
    verdict = votes.verdict(PAPER, 2)
    assert verdict.scores == (8 + 5 + 7, 8 + 9 + 10) == (20, 27)
    assert verdict.best == 1 and not verdict.tie
    assert verdict.votes["mean"] == pytest.approx((20 / 3, 9))
    assert verdict.votes["majority"] == (0.5, 2.5)
    assert "expected" not in verdict.votes


def test_the_papers_example_guided_by_its_meta_scores():
    scored = [dataclasses.replace(c, meta_score=m) for c, m in zip(PAPER, (-15.78, 1.31, 1.67))]
    for k_meta, kept, scores in (
        (1, (2,), (7, 10)),
        (2, (1, 2), (12, 19)),
        (3, (0, 1, 2), (20, 27)),
        (None, (2,), (7, 10)),
    ):
        verdict = votes.verdict(scored, 2, guided=True, k_meta=k_meta)
        assert (verdict.kept, verdict.scores, verdict.best) == (kept, scores, 1)


def test_default_k_meta_is_half_of_k_counted_over_all_samples():
    critiques = [critique((1, 2), meta_score=float(i)) for i in range(5)] + [critique(None)]
    assert votes.kept_by_meta(critiques) == (2, 3, 4)
    assert votes.kept_by_meta([critique(None), critique((1, 2), meta_score=0.0)]) == (1,)


def test_equal_meta_scores_keep_the_earlier_sample():
    critiques = [critique((1, 2), meta_score=1.0) for _ in range(4)]
    assert votes.kept_by_meta(critiques) == (0, 1)


def test_unparsed_critiques_do_not_vote():
    verdict = votes.verdict([critique((7, 3)), critique(None), critique((6, 5))], 2)
    assert (verdict.scores, verdict.unparsed, verdict.best) == ((13, 8), 1, 0)
    assert verdict.votes["mean"] == (6.5, 4)


def test_without_parsed_critiques_there_is_no_tie_and_no_best():
    verdict = votes.verdict([critique(None), critique(None)], 2)
    assert (verdict.scores, verdict.best, verdict.unparsed, verdict.votes) == ((0, 0), None, 2, {})
    assert not verdict.tie


def test_a_tie_is_reported():
    verdict = votes.verdict([critique((7, 3)), critique((3, 7))], 2)
    assert verdict.tie and verdict.best is None


def test_thirds_do_not_break_a_tie():
    verdict = votes.verdict([critique((5, 5, 5))] * 3 + [critique((1, 1, 1))], 3, rule="majority")
    assert verdict.tie


def test_one_response_is_its_own_best():
    verdict = votes.verdict([critique((7,))], 1)
    assert (verdict.best, verdict.scores) == (0, (7,))


def test_expected_scores_are_averaged_and_decide_by_their_rule():
    critiques = [
        critique((7, 7), expected_scores=(6.5, 7.25)),
        critique((7, 7), (1, 0), expected_scores=(7.5, 6.25)),
    ]
    verdict = votes.verdict(critiques, 2, rule="expected")
    assert verdict.votes["sum"] == (14, 14)
    assert verdict.scores == (6.375, 7.375) and verdict.best == 1


def test_critiques_without_expected_scores_do_not_vote_by_that_rule():
    having = [
        critique((7, 6), expected_scores=(6.0, 6.5)),
        critique((7, 6), expected_scores=(7.0, 7.25)),
    ] * 15
    having.append(critique((7, 6), expected_scores=(6.5, 6.875)))
    verdict = votes.verdict([*having, critique((7.5, 4))], 2, rule="expected")
    assert verdict.scores == (6.5, 6.875) and verdict.best == 1 and len(verdict.critiques) == 32
    with pytest.raises(votes.NoVote, match="none of the critiques that vote has expected scores"):
        votes.verdict([critique((7.5, 4)), critique(None)], 2, rule="expected")


def test_refusals():
    with pytest.raises(ValueError, match="unknown vote 'meen': did you mean 'mean'?"):
        votes.verdict(PAPER, 2, rule="meen")
    with pytest.raises(ValueError, match="use one of sum, mean, expected, majority"):
        votes.verdict(PAPER, 2, rule="borda")
    with pytest.raises(ValueError, match="expected=True"):
        votes.verdict(PAPER, 2, rule="expected")
    with pytest.raises(ValueError, match="critique 0 has no meta score"):
        votes.verdict(PAPER, 2, guided=True)
    with pytest.raises(ValueError, match="k_meta = 0"):
        votes.kept_by_meta(PAPER, 0)


# ---------------------------------------------------------------- the registry


@pytest.fixture
def median():
    """One registration of a voting rule."""

    @votes.VOTES.register("median")
    @votes.vote_rule(label="median", description="median score", colour="#5a6b78")
    def median_scores(critiques, n):
        return tuple(statistics.median(c.scores[i] for c in critiques) for i in range(n))

    yield "median"
    del votes.VOTES["median"]


def test_one_registration_adds_a_rule_everywhere(median, tmp_path):
    assert votes.verdict(PAPER, 2, rule=median).scores == (7, 9)
    assert votes.verdict(PAPER, 2).votes["median"] == (7, 9)
    assert Options(vote=median).vote == median
    args = cli.parser().parse_args(["IN", "OUT", "--model", "M", "--vote", median])
    assert args.vote == median
    assert votes.curve_rules() == ["sum", "majority", "median", "expected"]
    comparison = Comparison("q", ("a", "b"))
    row = codec.judged_row(comparison, votes.verdict(PAPER, 2, rule=median), 1, RUN)
    (shown,) = details(report_data.page_data([report_data.Run([row], "")], ""))
    assert shown["sides"][0]["votes"]["median"] == [7, 9]
    assert summary.votes_by_k(row | {"vote": median})[2]["scores"] == [7, 9]


def test_a_report_has_rows_whose_first_critique_cannot_vote():
    first, second = (
        Critique("", scores=scores, status="ok", order=(0, 1), expected_scores=expected)
        for scores, expected in (((7.5, 4.0), None), ((7.0, 4.0), (7.1, 4.2)))
    )
    verdict = votes.verdict([first, second], 2, rule="expected")
    row = codec.judged_row(Comparison("q", ("a", "b"), label=0), verdict, 1, RUN)
    steps = summary.votes_by_k(row | {"vote": "expected"})
    assert [(step["scores"], step["best"]) for step in steps] == [([0, 0], None), ([7.1, 4.2], 0)]
    assert summary.accuracy_by_k([row | {"vote": "expected"}])[1]["credit"] == 1


def test_the_rules_and_their_curves_keep_their_order():
    assert list(votes.VOTES) == ["sum", "mean", "expected", "majority"]
    assert votes.curve_rules() == ["sum", "majority", "expected"]
