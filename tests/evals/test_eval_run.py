"""`grm eval`: the command line, resumed runs, scores files, intervals, gains, paired tests, and the reports."""

import dataclasses
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from grm_jax.evals import cli, run, scaling
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.bootstrap import Resampler, mcnemar, p_value
from grm_jax.evals.judged import JudgedComparison, from_row
from grm_jax.evals.measure import compare, measure
from grm_jax.judging.options import Options
from grm_jax.types import Comparison

sys.path.append(str(Path(__file__).parents[1] / "judging"))
from fake_judge import fake_judge, first_wins, well_formed  # noqa: E402


def noisy(responses, key):
    """Likes answers that say good, with noise that depends on the row alone; one row in twelve cannot be read."""
    rng = random.Random(str((key, responses)))
    if rng.random() < 1 / 12:
        return "I cannot say."
    return well_formed(
        [min(10, max(1, round(rng.gauss(6 if "good" in r else 5, 1.5)))) for r in responses]
    )


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "prompt": f"p{i}",
            "chosen": f"good {i}",
            "rejected": f"bad one {i}",
            "subset": ("donotanswer", "math-prm")[i % 2],
            "id": i,
        }
        for i in range(40)
    ]
    folder = tmp_path / "data" / "rewardbench"
    folder.mkdir(parents=True)
    (folder / "filtered.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"


def judge_all(comparisons, output, write=noisy, **options):
    chunk = options.pop("chunk", 8)
    judge = fake_judge(write, name="toy@1")
    run.judge_with_model(
        judge, comparisons, output, Options(k=4, **options), chunk=chunk, progress=False
    )
    return output.read_bytes()


# ---------------------------------------------------------------- runs that stop


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_and_equals_the_uninterrupted_one(data, tmp_path):
    comparisons = BENCHMARKS["rewardbench"].load(data)
    whole = judge_all(comparisons, tmp_path / "whole.jsonl")
    for stop_after in (1, 57, 120):
        calls = 0

        def stopping(responses, key, stop_after=stop_after):
            nonlocal calls
            calls += 1
            if calls > stop_after:
                raise Stop
            return noisy(responses, key)

        output = tmp_path / f"stopped{stop_after}.jsonl"
        with pytest.raises(Stop):
            judge_all(comparisons, output, stopping)
        assert not output.exists()
        assert judge_all(comparisons, output) == whole
    assert judge_all(comparisons, output) == whole  # a finished run is left as it is


def test_batches_and_repeats_give_the_same_file(data, tmp_path):
    comparisons = BENCHMARKS["rewardbench"].load(data)
    first = judge_all(comparisons, tmp_path / "a.jsonl", chunk=1)
    assert judge_all(comparisons, tmp_path / "b.jsonl", chunk=64) == first
    assert judge_all(comparisons, tmp_path / "c.jsonl", seed=1) != first


def test_other_settings_are_refused(data, tmp_path):
    comparisons = BENCHMARKS["rewardbench"].load(data)
    judge_all(comparisons, tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="was judged with temperature = 0.5, now it is 1.0"):
        judge_all(comparisons, tmp_path / "a.jsonl", temperature=1.0)
    with pytest.raises(ValueError, match="holds 40 comparisons, now there are 10"):
        judge_all(comparisons[:10], tmp_path / "a.jsonl")


def test_a_finished_file_is_not_that_of_another_template_or_of_references(data, tmp_path):
    comparisons, path = BENCHMARKS["rewardbench"].load(data)[:4], tmp_path / "a.jsonl"
    for private in (False, True):
        ask = lambda template, items, private=private: run.judge_with_model(
            fake_judge(noisy, name="toy@1", template=template),
            items,
            path,
            Options(k=2),
            private,
            progress=False,
        )
        path.unlink(missing_ok=True)
        cost = ask("compact", comparisons)
        assert ask("compact", comparisons) == cost
        with pytest.raises(
            ValueError, match="with template = 'compact/judge@.*'compact/pairwise@.*--overwrite"
        ):
            ask("compact/pairwise", comparisons)
        with pytest.raises(ValueError, match="from another input .*another output"):
            ask("compact", [dataclasses.replace(c, reference="the answer") for c in comparisons])


def test_private_rows_hold_no_text(data, tmp_path):
    comparisons = BENCHMARKS["rewardbench"].load(data)[:3]
    judge = fake_judge(noisy, name="toy@1")
    run.judge_with_model(
        judge, comparisons, tmp_path / "a.jsonl", Options(k=2), private=True, progress=False
    )
    text = (tmp_path / "a.jsonl").read_text()
    assert "good" not in text and "Accuracy" not in text
    assert run.load_judged(comparisons, tmp_path / "a.jsonl")[0].critiques


# ---------------------------------------------------------------- the command line


def test_floor_reports(data, tmp_path, capsys):
    out = tmp_path / "out"
    status = cli.main(
        [
            "--benchmark",
            "rewardbench",
            "--data",
            str(data),
            "--judge",
            "longest",
            "--out",
            str(out),
            "--draws",
            "50",
        ]
    )
    assert status == 0
    (entry,) = json.loads((out / "results.json").read_text())
    assert entry["metrics"]["scalar"]["score"]["value"] == 0.0 and entry["rule"] == "scalar"
    assert entry["content_blind"]["first"]["value"] == pytest.approx(0.5, abs=0.25)
    page = (out / "results.html").read_text()
    assert page.count("<section") == 1 and "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page and "<link" not in page
    assert (
        "RewardBench" in (out / "results.md").read_text()
        and "content-blind baseline longest" in capsys.readouterr().out
    )


def test_scores_made_elsewhere_and_paired_tests(data, tmp_path):
    base = ["--benchmark", "rewardbench", "--data", str(data), "--draws", "200"]
    assert cli.main([*base, "--write_comparisons", str(tmp_path / "in")]) == 0
    rows = [
        json.loads(line)
        for line in (tmp_path / "in" / "rewardbench.jsonl").read_text().splitlines()
    ]
    scores = tmp_path / "scores.jsonl"
    # Every fourth is wrong, one in ten is unreadable.
    lines = []
    for i, row in enumerate(rows):
        right = [float(j == row["label"]) for j in range(2)]
        lines.append(
            json.dumps(
                {
                    "id": row["id"],
                    "scores": None if i % 10 == 9 else right[::-1] if i % 4 == 3 else right,
                }
            )
        )
    scores.write_text("\n".join(lines))
    assert cli.main([*base, "--judge", "shortest", "--out", str(tmp_path / "best")]) == 0
    assert (
        cli.main(
            [
                *base,
                "--scores",
                str(scores),
                "--out",
                str(tmp_path / "ours"),
                "--against",
                str(tmp_path / "best"),
            ]
        )
        == 0
    )
    (entry,) = json.loads((tmp_path / "ours" / "results.json").read_text())
    assert entry["parsing"]["unparsed"] == 4
    against = entry["against"]
    assert against["metrics"]["score"]["value"] < 0 and against["metrics"]["score"]["p"] < 0.05
    assert against["metrics"]["score"]["high"] < 0


def test_wrong_command_lines_say_what_is_wrong(data, tmp_path, capsys):
    assert cli.main(["--benchmark", "rmbench", "--data", str(data), "--judge", "first"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert (
        cli.main(
            ["--benchmark", "rmb", "--data", str(data), "--judge", "first", "--out", str(tmp_path)]
        )
        == 2
    )
    assert "Put there: the folder RMB_dataset" in capsys.readouterr().err
    scores = tmp_path / "s.jsonl"
    scores.write_text('{"id": "rewardbench-0-donotanswer", "scores": [1, 2]}\n')
    assert (
        cli.main(
            [
                "--benchmark",
                "rewardbench",
                "--data",
                str(data),
                "--scores",
                str(scores),
                "--out",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "has no row for 39 of 40 comparisons" in capsys.readouterr().err
    base = [
        "--benchmark",
        "rewardbench",
        "--data",
        str(data),
        "--scores",
        str(scores),
        "--out",
        str(tmp_path / "part"),
        "--draws",
        "20",
    ]
    assert cli.main([*base, "--part"]) == 0
    assert json.loads((tmp_path / "part" / "results.json").read_text())[0]["comparisons"] == 1


def test_errors_say_the_way_out(data, tmp_path, capsys, monkeypatch):
    comparison, path = Comparison("q", ("a", "b"), id="x"), tmp_path / "s.jsonl"
    for text, way_out in (
        ("{", "write one object a line"),
        ('{"id": "x", "scores": [1]}', "give one for each"),
    ):
        path.write_text(text + "\n")
        with pytest.raises(ValueError, match=way_out):
            run.load_judged([comparison], path)

    def full(*_):
        raise MemoryError("one row of prompt 512 needs 3 GiB: use more devices on `tensor`")

    monkeypatch.setattr(cli, "evaluate", full)
    assert cli.main(["--benchmark", "rewardbench", "--data", str(data), "--judge", "first"]) == 2
    assert capsys.readouterr().err.startswith("grm eval: one row of prompt 512")


def test_a_model_run_gives_curves_gains_and_a_page(data, tmp_path):
    benchmark = BENCHMARKS["rewardbench"]
    comparisons = benchmark.load(data)
    args = type("Args", (), {"chunk": 16, "overwrite": False, "quiet": True, "no_greedy": False})
    judge = fake_judge(noisy, name="toy@1")
    judged, greedy, description, cost = cli.judge_benchmark(
        judge, benchmark, comparisons, tmp_path, Options(k=8), args
    )
    entry = measure(benchmark, judged, len(comparisons), description, 100, greedy, cost)
    assert set(entry["curves"]) == {"sum", "majority"} and set(entry["curves"]["sum"]) == {
        1,
        2,
        4,
        8,
    }
    assert entry["curves"]["sum"][8]["value"] == pytest.approx(
        entry["metrics"]["generative"]["score"]["value"]
    )
    assert set(entry["gains"]) == {"voting@1", "greedy"}
    gain = entry["metrics"]["generative"]["score"]["value"] - entry["curves"]["sum"][1]["value"]
    assert entry["gains"]["voting@1"]["value"] == pytest.approx(gain)
    assert entry["position"]["flips"]["n"] > 0 and 0 < entry["parsing"]["parsed"] < 1
    cli.write_reports([json.loads(json.dumps(entry))], tmp_path)
    assert (tmp_path / "results.html").read_text().count("<svg") == 3


def test_a_part_of_a_benchmark_is_the_same_part_everywhere(data):
    comparisons = BENCHMARKS["rewardbench"].load(data)
    ten = run.choose(comparisons, 10)
    assert ten == run.choose(list(comparisons), 10) and {c.id for c in ten} <= {
        c.id for c in run.choose(comparisons, 20)
    }
    assert len(run.choose(comparisons, None, "math-prm")) == 20
    with pytest.raises(ValueError, match="subset 'maths' is not there"):
        run.choose(comparisons, None, "maths")


def test_a_protocol_of_both_orders_gets_both(tmp_path):
    benchmark = BENCHMARKS["judgebench"]
    comparisons = [
        Comparison(f"q{i}", ("good", "bad"), None, 0, f"j{i}", {"subset": "mmlu-pro"})
        for i in range(4)
    ]
    args = type("Args", (), {"chunk": 16, "overwrite": False, "quiet": True, "no_greedy": False})
    judge = fake_judge(first_wins, name="toy@1")
    judged, greedy, *_ = cli.judge_benchmark(
        judge, benchmark, comparisons, tmp_path, Options(k=2), args
    )
    assert all(len(j.views) == 2 for j in [*judged, *greedy])
    # Nothing but position bias: right in one order and wrong in the other is not right.
    assert (
        measure(benchmark, judged, 4, {}, 20, greedy)["metrics"]["official"]["accuracy"]["value"]
        == 0.0
    )
    (tmp_path / "odd").mkdir()
    odd, *_ = cli.judge_benchmark(
        judge, benchmark, comparisons, tmp_path / "odd", Options(k=1), args
    )
    assert (
        "4 comparisons were judged in one order only" in measure(benchmark, odd, 4, {}, 20)["notes"]
    )


# ---------------------------------------------------------------- votes and intervals


def row(*scores, **more):
    critiques = [
        {
            "scores": None if s is None else list(s),
            "order": [i % 2, 1 - i % 2],
            "status": "ok" if s else "no_scores",
            "sample": i,
        }
        for i, s in enumerate(scores)
    ]
    return {
        "id": "a",
        "scores": [0, 0],
        "critiques": critiques,
        "kept": None,
        "error": None,
        "vote": "sum",
    } | more


def test_rows_become_judgements():
    comparison = Comparison("q", ("a", "b"), label=0)
    judged = from_row(comparison, row((9, 3), (4, 5), None))
    assert judged.scores == (13, 8) and judged.num_votes == 2
    assert dict(judged.views) == {(0, 1): (9, 3), (1, 0): (4, 5)}
    assert from_row(comparison, row(None, None)).scores is None
    assert (
        from_row(comparison, row(error={"line": 1, "reason": "too long"}, critiques=[])).error
        == "too long"
    )
    with pytest.raises(ValueError, match="judged from other data"):
        from_row(comparison, row((9, 3)) | {"scores": [1, 2, 3]})
    with pytest.raises(ValueError, match="judged from other data"):
        from_row(comparison, row((9, 3)) | {"responses": ["b", "a"]})


def test_meta_guidance_votes_with_the_kept_critiques():
    rows = row((9, 3), (1, 9), (1, 9), (9, 1), kept=[0, 3])
    for critique, meta in zip(rows["critiques"], (2.0, -1.0, -2.0, 1.0)):
        critique["meta_score"] = meta
    judged = from_row(Comparison("q", ("a", "b"), label=0), rows)
    assert judged.scores == (18, 4) and judged.num_votes == 2
    assert "meta" in scaling.kinds([judged])
    assert scaling.revote(judged, "meta", 2, 0).scores == (9, 3)
    assert scaling.revote(judged, "sum", 2, 1).scores == (10, 10)


def test_both_orders_are_judged_by_the_critiques_that_the_meta_model_keeps():
    """Order (1, 0) has a wrong critique and a right one; the meta model keeps the right one."""
    rows = row((9, 3), (1, 9), (8, 3), (7, 5), kept=[0, 3], k_meta=2)
    for critique, meta in zip(rows["critiques"], (2.0, -1.0, -2.0, 1.0)):
        critique["meta_score"] = meta
    judged = from_row(Comparison("q", ("a", "b"), label=0), rows)
    assert dict(judged.views) == {(0, 1): (9, 3), (1, 0): (7, 5)}
    benchmark = BENCHMARKS["judgebench"]
    value = lambda j: benchmark.aggregate(benchmark.grade([j], "official"), np.ones(1))["accuracy"]
    unguided = from_row(judged.comparison, rows | {"kept": None})
    assert (value(unguided), value(judged)) == (0.0, 1.0)
    # An order of which no critique was kept tells nothing; one that could not be read is a failure of the judge.
    assert dict(from_row(judged.comparison, rows | {"k_meta": 1}).views) == {(0, 1): (9, 3)}
    unread = row((9, 3), None, kept=[0])
    unread["critiques"][0]["meta_score"] = 1.0
    assert dict(from_row(judged.comparison, unread).views) == {(0, 1): (9, 3), (1, 0): None}


def test_the_curve_of_expected_scores_outlives_a_critique_that_has_none():
    rows = row((7, 7), (7.5, 4), (7, 7), (7, 7))
    for i in (0, 2, 3):
        rows["critiques"][i]["expected_scores"] = [7.25, 6.5]
    judged = from_row(Comparison("q", ("a", "b"), label=0), rows)
    assert "expected" in scaling.kinds([judged])
    assert scaling.revote(judged, "expected", 4, 0).scores == (7.25, 6.5)
    assert scaling.revote(judged, "expected", 1, 1).scores is None


def correct(p, count, seed, groups=1):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        hit = rng.random() < p
        comparison = Comparison(
            "q", ("a", "b"), None, 0, str(i), {"group": str(i // groups), "subset": "s"}
        )
        found.append(JudgedComparison(comparison, (1.0, 0.0) if hit else (0.0, 1.0)))
    return found


def test_the_interval_covers_the_truth_as_often_as_it_says():
    benchmark, covered = BENCHMARKS["humanevalpack"], 0
    for seed in range(60):
        judged = correct(0.7, 80, seed)
        grades = benchmark.grade(judged, "official")
        estimate = Resampler.of(judged, 200, seed).estimate(
            lambda w, g=grades: benchmark.aggregate(g, w)
        )["accuracy"]
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered >= 51  # 57 expected


def test_prompts_are_drawn_whole():
    judged = [
        dataclasses.replace(j, scores=(float(i // 4 % 2), 0.5))
        for i, j in enumerate(correct(1.0, 80, 0, groups=4))
    ]
    benchmark = BENCHMARKS["humanevalpack"]
    grades = benchmark.grade(judged, "official")
    wide = Resampler.of(judged, 400).estimate(lambda w: benchmark.aggregate(grades, w))["accuracy"]
    alone = [
        dataclasses.replace(
            j, comparison=dataclasses.replace(j.comparison, meta={"group": j.comparison.id})
        )
        for j in judged
    ]
    narrow = Resampler.of(alone, 400).estimate(lambda w: benchmark.aggregate(grades, w))["accuracy"]
    assert (wide.high - wide.low) > 1.5 * (narrow.high - narrow.low)


def test_equal_runs_do_not_differ_and_better_ones_do():
    benchmark = BENCHMARKS["humanevalpack"]
    first, second = correct(0.6, 200, 0), correct(0.6, 200, 0)
    same = compare(benchmark, first, second, 200)
    assert same["metrics"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert same["mcnemar"] == {"gained": 0, "lost": 0, "p": 1.0}
    better = compare(benchmark, correct(0.95, 200, 1), first, 200)
    assert better["metrics"]["accuracy"]["p"] < 0.02 and better["mcnemar"]["p"] < 1e-4


def test_mcnemar_and_p_value():
    from scipy.stats import binomtest

    assert mcnemar([0, 0, 0, 1, 1], [1, 1, 1, 0, 1])["p"] == pytest.approx(binomtest(3, 4).pvalue)
    assert p_value([0.0] * 10) == 1.0 and p_value([1.0] * 99) == pytest.approx(0.02)
    assert p_value([float("nan")]) is None
