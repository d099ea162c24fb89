"""Votes, credits and intervals of the evaluation, on critiques made by hand."""

import numpy as np
import pytest

from grm_jax.judging import votes
from grm_jax.judging.judge import Unjudged
from grm_jax.judging.options import Options
from grm_jax.training import evaluate, meta_rm, report
from grm_jax.types import Comparison, Critique, Principle, Verdict
from studies import spct as study


def comparison(n=2, best=0, responses=None):
    return Comparison("q", responses or tuple("abcdef"[:n]), label=best, id="x")


def verdict(scores, meta=None, n=2):
    metas = meta or [None] * len(scores)
    critiques = tuple(
        Critique(
            "t", scores=s, status="ok" if s else "no_scores", order=tuple(range(n)), meta_score=m
        )
        for s, m in zip(scores, metas)
    )
    return Verdict("x", (0.0,) * n, None, critiques, sum(s is None for s in scores))


def test_comparisons_of_one_prompt_are_drawn_together():
    """Forty copies of ten prompts are ten observations, not four hundred."""
    few = np.random.default_rng(1).random(10) < 0.6
    alone, copies = few.astype(float), np.repeat(few.astype(float), 40)
    prompts = [str(i) for i in range(10) for _ in range(40)]
    width = lambda bounds: bounds[1] - bounds[0]  # noqa: E731
    assert evaluate.interval(copies, prompts=prompts) == evaluate.interval(alone)
    assert width(evaluate.interval(copies)) < 0.3 * width(evaluate.interval(alone))
    items = [
        Comparison(f"q{i}", (f"a{j}", "b"), label=0, id=f"{i}/{j}")
        for i in range(3)
        for j in range(2)
    ]
    assert len(set(evaluate.prompts_of(items))) == 3


def test_credit_shares_ties_as_a_random_choice_would():
    assert evaluate.credit(comparison(), (8, 3)) == (1.0, False)
    assert evaluate.credit(comparison(), (3, 8)) == (0.0, False)
    assert evaluate.credit(comparison(), (8, 8)) == (0.5, True)
    assert evaluate.credit(comparison(3), (2, 8, 8)) == (0.0, True)
    assert evaluate.credit(comparison(3), (8, 8, 8)) == (pytest.approx(1 / 3), True)
    assert evaluate.credit(comparison(4), None) == (0.25, True)


def test_voting_cuts_the_samples_into_blocks():
    # Sums of pairs: (9, 9) ties, (16, 6) right. Alone: right, wrong, right, right.
    judged = verdict([(8, 1), (1, 8), (8, 3), (8, 3)])
    cell = lambda k: evaluate.cell("m", "Voting", [comparison()], [judged], k, "sum", False)  # noqa: E731
    assert cell(1).accuracy == 0.75
    assert (cell(2).accuracy, cell(2).tie_rate) == (0.75, 0.5)
    assert cell(4).accuracy == 1.0


def test_unread_critiques_do_not_vote_and_are_counted():
    judged = verdict([None, (8, 3), None, None])
    cells = [
        evaluate.cell("m", "Voting", [comparison()], [judged], k, "sum", False) for k in (1, 4)
    ]
    assert cells[1].accuracy == 1.0 and cells[1].parse_rate == 0.25
    assert cells[0].accuracy == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)


def test_the_meta_rm_keeps_the_better_half_of_each_block():
    judged = verdict([(1, 9), (8, 3), (1, 9), (7, 3)], meta=[-2.0, 3.0, -1.0, 1.0])
    plain = evaluate.cell("m", "Voting", [comparison()], [judged], 4, "sum", False)
    guided = evaluate.cell("m", "MetaRM", [comparison()], [judged], 4, "sum", True)
    assert (plain.accuracy, guided.accuracy) == (0.0, 1.0)


def test_an_interrupted_evaluation_goes_on_with_equal_verdicts(tmp_path):
    items = [Comparison(f"q{i}", ("a", "b"), label=0, id=str(i)) for i in range(10)]
    asked = []

    class Judge:
        family, meta_rm = "grm", None

        def __init__(self, fails_at):
            self.fails_at = fails_at

        def stream(self, part, options, chunk):
            if len(asked) == self.fails_at:
                raise KeyboardInterrupt
            asked.append(len(part))
            for i in reversed(range(len(part))):
                principles = (Principle("Accuracy", 60.0, "is it right"),)
                fields = dict(
                    order=(1, 0),
                    status="ok",
                    meta_score=0.1,
                    expected_scores=(1 / 3, 2.0),
                    principles=principles,
                )
                critiques = (
                    Critique(part[i].query, scores=(8.0, 3.0), **fields),
                    Critique("nothing"),
                )
                yield i, votes.verdict(critiques, 2, part[i].id)

    whole = evaluate.judged(Judge(None), items, Options(k=2), chunk=4)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate.judged(Judge(2), items, Options(k=2), tmp_path, chunk=4)
    assert evaluate.judged(Judge(None), items, Options(k=2), tmp_path, chunk=4) == whole
    assert asked == [4, 4, 2]
    evaluate.judged(
        Judge(None), items, Options(k=2, temperature=0.0), tmp_path, chunk=4
    )  # other options: all anew
    assert asked[3:] == [4, 4, 2]


