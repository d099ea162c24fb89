"""`grm eval`: the command line, resumed runs, scores files, intervals, gains, tests, reports."""

import dataclasses
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from grm_jax.evals import cli, results, run, scaling
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.bootstrap import Resampler, mcnemar, p_value
from grm_jax.evals.judged import JudgedComparison, from_row
from grm_jax.evals.measure import compare, measure
from grm_jax.evals.tables import MISSING
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig
from grm_jax.types import Comparison

sys.path.append(str(Path(__file__).parents[1] / "judging"))
from fake_judge import fake_judge, first_wins, well_formed  # noqa: E402

QUIET = RunConfig(existing="resume", progress=False)


def noisy(responses, key):
    """Prefers "good" answers, with noise from the row alone; one critique in twelve is unparsed."""
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


def judge_all(comparisons, output, write=noisy, chunk=8, **options):
    judge = fake_judge(write, name="toy@1")
    config = dataclasses.replace(QUIET, chunk=chunk)
    run.judge_with_model(judge, comparisons, output, Options(k=4, **options), config)
    return output.read_bytes()


def eval_rewardbench(data, *flags):
    return cli.main(["--benchmark", "rewardbench", "--data", str(data), *map(str, flags)])


# ---------------------------------------------------------------- stopped runs


class Stop(Exception):
    pass


def test_a_stopped_run_resumes_and_equals_an_uninterrupted_one(data, tmp_path):
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
    assert judge_all(comparisons, output) == whole  # a finished run is not judged again


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


def test_a_larger_limit_extends_a_finished_evaluation(data, tmp_path):
    comparisons = BENCHMARKS["rewardbench"].load(data)
    whole, few = judge_all(comparisons, tmp_path / "whole.jsonl"), run.choose(comparisons, 10)
    judged = []

    def writing(responses, key):
        judged.append(responses)
        return noisy(responses, key)

    path = tmp_path / "a.jsonl"
    judge_all(few, path, writing)
    assert judge_all(run.choose(comparisons, 25), path, writing) != whole
    assert judge_all(comparisons, path, writing) == whole
    assert len(judged) == 40 * 4
    path.unlink()
    judge_all(few, path)
    edited = {few[3].id: dataclasses.replace(few[3], reference="r")}
    with pytest.raises(ValueError, match="from another input"):
        judge_all([edited.get(c.id, c) for c in comparisons], path)


def test_a_finished_file_of_another_template_or_with_other_references_is_refused(data, tmp_path):
    comparisons, path = BENCHMARKS["rewardbench"].load(data)[:4], tmp_path / "a.jsonl"
    for private in (False, True):
        config = dataclasses.replace(QUIET, private=private)

        def judge(template, items, config=config):
            judge = fake_judge(noisy, name="toy@1", template=template)
            return run.judge_with_model(judge, items, path, Options(k=2), config)

        path.unlink(missing_ok=True)
        result = judge("compact", comparisons)
        assert judge("compact", comparisons) == result
        with pytest.raises(
            ValueError, match="with template = 'compact/judge@.*'compact/pairwise@.*--overwrite"
        ):
            judge("compact/pairwise", comparisons)
        with pytest.raises(ValueError, match="from another input .*another output"):
            judge("compact", [dataclasses.replace(c, reference="the answer") for c in comparisons])


def test_private_rows_hold_no_text(data, tmp_path):
    comparisons, path = BENCHMARKS["rewardbench"].load(data)[:3], tmp_path / "a.jsonl"
    judge, config = fake_judge(noisy, name="toy@1"), dataclasses.replace(QUIET, private=True)
    run.judge_with_model(judge, comparisons, path, Options(k=2), config)
    assert "good" not in path.read_text() and "Accuracy" not in path.read_text()
    assert run.load_judged(comparisons, path)[0].critiques


def test_a_store_that_hosts_share_gives_the_same_judgements_as_a_file(data, tmp_path):
    comparisons, options = BENCHMARKS["rewardbench"].load(data), Options(k=4)
    judge_all(comparisons, tmp_path / "a.jsonl")
    loaded = run.load_judged(comparisons, tmp_path / "a.jsonl")
    judge = fake_judge(noisy, name="toy@1")
    assert run.judge_into_store(judge, comparisons, options, tmp_path / "store") == loaded
    assert len(list((tmp_path / "store").iterdir())) == 1  # 40 comparisons are one chunk


# ---------------------------------------------------------------- the command line


