"""The report of an experiment's evaluation: one page with its plots, the table and the credits."""

import json
import time

import browser
import numpy as np
import pytest

from grm_jax.evals import examples, plots, report
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.cells import cell
from grm_jax.evals.classification import quality
from grm_jax.evals.judged import vote
from grm_jax.judging import codec, votes
from grm_jax.training.eval_stage import PANELS
from grm_jax.types import Comparison, Critique
from studies import spct as study


def critique(scores, order):
    return Critique("<b>text</b>", scores=scores, status="ok", order=order)


def row(number, label, *critiques):
    """The row of `grm judge` of two responses."""
    comparison = Comparison(f"query {number}", ("a", "b"), label=label, id=f"c{number}")
    verdict = votes.verdict(critiques, 2, comparison.id)
    run = {"model": "rl", "template": "t", "k": len(critiques), "temperature": 1, "seed": 0}
    return codec.judged_row(comparison, verdict, number, run | {"vote": "sum"})


FIRST, SECOND = (critique(scores, (0, 1)) for scores in ((8, 1), (2, 5)))
SWAPPED_FIRST, SWAPPED_SECOND = (critique(scores, (1, 0)) for scores in ((8, 1), (2, 9)))
ROWS = [
    row(1, 0, FIRST, FIRST, SWAPPED_FIRST),  # unanimous
    row(2, 1, FIRST, FIRST, SWAPPED_FIRST),  # wrong
    row(3, 0, FIRST, SWAPPED_SECOND, SWAPPED_SECOND),  # the orders name different winners
    row(4, 0, FIRST, SECOND, SECOND, SECOND),  # wrong, 1 of 4
    row(5, 0, critique((9, 1), (0, 1)), SECOND, SECOND),  # one critique outvotes two
    row(6, 0, FIRST, FIRST, FIRST, SWAPPED_FIRST, SECOND),  # right, 4 of 5
]


def test_examples_are_of_five_kinds():
    chosen = examples.choose(ROWS)
    assert [(e.kind, e.row["id"]) for e in chosen] == [
        ("right", "c6"),
        ("wrong", "c2"),
        ("unanimous", "c1"),
        ("flipped by order", "c3"),
        ("saved by the vote", "c5"),
    ]
    sentences = {e.kind: e.sentence for e in chosen}
    assert sentences["right"] == "4 of 5 critiques name the best response, and the vote does."
    assert sentences["wrong"] == "0 of 3 critiques name the best response, the vote does not."
    assert sentences["flipped by order"].endswith("; orders name different winners.")
    # Error rows and rows without a label are not chosen. A kind without rows is skipped.
    error = codec.error_row(7, "too long", {}, "c7")
    unlabelled = row(8, None, FIRST)
    assert [e.kind for e in examples.choose([error, unlabelled, ROWS[0]])] == ["unanimous"]


def test_the_report_is_one_page_with_its_plots(tmp_path):
    judged = [vote(Comparison("q", ("a", "b"), label=0, id="x"), [FIRST] * 4)]
    cells = [cell("rl", "Voting", k, judged, Resampler(["q"])) for k in (1, 2, 4)]
    log = [{"step": i, **dict.fromkeys(PANELS, 0.1 * i)} for i in range(1, 6)]
    facts = {
        "meta_rm": quality(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), ["a", "a"]),
        "differences": {"RL - RFT": {"mean": 0.054, "low": 0.038, "high": 0.071}},
        "seconds": {"rl": 12034},
    }
    content = report.Report(
        "a <title>", ["RL <adds>."], cells, facts, '{"a": "<b>"}', ROWS, log, PANELS
    )
    page = report.write(tmp_path / "eval", content)
    text = page.read_text()
    # The findings come first, then the scaling plot, the examples, the table; the config is folded.
    places = [
        "RL &lt;adds&gt;.",
        "Accuracy over k",
        "saved by the vote",
        "k = 4",
        "<td>12,034</td>",
    ]
    places += ['aria-label="reward"', "<details><summary>Config</summary><pre>"]
    assert sorted(places, key=text.index) == places
    assert "a &lt;title&gt;" in text and "&lt;b&gt;" in text and "<b>text" not in text
    assert text.count("<svg") == 2 + len(PANELS) and "<img" not in text and 'src="http' not in text
    assert "<td>RL - RFT</td><td>+5.4 [+3.8, +7.1]</td>" in text
    names = {path.name for path in (tmp_path / "eval").iterdir()}
    assert names == {
        "report.html", "critiques.html", "table.txt", "table.json", "credits.json",
        "training.png", "scaling.png", "calibration.png",
    }  # fmt: skip
    assert "Voting@4" in (tmp_path / "eval" / "table.txt").read_text()
    assert json.loads((tmp_path / "eval" / "table.json").read_text())[0]["accuracy"] == 1.0
    # A study over several runs reads the credits.
    assert study.read_credits(tmp_path) == {f"rl/Voting@{k}": [1.0] for k in (1, 2, 4)}


def test_smoothing_averages_over_the_last_values():
    assert plots.smooth([1.0, 2.0, 6.0], 2) == [1.0, 1.5, 4.0]


@pytest.mark.skipif(not browser.available(), reason="needs chromium and chromedriver")
def test_the_page_fits_a_phone_and_follows_dark_mode(tmp_path):
    judged = [vote(Comparison("q", ("a", "b"), label=0, id="x"), [FIRST] * 32)]
    cells = [cell("rl", "Voting", k, judged, Resampler(["q"])) for k in (1, 2, 4, 8, 16, 32)]
    log = [{"step": i, **dict.fromkeys(PANELS, 0.1 * i)} for i in range(1, 6)]
    facts = {"meta_rm": quality(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), ["a", "a"])}
    content = report.Report("toy", ["RL adds."], cells, facts, "{}", ROWS, log, PANELS)
    page = report.write(tmp_path, content)
    colour = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    line = "svg [id^=line2d] path[style*='--c0']"
    seen = {}
    for dark in (False, True):
        with browser.Browser(390, 800, dark) as phone:
            phone.open(page)
            width = "return [document.documentElement.scrollWidth, innerWidth]"
            assert phone.run(width) == [390, 390]
            assert "saved by the vote" in phone.text("dt")
            assert not phone.run("return document.querySelector('details pre').checkVisibility()")
            names = (("body", "backgroundColor"), ("svg text", "fill"), (line, "stroke"))
            seen[dark] = [phone.run(colour, *name) for name in names]
            assert not phone.log()
            # A link below the findings opens its comparison in the viewer on the page.
            phone.run("document.querySelector('.examples a').click()")
            for _ in range(600):
                phone.command("POST", "/frame", {"id": None})
                phone.command("POST", "/frame", {"id": 0})
                if shown := phone.run("return location.hash"):
                    break
                time.sleep(0.1)
            assert shown == "#c6" and "query 6" in phone.text("#detail")[0]
    assert all(light != dark for light, dark in zip(*seen.values()))
