"""The report of an experiment's evaluation: one page with its plots, the table and the credits."""

import json

import numpy as np

from grm_jax.evals import plots, report
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.cells import cell
from grm_jax.evals.classification import quality
from grm_jax.evals.judged import vote
from grm_jax.training.eval_stage import PANELS
from grm_jax.types import Comparison, Critique
from studies import spct as study


def test_the_report_is_one_page_with_its_plots(tmp_path):
    critiques = [Critique("t", scores=(8, 1), status="ok", order=(0, 1))] * 4
    judged = [vote(Comparison("q", ("a", "b"), label=0, id="x"), critiques)]
    cells = [cell("rl", "Voting", k, judged, Resampler(["q"])) for k in (1, 2, 4)]
    rows = [{"step": i, **dict.fromkeys(PANELS, 0.1 * i)} for i in range(1, 6)]
    facts = {
        "meta_rm": quality(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), ["a", "a"]),
        "differences": {"RL - RFT": {"mean": 0.054, "low": 0.038, "high": 0.071}},
        "seconds": {"rl": 12034},
    }
    training = {"training.png": ("Reinforcement learning", plots.panels(rows, PANELS))}
    page = report.write(tmp_path / "eval", "a <title>", cells, facts, '{"a": "<b>"}', training)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "a &lt;title&gt;" in text and "&lt;b&gt;" in text and "http" not in text
    assert "<td>RL - RFT</td><td>+5.4 [+3.8, +7.1]</td>" in text and "<td>12,034</td>" in text
    names = {path.name for path in (tmp_path / "eval").iterdir()}
    assert names == {
        "report.html", "table.txt", "table.json", "credits.json",
        "training.png", "scaling.png", "calibration.png",
    }  # fmt: skip
    assert "Voting@4" in (tmp_path / "eval" / "table.txt").read_text()
    assert json.loads((tmp_path / "eval" / "table.json").read_text())[0]["accuracy"] == 1.0
    # A study over several runs reads the credits.
    assert study.read_credits(tmp_path) == {f"rl/Voting@{k}": [1.0] for k in (1, 2, 4)}


def test_smoothing_averages_over_the_last_values():
    assert plots.smooth([1.0, 2.0, 6.0], 2) == [1.0, 1.5, 4.0]