def test_reports_of_a_content_blind_baseline(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert eval_rewardbench(data, "--judge", "longest", "--out", out, "--draws", 50) == 0
    (entry,) = json.loads((out / "results.json").read_text())
    assert entry["metrics"]["scalar"]["score"]["value"] == 0.0 and entry["rule"] == "scalar"
    assert entry["content_blind"]["first"]["value"] == pytest.approx(0.5, abs=0.25)
    page = (out / "results.html").read_text()
    assert page.count("<section") == 1 and "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page and "<link" not in page
    assert "RewardBench" in (out / "results.md").read_text()
    assert "content-blind baseline longest" in capsys.readouterr().out


def test_results_of_an_earlier_version_are_read(data, tmp_path):
    out = tmp_path / "out"
    eval_rewardbench(data, "--judge", "longest", "--out", out, "--draws", 20)
    (entry,) = json.loads((out / "results.json").read_text())
    old = entry | {"floors": entry["content_blind"], "read": entry["parsing"]}
    old["read"] = {**entry["parsing"], "nothing_read": entry["parsing"]["unparsed"]}
    for key in ("content_blind", "parsing"):
        del old[key]
    del old["read"]["unparsed"]
    (out / "results.json").write_text(json.dumps([old]))
    assert results.read_results(out / "results.json") == [entry]
    flags = ["--benchmark", "world", "--data", ".", "--judge", "longest", "--limit", "4"]
    assert cli.main([*flags, "--out", str(out), "--draws", "20"]) == 0
    assert json.loads((out / "results.json").read_text())[0] == entry


def test_scores_from_elsewhere_and_paired_tests(data, tmp_path):
    assert eval_rewardbench(data, "--write_comparisons", tmp_path / "in") == 0
    rows = map(json.loads, (tmp_path / "in" / "rewardbench.jsonl").read_text().splitlines())
    lines = []
    for i, row in enumerate(rows):  # every fourth is wrong, one in ten is unparsed
        right = [float(j == row["label"]) for j in range(2)]
        scores = None if i % 10 == 9 else right[::-1] if i % 4 == 3 else right
        lines.append(json.dumps({"id": row["id"], "scores": scores}))
    path = tmp_path / "scores.jsonl"
    path.write_text("\n".join(lines))
    flags = ("--draws", 200, "--out")
    assert eval_rewardbench(data, "--judge", "shortest", *flags, tmp_path / "best") == 0
    ours = tmp_path / "ours"
    against = ("--against", tmp_path / "best")
    assert eval_rewardbench(data, "--scores", path, *flags, ours, *against) == 0
    (entry,) = json.loads((ours / "results.json").read_text())
    assert entry["parsing"]["unparsed"] == 4
    difference = entry["against"]["metrics"]["score"]
    assert difference["value"] < 0 and difference["p"] < 0.05 and difference["high"] < 0


def test_differences_on_one_prompt_have_neither_interval_nor_p(data, tmp_path, capsys):
    one = ("--limit", "1", "--draws", "50", "--out")
    assert eval_rewardbench(data, "--judge", "shortest", *one, tmp_path / "best") == 0
    longest = ("--judge", "longest", *one, tmp_path / "ours", "--against", tmp_path / "best")
    assert eval_rewardbench(data, *longest) == 0
    (entry,) = results.read_results(tmp_path / "ours" / "results.json", complete=True)
    difference = entry["against"]["metrics"]["score"]
    assert difference == {"value": -1.0, "low": None, "high": None, "p": None}
    page = (tmp_path / "ours" / "results.html").read_text()
    for text in (capsys.readouterr().out, (tmp_path / "ours" / "results.md").read_text(), page):
        assert f"-100.0 points, p = {MISSING} (paired bootstrap)" in " ".join(text.split())


def test_wrong_command_lines_get_one_clear_line(data, tmp_path, capsys):
    assert cli.main(["--benchmark", "rmbench", "--data", str(data), "--judge", "first"]) == 2
    assert "did you mean" in capsys.readouterr().err
    flags = ["--data", str(data), "--judge", "first", "--subset", "maths"]
    assert cli.main(["--benchmark", "rewardbench", *flags]) == 2
    assert "RewardBench has no subset 'maths': use one of " in capsys.readouterr().err
    flags = ["--benchmark", "rmb", "--data", str(data), "--judge", "first", "--out", str(tmp_path)]
    assert cli.main(flags) == 2
    assert "Put there: the folder RMB_dataset" in capsys.readouterr().err
    flags[1] = "rmb,rm_bench"
    assert cli.main(flags) == 2
    assert re.findall(r"benchmark (\w+): no", capsys.readouterr().err) == ["rmb", "rm_bench"]
    scores, part = tmp_path / "s.jsonl", tmp_path / "part"
    scores.write_text('{"id": "rewardbench-0-donotanswer", "scores": [1, 2]}\n')
    flags = ("--scores", scores, "--out", part, "--draws", 20)
    assert eval_rewardbench(data, *flags) == 2
    assert "has no row for 39 of 40 comparisons" in capsys.readouterr().err
    assert eval_rewardbench(data, *flags, "--part") == 0
    assert json.loads((part / "results.json").read_text())[0]["comparisons"] == 1


def test_errors_name_the_fix(data, tmp_path, capsys, monkeypatch):
    comparison, path = Comparison("q", ("a", "b"), id="x"), tmp_path / "s.jsonl"
    for text, fix in (
        ("{", "line 1: not JSON"),
        ('{"id": "x", "scores": [1]}', "give one for each"),
    ):
        path.write_text(text + "\n")
        with pytest.raises(ValueError, match=fix):
            run.load_judged([comparison], path)

    def full(*_):
        raise MemoryError("one row of prompt 512 needs 3 GiB: use more devices on `tensor`")

    monkeypatch.setattr(cli, "evaluate", full)
    assert eval_rewardbench(data, "--judge", "first") == 2
    assert capsys.readouterr().err.startswith("grm eval: one row of prompt 512")


def test_the_reasons_of_error_rows_are_printed_and_the_run_is_named(data, capsys, monkeypatch):
    from grm_jax.judging.judge import Judge

    judge = fake_judge(noisy, name="spct/rl@1", context=8192)
    monkeypatch.setattr(Judge, "load", lambda path, **options: judge)
    file = data / "rewardbench" / "filtered.jsonl"
    long = {"prompt": "word " * 9000, "chosen": "a", "rejected": "b", "subset": "donotanswer"}
    file.write_text(file.read_text() + "\n" + json.dumps(long | {"id": 40}))
    folder = data / "spct" / "rl" / "hf"
    folder.mkdir(parents=True)
    monkeypatch.chdir(data)
    flags = ("--model", folder, "--template", "compact", "--k", 1, "--draws", 20, "--quiet")
    assert eval_rewardbench(data, *flags) == 0
    printed = capsys.readouterr()
    assert "rewardbench: 1 of 41 rows failed:\n  1 x the prompt of " in printed.err
    assert (data / "eval" / "spct" / "rl" / "results.json").exists()


def judge_benchmark(benchmark, comparisons, out, write, k):
    task = cli.Task(benchmark, comparisons, len(comparisons))
    judge = fake_judge(write, name="toy@1")
    return cli.judge_benchmark(judge, task, out, Options(k=k), QUIET)


def test_a_model_gets_curves_gains_and_a_page(data, tmp_path):
    benchmark = BENCHMARKS["rewardbench"]
    comparisons = benchmark.load(data)
    made = judge_benchmark(benchmark, comparisons, tmp_path, noisy, k=8)
    entry = measure(benchmark, made.judged, 40, made.judge, 100, made.greedy, made.cost)
    assert set(entry["curves"]) == {"sum", "majority"}
    assert set(entry["curves"]["sum"]) == {1, 2, 4, 8}
    score = entry["metrics"]["generative"]["score"]["value"]
    assert entry["curves"]["sum"][8]["value"] == pytest.approx(score)
    assert set(entry["gains"]) == {"voting@1", "greedy"}
    gain = score - entry["curves"]["sum"][1]["value"]
    assert entry["gains"]["voting@1"]["value"] == pytest.approx(gain)
    assert entry["position"]["flips"]["n"] > 0 and 0 < entry["parsing"]["parsed"] < 1
    cli.write_reports([json.loads(json.dumps(entry))], tmp_path)
    assert (tmp_path / "results.html").read_text().count("<svg") == 3


def test_a_limit_selects_the_same_comparisons_everywhere(data):
    comparisons = BENCHMARKS["rewardbench"].load(data)
    ten = run.choose(comparisons, 10)
    assert ten == run.choose(list(comparisons), 10)
    assert {c.id for c in ten} <= {c.id for c in run.choose(comparisons, 20)}
    assert len(run.choose(comparisons, None, "math-prm")) == 20
    with pytest.raises(ValueError, match="no subset 'maths': use one of "):
        run.choose(comparisons, None, "maths")


def test_a_protocol_with_both_orders_gets_both(tmp_path):
    benchmark = BENCHMARKS["judgebench"]
    comparisons = [
        Comparison(f"q{i}", ("good", "bad"), None, 0, f"j{i}", {"subset": "mmlu-pro"})
        for i in range(4)
    ]
    made = judge_benchmark(benchmark, comparisons, tmp_path, first_wins, k=2)
    assert all(len(j.views) == 2 for j in [*made.judged, *made.greedy])
    # Position bias alone: right in one order and wrong in the other is not right.
    entry = measure(benchmark, made.judged, 4, {}, 20, made.greedy)
    assert entry["metrics"]["official"]["accuracy"]["value"] == 0.0
    (tmp_path / "odd").mkdir()
    odd = judge_benchmark(benchmark, comparisons, tmp_path / "odd", first_wins, k=1)
    entry = measure(benchmark, odd.judged, 4, {}, 20)
    assert "4 comparisons were judged in one order only" in entry["notes"]


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


def test_views_of_both_orders_use_the_critiques_that_the_meta_rm_keeps():
    """Order (1, 0) has a wrong critique and a right one; the meta RM keeps the right one."""
    rows = row((9, 3), (1, 9), (8, 3), (7, 5), kept=[0, 3], k_meta=2)
    for critique, meta in zip(rows["critiques"], (2.0, -1.0, -2.0, 1.0)):
        critique["meta_score"] = meta
    judged = from_row(Comparison("q", ("a", "b"), label=0), rows)
    assert dict(judged.views) == {(0, 1): (9, 3), (1, 0): (7, 5)}
    benchmark = BENCHMARKS["judgebench"]
    value = lambda j: benchmark.aggregate(benchmark.grade([j], "official"), np.ones(1))["accuracy"]
    unguided = from_row(judged.comparison, rows | {"kept": None})
    assert (value(unguided), value(judged)) == (0.0, 1.0)
    # An order without a kept critique has no view; an unparsed order is a failure of the judge.
    assert dict(from_row(judged.comparison, rows | {"k_meta": 1}).views) == {(0, 1): (9, 3)}
    unparsed = row((9, 3), None, kept=[0])
    unparsed["critiques"][0]["meta_score"] = 1.0
    assert dict(from_row(judged.comparison, unparsed).views) == {(0, 1): (9, 3), (1, 0): None}


def test_the_curve_of_expected_scores_skips_critiques_without_them():
    rows = row((7, 7), (7.5, 4), (7, 7), (7, 7))
    for i in (0, 2, 3):
        rows["critiques"][i]["expected_scores"] = [7.25, 6.5]
    judged = from_row(Comparison("q", ("a", "b"), label=0), rows)
    assert "expected" in scaling.kinds([judged])
    assert scaling.revote(judged, "expected", 4, 0).scores == (7.25, 6.5)
    assert scaling.revote(judged, "expected", 1, 1).scores is None


def correct(p, count, seed, groups=1):
    rng = np.random.default_rng(seed)
    judged = []
    for i in range(count):
        hit = rng.random() < p
        comparison = Comparison(
            "q", ("a", "b"), None, 0, str(i), {"group": str(i // groups), "subset": "s"}
        )
        judged.append(JudgedComparison(comparison, (1.0, 0.0) if hit else (0.0, 1.0)))
    return judged


def test_the_interval_has_its_nominal_coverage():
    benchmark, covered = BENCHMARKS["humanevalpack"], 0
    for seed in range(60):
        judged = correct(0.7, 80, seed)
        grades = benchmark.grade(judged, "official")
        estimate = Resampler.of(judged, 200, seed).estimate(
            lambda w, g=grades: benchmark.aggregate(g, w)
        )["accuracy"]
        covered += estimate.low <= 0.7 <= estimate.high
    assert covered >= 51  # 57 expected


def test_comparisons_of_a_prompt_are_resampled_together():
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


@pytest.mark.parametrize("limit", [5, 400])
def test_subsets_of_one_prompt_have_no_interval(limit, tmp_path, capsys):
    flags = ["--benchmark", "world", "--data", ".", "--judge", "longest", "--limit", str(limit)]
    assert cli.main([*flags, "--out", str(tmp_path), "--draws", "20"]) == 0
    few = "n = 5: too few for an interval"
    assert (few in capsys.readouterr().out) == (limit == 5)
    assert (few in (tmp_path / "results.md").read_text()) == (limit == 5)