def test_one_that_cannot_be_judged_counts_as_unread(tmp_path):
    items = [Comparison(f"q{i}", ("a", "b"), label=0, id=str(i)) for i in range(3)]

    class Judge:
        family, meta_rm = "grm", None

        def __init__(self, bad):
            self.bad = bad

        def stream(self, part, options, chunk):
            for i in range(len(part)):
                right = votes.verdict(
                    [Critique("t", scores=(8.0, 3.0), order=(0, 1), status="ok")] * 2, 2, part[i].id
                )
                yield i, Unjudged("too long") if i in self.bad else right

    found = evaluate.judged(Judge({1}), items, Options(k=2))
    assert [v.unparsed for v in found] == [0, 2, 0]
    assert evaluate.cell("m", "Voting", items, found, 2, "sum", False).accuracy == pytest.approx(
        2.5 / 3
    )
    for _ in range(2):  # started again it says so again: what could not be judged is not kept
        with pytest.raises(
            ValueError, match="none of 3 comparisons could be judged, the last because: too long"
        ):
            evaluate.judged(Judge({0, 1, 2}), items, Options(k=2), tmp_path)


def test_intervals_hold_the_mean_and_pairing_narrows_them():
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.8).astype(float)
    b = np.where(rng.random(400) < 0.1, 0.0, a)
    low, high = evaluate.interval(a)
    assert low < a.mean() < high and 0.06 < high - low < 0.1
    mean, low, high = evaluate.difference(a, b)
    assert 0 < low < mean < high and high - low < 0.07


def test_floors_read_nothing():
    items = [comparison(2, 0, ("short", "a longer one")), comparison(2, 1, ("long enough", "tiny"))]
    found = {cell.model: cell.accuracy for cell in evaluate.floors(items)}
    assert found == {"chance": 0.5, "first response": 0.5, "longest response": 0.0}


def test_meta_quality_of_a_calibrated_and_of_a_useless_score():
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, 4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-scores))).astype(float)
    whose = [f"c{i // 4}" for i in range(4000)]
    good = meta_rm.quality(scores, labels, whose)
    assert good["auc"] > 0.8 and good["auc_within"] > 0.8 and good["ece"] < 0.04
    useless = meta_rm.quality(rng.normal(0, 2, 4000), labels, whose)
    assert (
        abs(useless["auc"] - 0.5) < 0.03
        and abs(useless["auc_within"] - 0.5) < 0.03
        and useless["ece"] > 0.2
    )
    one_class = meta_rm.quality(scores[:5], np.ones(5), whose[:5])
    assert one_class["auc"] is None and one_class["auc_within"] is None


def test_a_meta_score_of_how_hard_a_comparison_is_has_an_auc_but_none_within_comparisons():
    # Two easy comparisons (mostly right, scored high) and two hard ones; inside each, the score says nothing or the contrary.
    labels = np.array([1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0], float)
    scores = np.repeat([2.0, 2.0, -2.0, -2.0], 4)
    whose = np.repeat(["a", "b", "c", "d"], 4)
    found = meta_rm.quality(scores, labels, whose)
    assert found["auc"] == pytest.approx((7 * 7 + 0.5 * 7 * 1 + 0.5 * 1 * 7) / 64)
    assert found["auc_within"] == 0.5  # of a and c; b and d have critiques of one kind only
    scores[3], scores[11] = (
        3.0,
        -1.0,
    )  # the wrong one above its comparison's right ones, the right one above the wrong ones
    assert meta_rm.auc_within(scores, labels, whose) == 0.5
    scores[3] = 1.0
    assert meta_rm.auc_within(scores, labels, whose) == 1.0


def test_meta_split_keeps_a_comparison_on_one_side():
    names = np.array([f"c{i // 3}" for i in range(90)])
    tokens = np.zeros((90, 4), np.int32)
    data = meta_rm.Labelled(tokens, tokens, tokens[:, 0], np.zeros(90), names)
    train, held = meta_rm.split(data, 0.2, 0)
    assert len(held) == 18 and not set(names[train]) & set(names[held])


def test_report_is_one_page_with_its_plots(tmp_path):
    judged = verdict([(8, 1)] * 4, meta=[1.0, 2.0, 3.0, 4.0])
    cells = [
        evaluate.cell("rl", "Voting", [comparison()], [judged], k, "sum", False) for k in (1, 2, 4)
    ]
    (tmp_path / "rl").mkdir()
    names = ("reward", "kl", "entropy", "length", "group_zero", "gap_max")
    rows = [{"step": i, **dict.fromkeys(names, 0.1 * i)} for i in range(1, 6)]
    import json

    (tmp_path / "rl" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quality = meta_rm.quality(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), ["a", "a"])
    facts = {
        "meta_rm": quality,
        "differences": {"RL - RFT": {"mean": 0.054, "low": 0.038, "high": 0.071}},
        "seconds": {"rl": 12034},
    }
    page = report.write(tmp_path / "eval", "a <title>", cells, tmp_path / "rl", facts, "{}")
    text = page.read_text()
    assert (
        text.count("data:image/png;base64,") == 3
        and "a &lt;title&gt;" in text
        and "http" not in text
    )
    assert (
        "<td>RL - RFT</td><td>+5.4 points</td><td>+3.8 to +7.1</td>" in text
        and "<td>12,034</td>" in text
    )
    assert "Voting@4" in (tmp_path / "eval" / "table.txt").read_text()
    # What a study over several runs reads.
    assert study.credits_of(tmp_path) == {f"rl/Voting@{k}": [1.0] for k in (1, 2, 4)}
