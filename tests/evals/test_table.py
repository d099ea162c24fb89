"""`grm table`: our rows beside the paper's, means, marks, figure 4, files."""

import html
import json

import pytest

from grm_jax.evals import figures, paper, plots, run_tables, table, table_page, tables
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.cells import Cell
from grm_jax.evals.judged import vote
from grm_jax.evals.measure import measure
from grm_jax.types import Comparison, Critique


def estimate(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def entry(name, value, k=8, meta=None):
    curves = {
        "sum": {str(j): estimate(value - 0.04 + 0.01 * i) for i, j in enumerate((1, 2, 4, 8))}
    }
    if meta is not None:
        curves["meta"] = {"8": estimate(meta)}
    return {
        "benchmark": name,
        "title": name.title(),
        "headline": "score",
        "rule": "official",
        "metrics": {
            "official": {"score": estimate(value - 0.1)},
            "paper": {"score": estimate(value)},
        },
        "curves": {"sum": {"1": estimate(0.0)}},
        "by_paper": {"curves": curves, "greedy": estimate(value - 0.02)},
        "greedy": estimate(0.0),
        "judge": {"k": k, "meta_rm": None},
        "cost": {"seconds": 80.0, "tokens": 4000, "parameters": 10},
    }


@pytest.fixture
def runs(tmp_path):
    for name, values in {"spct": (0.9, 0.7, 0.6, 0.8), "rft": (0.8, 0.6)}.items():
        folder = tmp_path / name
        folder.mkdir()
        entries = [entry(b, v, meta=v + 0.02) for b, v in zip(paper.BENCHMARKS, values)]
        (folder / "results.json").write_text(json.dumps(entries))
    return [str(tmp_path / name) for name in ("spct", "rft")]


def rows_of(built, title):
    return {
        row["name"]: row
        for t in built["tables"]
        if t["title"].startswith(title)
        for row in t["rows"]
    }


def test_our_rows_are_under_the_papers(runs):
    built = table.build(table.read_runs(runs), True, {})
    rows = rows_of(built, "Table 2")
    assert rows["DeepSeek-GRM-27B"]["cells"][-1]["value"] == pytest.approx(0.699)
    ours = [cell["value"] for cell in rows["spct, Voting@8"]["cells"]]
    assert ours == pytest.approx([0.9, 0.7, 0.6, 0.8, 0.75])
    assert rows["spct, greedy"]["cells"][0]["value"] == pytest.approx(0.88)
    # Two benchmarks of four give no overall number.
    assert [c and c["value"] for c in rows["rft, Voting@8"]["cells"]] == pytest.approx(
        [0.8, 0.6, None, None, None]
    )


def test_every_row_of_a_measured_run_counts_ties_as_the_paper(tmp_path):
    """Every vote ties: 0 by PPE's own strict rule, 1/2 by the paper's, in every row of a table."""
    benchmark = BENCHMARKS["ppe_correctness"]
    tie = Critique("", scores=(5.0, 5.0), order=(0, 1), status="ok")
    comparisons = [
        Comparison("q", ("a", "b"), None, 0, str(i), {"subset": "GPQA"}) for i in range(6)
    ]
    voted, greedy = ([vote(c, [tie] * k) for c in comparisons] for k in (2, 1))
    judge = {"kind": "model", "name": "m", "k": 2}
    entry = measure(benchmark, voted, 6, judge, 20, greedy)
    (tmp_path / "results.json").write_text(json.dumps([entry]))
    built = table.build(table.read_runs([f"m={tmp_path}"]), True, {})
    column = paper.BENCHMARKS.index("ppe_correctness")
    for title, names in {
        "Table 2": ("m, greedy", "m, Voting@2"),
        "Table 3": ("@1 m, sum", "@2 m, sum"),
    }.items():
        rows = rows_of(built, title)
        assert [rows[name]["cells"][column]["value"] for name in names] == [0.5, 0.5]
    own_rule = entry["metrics"]["official"][entry["headline"]]["value"]
    assert own_rule == entry["greedy"]["value"] == 0.0


def test_gains_are_against_voting_at_1(runs):
    rows = rows_of(table.build(table.read_runs(runs), True, {}), "Table 3")
    assert rows["@8 spct, sum"]["gain"] == pytest.approx(0.03)
    assert rows["@8 spct, meta"]["cells"][0]["value"] == pytest.approx(0.92)
    assert "gain" not in rows["@1 spct, sum"]


def test_ablations_are_under_the_papers_row_of_the_same_change(runs):
    names = [
        row["name"]
        for t in table.build(table.read_runs(runs), True, {})["tables"]
        if t["title"].startswith("Table 4")
        for row in t["rows"]
    ]
    assert names.index("rft") == names.index("DeepSeek-GRM-27B-RFT") + 1


def test_the_papers_totals_follow_from_its_columns():
    for row in (
        paper.TABLE_2
        + tuple(r for rows in paper.TABLE_3.values() for r in rows)
        + tuple(paper.TABLE_4.values())
    ):
        agrees = row.values[-1] == pytest.approx(sum(row.values[:4]) / 4, abs=0.06)
        assert agrees or "g" in row.marks, row.name
        assert set(row.marks) <= set(paper.NOTES)


def test_figure_4_has_seconds_and_flops(runs):
    figure = table.build(table.read_runs(runs), True, {"rft": 100.0})["figure4"]
    lines = {line["name"]: line for line in figure["lines"]}
    assert figure["benchmark"] == "rewardbench" and lines["27B, voting"]["paper"]
    last = lines["spct, voting"]["points"][-1]
    assert (last["k"], last["seconds"], last["flops"]) == (8, 80.0, 80000.0)
    assert lines["rft, voting"]["points"][0]["flops"] == 4000 * 100 / 8


def test_output_files_and_folders_without_results(runs, tmp_path, capsys):
    for suffix in ("md", "html", "json"):
        assert table.main(["paper", *runs, "--out", str(tmp_path / f"t.{suffix}")]) == 0
    page = (tmp_path / "t.html").read_text()
    assert page.count("<svg") == 3 and "Table 3" in page and page.count('class="ours"') > 4
    text = (tmp_path / "t.md").read_text()
    assert "**spct, Voting@8**" in text and "[a] The subsets in the paper's table 8" in text
    assert table.main(["runs", *runs]) == 0
    assert "DeepSeek" not in capsys.readouterr().out
    assert table.main(["paper", str(tmp_path)]) == 2
    assert "holds no results.json" in capsys.readouterr().err


def test_the_terminal_shows_every_table_at_80_columns(runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    built = table.build(table.read_runs(runs), True, {})
    run_tables.terminal(built)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("RewardBench", "Correctness", "overall", "gain on", "DeepSeek-BTRM-27B [a]"):
        assert word in text
    values = text.split("spct, Voting@8")[1].splitlines()[0].split()
    assert values == ["90.0", "70.0", "60.0", "80.0", "75.0"]
    scaling = text[text.index("Scaling on") :]
    assert "spct, voting" in scaling and "DeepSeek" not in scaling.split("[a]")[0]
    assert "…" not in text  # nothing is cut off


def test_more_benchmarks_than_fit_are_in_several_tables(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = [name for name in BENCHMARKS if name not in paper.BENCHMARKS][:9]
    built = table.build({"run": {name: entry(name, 0.5) for name in names}}, False, {})
    run_tables.terminal(built)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("Side by side") > 1 and text.count("run, greedy") > 1
    words = text.replace("\n", " ").split()
    assert all(word in words for name in names for word in name.title().split())


def test_the_terminal_table_of_grm_eval_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    measured = entry("rewardbench", 0.5) | {
        **{"title": "Judging world, unseen families", "comparisons": 100, "of": 7182},
        **{"chance": "50.0", "gains": {"greedy": estimate(0.012), "voting@1": None}},
        **{"parsing": {"parsed": 1.0}, "content_blind": {"longest": estimate(0.4)}},
        **{"rules": {"official": "as published", "paper": "ties shared"}},
    }
    measured["judge"] |= {"kind": "model", "name": "a-model-with-a-long-name@0123456789ab"}
    tables.terminal([measured])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("benchmark", "metric", "value", "95% CI", "longest", "39.0–41.0", "100 of 7182"):
        assert part in text
    assert "gain on greedy: +1.2" in text and "by rule 'paper': 50.0" in text


def test_a_row_names_the_voting_rule_and_every_k(tmp_path):
    def name_of(*judges):
        run = {b: entry(b, 0.5) | {"judge": judge} for b, judge in zip(paper.BENCHMARKS, judges)}
        return run_tables.side_by_side({"m": run}, dict.fromkeys(run, "title"))["rows"][-1]["name"]

    eight = {"k": 8, "vote": "sum"}
    assert name_of(eight, eight) == "m, Voting@8"
    assert name_of({"k": 8, "vote": "majority"}) == "m, Voting@8 by majority"
    assert name_of(eight, {"k": 32, "meta_rm": "r"}, {"k": 1}) == "m, Voting@8 / MetaRM@32 / single"
    assert name_of({"k": 1}, {}) == "m"


def test_names_of_runs_are_drawn_as_they_are(tmp_path):
    names = ["_base", r"lr$\x$", "<i>&"]
    runs = {name: {"rewardbench": entry("rewardbench", 0.5)} for name in names}
    page = table_page.page(run_tables.build(runs, False, {}))
    for name in names:
        assert f"{html.escape(name, quote=False)}, voting</text>" in page
    svg = figures.to_svg(figures.new_axes()[0], r'"<\x>')
    assert r'aria-label="&quot;&lt;\x&gt;"' in svg


def test_lines_of_one_colour_have_different_markers():
    lines = [figures.numbered_line(i, str(i), []) for i in range(21)]
    assert len({(line.colour, line.style["marker"]) for line in lines}) == 21
    cells = [Cell(f"m{i}", "Voting", 1, 0.5, None, None, 0.0, 1.0) for i in range(30)]
    assert len(plots.scaling(cells).axes[0].get_legend().get_texts()) == 30
