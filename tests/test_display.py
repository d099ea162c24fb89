"""Verdicts and critiques as text, short reprs and HTML."""

import dataclasses
from html.parser import HTMLParser

import pytest

from grm_jax.types import Comparison, Critique, Principle, Ranking, Verdict

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


# ---------------------------------------------------------------- repr


def test_reprs_are_one_short_line():
    long = "word \n" * 5000
    comparison = Comparison([{"role": "user", "content": long}], (long, "b"), label=1, id="p1")
    critique = dataclasses.replace(OK, text=long, analysis=long)
    verdict = dataclasses.replace(VERDICT, critiques=(critique,) * 64)
    ranking = Ranking.of((long, "b"), verdict)
    for value in (comparison, critique, verdict, ranking):
        assert "\n" not in repr(value) and len(repr(value)) < 160
    assert repr(comparison).endswith("wor...', 2 responses, label=1, id='p1')")
    assert repr(OK) == (
        "Critique(ok, scores=(9, 3.5), order=(1, 0), principles='Accuracy, Tone', sample=0)"
    )
    assert repr(VERDICT) == "Verdict(id='p1', best=0, scores=(9, 3.5), 2 critiques, unparsed=1)"
    assert repr(ranking) == "Ranking(order=(0, 1), scores=(9, 3.5))"


# ---------------------------------------------------------------- HTML


class Page(HTMLParser):
    """Collects the texts of a fragment and its tags; raises for a tag that is not closed."""

    def __init__(self, fragment):
        super().__init__()
        self.texts, self.tags, self.styles, self.open = [], [], [], []
        self.feed(fragment)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)
        self.styles += [value for name, value in attributes if name == "style"]
        assert all(name == "style" for name, _ in attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_html_of_a_verdict_has_scores_and_principles_as_bars():
    page = Page(VERDICT._repr_html_())
    assert page.texts[0] == "Response 1 is best (one critique; 1 of 2 without scores)."
    for text in ("Response 1", "9", "best", "Response 2", "3.5", "Accuracy", "70%", "Tone"):
        assert text in page.texts
    assert page.tags.count("details") == 2
    widths = [style.split(";")[0] for style in page.styles if style.startswith("width:")]
    assert widths == ["width:100%", "width:39%", "width:70%", "width:0%"]


def test_html_of_a_critique_and_of_a_ranking():
    page = Page(OK._repr_html_())
    assert "scores 9, 3.5, status ok, order 2, 1" in page.texts
    assert "the facts are right" in page.texts and OK.analysis in page.texts
    page = Page(Ranking.of(("first", "second"), VERDICT)._repr_html_())
    assert [text for text in page.texts if text in ("1.", "first", "2.", "second")] == [
        *("1.", "first"),
        *("2.", "second"),
    ]


@pytest.mark.parametrize("payload", ["<script>alert(1)</script>", "</div>\"'&amp;<img onerror=x>"])
def test_html_escapes_every_text(payload):
    principles = (Principle(payload, 50.0, payload),)
    critique = dataclasses.replace(OK, principles=principles, analysis=payload, status=payload)
    verdict = dataclasses.replace(VERDICT, critiques=(critique, UNPARSED))
    for value in (critique, verdict, Ranking.of((payload, "b"), verdict)):
        page = Page(value._repr_html_())
        assert payload in page.texts and not {"script", "img"} & set(page.tags)


# ---------------------------------------------------------------- rankings


def test_equal_scores_share_a_rank_and_keep_the_callers_order():
    third = 1 / 3
    verdict = dataclasses.replace(VERDICT, scores=(third, 2.0, 1.0 - 2 * third, 0.0), best=1)
    ranking = Ranking.of(("a", "b", "c", "d"), verdict)
    assert ranking.order == (1, 0, 2, 3)
    assert ranking.ranks == (1, 2, 2, 4)
    assert ranking.responses[0] == "b" and ranking.scores[0] == 2.0
