"""Verdicts and critiques as text."""

import dataclasses

import pytest

from grm_jax.types import Critique, Principle, Verdict

OK = Critique(
    text="...",
    principles=(Principle("Accuracy", 70.0, "the facts are right"), Principle("Tone")),
    analysis="The first answer is right. " * 8,
    scores=(9.0, 3.5),
    order=(1, 0),
    status="ok",
)
UNPARSED = Critique(text="I cannot say. " * 200, order=(0, 1), status="no_scores")
VERDICT = Verdict("p1", (9.0, 3.5), 0, (OK, UNPARSED), 1, {"sum": (9.0, 3.5)})


@pytest.mark.parametrize("width", [40, 80])
def test_explain_prints_the_vote_and_every_critique_within_the_width(width):
    text = VERDICT.explain(width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert words.startswith(
        "Response 1 is best (one critique; 1 of 2 without scores). "
        "Response 1 9 best Response 2 3.5 "
        "Critique 1 of 2: scores 9, 3.5, status ok, order 2, 1 "
        "70% Accuracy: the facts are right Tone The first answer is right."
    )
    assert "Critique 2 of 2: status no_scores, order 1, 2 I cannot say." in words
    assert len(words) < 1000  # the text of an unparsed critique is cut


def change(**fields):
    return dataclasses.replace(VERDICT, **fields).explain().splitlines()[0]


def test_the_first_line_names_tie_rule_meta_reward_model_and_missing_scores():
    two = {"critiques": (OK, OK), "unparsed": 0}
    assert change(best=None, **two) == "Tie (sum of 2 critiques)."
    votes = {"sum": (1.0,), "mean": (7.25,)}
    assert change(scores=(7.25,), votes=votes, **two) == "Score 7.25 (mean of 2 critiques)."
    assert change(kept=(1,), **two) == (
        "Response 1 is best (one critique, kept by the meta reward model)."
    )
    none = {"critiques": (UNPARSED,), "unparsed": 1, "votes": {}, "scores": (0.0, 0.0)}
    assert change(best=None, **none) == "No verdict: 0 of 1 critiques have scores."


def test_explain_says_which_critiques_the_meta_reward_model_kept():
    critiques = (dataclasses.replace(OK, meta_score=0.25), dataclasses.replace(OK, meta_score=2))
    text = dataclasses.replace(VERDICT, critiques=critiques, unparsed=0, kept=(1,)).explain(100)
    assert "order 2, 1, meta score 0.25, does not vote" in text
    assert "order 2, 1, meta score 2, votes" in text


def test_explain_replaces_characters_that_control_the_terminal():
    critique = dataclasses.replace(OK, analysis="red \x1b[31m, and \u202ereversed")
    text = dataclasses.replace(VERDICT, critiques=(critique,), unparsed=0).explain()
    assert "red \N{REPLACEMENT CHARACTER}[31m" in text
    assert "\x1b" not in text and "\u202e" not in text
