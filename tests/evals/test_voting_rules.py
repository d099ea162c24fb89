"""One registration of a voting rule shows it in every place that offers, draws or lists rules."""

import json
import statistics

import pytest

from grm_jax.evals import cli, page, plots, table, tables
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.judged import vote
from grm_jax.evals.measure import measure
from grm_jax.judging import votes
from grm_jax.types import Comparison, Critique


@pytest.fixture
def median():
    @votes.VOTES.register("median")
    @votes.vote_rule(label="median of scores", description="median score", colour="#123456")
    def median_scores(critiques, n):
        return tuple(statistics.median(c.scores[i] for c in critiques) for i in range(n))

    yield
    del votes.VOTES["median"]


def test_one_registration_shows_a_voting_rule_everywhere(median, tmp_path):
    assert "median" in cli.parser().format_help()
    benchmark = BENCHMARKS["ppe_correctness"]
    comparisons = [
        Comparison("q", ("a", "b"), None, 0, str(i), {"subset": "GPQA"}) for i in range(4)
    ]
    # The sums tie, the medians do not.
    scores = [(5.0, 4.0), (5.0, 4.0), (1.0, 3.0), (5.0, 5.0)]
    critiques = [Critique("", scores=s, order=(0, 1), status="ok") for s in scores]
    judged = [vote(c, critiques) for c in comparisons]
    entry = measure(benchmark, judged, 4, {"kind": "model", "name": "m", "k": 4}, 20)
    assert entry["curves"]["median"][4]["value"] == 1.0
    assert entry["curves"]["sum"][4]["value"] == 0.0
    assert "median of scores" in plots.curve(entry) and "#123456" in plots.curve(entry)
    assert "median of scores" in page.page([entry])
    (tmp_path / "results.json").write_text(json.dumps([entry]))
    built = table.build(table.read_runs([f"m={tmp_path}"]), True, {})
    names = [row["name"] for t in built["tables"] for row in t["rows"]]
    assert "@4 m, median" in names and "@4 m, median" in table.markdown(built)
    assert "PPE Correctness" in tables.markdown([entry])
