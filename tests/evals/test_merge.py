"""`grm eval --shard I/N` and `grm merge`: results equal to those of the single run."""

import json
import re
import shlex

import pytest
from test_eval_run import data as data, fake_judge, noisy  # noqa: F401

from grm_jax.evals import cli, merge
from grm_jax.judging import arguments

SECONDS = re.compile(r'"(seconds|seconds_per_comparison)": [\d.e-]+')


@pytest.fixture
def grm_eval(data, monkeypatch):  # noqa: F811
    monkeypatch.setattr(arguments, "judge_from", lambda args: fake_judge(noisy, name="toy@1"))
    monkeypatch.setattr(cli, "num_parameters", lambda path: 1000)

    def run(out, *flags):
        argv = ["--benchmark", "rewardbench", "--data", data, "--model", data, "--out", out]
        argv += ["--template", "compact", "--k", "4", "--draws", "50", "--quiet", *flags]
        return cli.main(list(map(str, argv)))

    return run


def test_merged_results_equal_those_of_the_single_run_but_for_the_seconds(
    grm_eval, tmp_path, capsys
):
    assert grm_eval(tmp_path / "single") == 0
    single_table = capsys.readouterr().out
    for i in (1, 2, 3):
        assert grm_eval(tmp_path / "all", "--shard", f"{i}/3") == 0
    command = shlex.split(capsys.readouterr().out.rpartition("grm merge ")[2])
    assert merge.main(command) == 0
    table = capsys.readouterr().out
    assert table.replace(str(tmp_path / "all"), "") == single_table.replace(
        str(tmp_path / "single"), ""
    )
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    merged = sorted(p.name for p in (tmp_path / "all").iterdir() if "-of-" not in p.name)
    assert names == merged
    for name in names:
        ours, theirs = ((tmp_path / f / name).read_text() for f in ("all", "single"))
        if name in ("results.json", "rewardbench.cost.json", "rewardbench.greedy.cost.json"):
            assert "seconds" in theirs
            ours, theirs = SECONDS.sub("", ours), SECONDS.sub("", theirs)
        if name not in ("results.md", "results.html"):
            assert ours == theirs, name
    for name in ("rewardbench.jsonl", "rewardbench.greedy.jsonl"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


def test_the_seconds_of_all_shards_are_added(grm_eval, tmp_path):
    for i in (1, 2):
        assert grm_eval(tmp_path / "all", "--shard", f"{i}/2", "--no_greedy") == 0
        path = tmp_path / "all" / f"rewardbench-0000{i}-of-00002.cost.json"
        cost = json.loads(path.read_text())
        path.write_text(json.dumps(cost | {"seconds": 100.0 * i}))
    assert merge.main([str(tmp_path / "all"), "--out", str(tmp_path / "merged")]) == 0
    cost = json.loads((tmp_path / "merged" / "rewardbench.cost.json").read_text())
    assert cost["seconds"] == 300 and cost["critiques"] == 160
    (entry,) = json.loads((tmp_path / "merged" / "results.json").read_text())
    assert entry["cost"]["seconds"] == 300


def test_shards_that_are_missing_or_of_another_run_are_refused(
    grm_eval,
    data,
    tmp_path,
    capsys,  # noqa: F811
):
    out = tmp_path / "all"
    assert grm_eval(out, "--shard", "1/2", "--no_greedy") == 0
    target = ["--out", str(tmp_path / "merged")]

    def refusal(*argv):
        capsys.readouterr()
        assert merge.main([*argv, *target]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "merged" / "results.json").exists()
        return line

    assert "shard 2/2 is missing beside" in refusal(str(out))
    assert grm_eval(tmp_path / "other", "--shard", "2/2", "--no_greedy", "--seed", "1") == 0
    assert "was judged with tasks = " in refusal(str(out), str(tmp_path / "other"))
    assert grm_eval(out, "--shard", "2/2", "--no_greedy") == 0
    rows = out / "rewardbench-00002-of-00002.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-30])
    assert "lacks 1 of 20 rows" in refusal(str(out))
    rows.unlink()
    assert "no shard " in refusal(str(out))
    rows.write_bytes(whole)
    settings = out / "evaluation-00002-of-00002.json"
    settings.write_text(settings.read_text().replace('"tasks"', '"x"'))
    assert "is damaged: judge the shard again" in refusal(str(out))


def test_merging_with_other_data_is_refused(grm_eval, data, tmp_path, capsys):  # noqa: F811
    assert grm_eval(tmp_path / "all", "--shard", "1/1", "--no_greedy") == 0
    file = data / "rewardbench" / "filtered.jsonl"
    file.write_text(file.read_text().replace("good 3", "fine 3"))
    assert merge.main([str(tmp_path / "all"), "--out", str(tmp_path / "merged")]) == 2
    assert "has other comparisons of rewardbench than the shards" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()  # refused before anything is written


def test_a_killed_shard_resumes_with_the_same_command(grm_eval, tmp_path, monkeypatch):
    assert grm_eval(tmp_path / "single", "--no_greedy") == 0

    def stopping(responses, key, calls=iter(range(10**6))):  # noqa: B008
        if next(calls) > 30:
            raise KeyboardInterrupt
        return noisy(responses, key)

    whole = arguments.judge_from
    monkeypatch.setattr(arguments, "judge_from", lambda args: fake_judge(stopping, name="toy@1"))
    flags = ("--shard", "1/2", "--no_greedy")
    assert grm_eval(tmp_path / "all", *flags) == 130
    monkeypatch.setattr(arguments, "judge_from", whole)
    assert grm_eval(tmp_path / "all", *flags) == 0
    assert grm_eval(tmp_path / "all", "--shard", "2/2", "--no_greedy") == 0
    assert merge.main([str(tmp_path / "all"), "--out", str(tmp_path / "all")]) == 0
    ours, theirs = (tmp_path / f / "rewardbench.jsonl" for f in ("all", "single"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_shard_needs_a_model(data, capsys):  # noqa: F811
    argv = ["--benchmark", "rewardbench", "--data", str(data), "--judge", "first"]
    assert cli.main([*argv, "--shard", "1/2"]) == 2
    assert "--shard needs --model" in capsys.readouterr().err
