"""Scalar reward models as judges: rewards as in transformers, options, rows, meshes."""

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scalar_toys import COMPARISONS, SYSTEM, TOYS

from grm_jax import Comparison, Judge
from grm_jax.evals import cli as evals_cli, results, table
from grm_jax.judging import cli, report
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.groups import Group
from grm_jax.judging.judge import Unjudged
from grm_jax.judging.options import Options
from grm_jax.judging.report_data import page_data
from grm_jax.judging.rewards import score
from grm_jax.judging.row_schema import row_problem
from grm_jax.judging.run import RunConfig, judge_file
from grm_jax.judging.scalar import ScalarJudge
from grm_jax.run_store import IdentityMismatch
from grm_jax.sharding import make_mesh

GIVEN = [Comparison(**fields) for fields in COMPARISONS]
TOLERANCE = 1e-4  # of the largest reward


@pytest.fixture(scope="module")
def goldens(pytestconfig):
    path = pytestconfig.rootpath / "tests/judging/goldens/scalar.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("scalar")
    return {name: toy.write(root / name) for name, toy in TOYS.items()}


@pytest.fixture(scope="module")
def judges(folders):
    return {name: Judge.load(folder, dtype="float32") for name, folder in folders.items()}


def rewards_of(verdicts) -> np.ndarray:
    return np.array([score for verdict in verdicts for score in verdict.scores])


@pytest.mark.parametrize("name", TOYS)
def test_rewards_are_those_of_transformers(judges, goldens, name):
    judge, golden = judges[name], goldens[name]
    assert isinstance(judge, ScalarJudge)
    padding, ids = TOYS[name].config["pad_token_id"], [i for c in GIVEN for i in judge.encode(c)]
    for ours, theirs in zip(ids, golden["ids"], strict=True):
        ends_in_padding = theirs[-1] == padding
        assert ours == (theirs[:-1] if ends_in_padding else theirs)
        assert ends_in_padding == (name == "llama3_pad_is_eos")
    together = rewards_of(judge(GIVEN))
    alone = rewards_of(verdict for c in GIVEN for verdict in judge(c))
    np.testing.assert_array_equal(together, alone)  # no reward depends on the other texts
    for padded in ("alone", "left", "right"):
        theirs = np.array(golden[padded])
        assert np.abs(together - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_a_verdict_has_rewards_and_no_critiques(judges):
    judge = judges["qwen3"]
    first, _, single = judge(GIVEN)
    assert (first.critiques, first.votes, first.unparsed) == ((), {}, 0)
    assert first.best == int(np.argmax(first.scores)) and not first.tie
    assert single.best == 0 and len(single.scores) == 1
    assert first.prompt_tokens == sum(map(len, judge.encode(GIVEN[0])))
    assert "is best (scalar reward model)" in first.explain()
    assert all(f"{score:.4g}" in first.explain() for score in first.scores)
    (tie,) = judge([Comparison("q", ("same", "same"))])
    assert tie.tie and tie.best is None and tie.explain().startswith("Tie (scalar")
    ranking = judge.rank("What is 2 + 2?", COMPARISONS[0]["responses"])
    assert ranking.order[0] == first.best and ranking.verdict.scores == first.scores


def test_control_strings_in_a_response_are_text(judges):
    for name, control in (("qwen3", "<|im_end|>"), ("gemma2", "<end_of_turn>")):
        (plain,), (injected,) = (
            judges[name].encode(Comparison("q", (text,))) for text in ("x", f"x{control}")
        )
        end = TOYS[name].id_of(control)
        assert injected.count(end) == plain.count(end) and len(injected) > len(plain)


def test_a_system_text_is_put_into_the_user_turn_where_its_role_is_rejected(judges):
    merged = Comparison("Be brief.\n\nSay hi.", ("hi",))
    given = Comparison(SYSTEM, ("hi",))
    assert judges["gemma2"].encode(given) == judges["gemma2"].encode(merged)
    assert judges["llama3"].encode(given) != judges["llama3"].encode(merged)
    twice = Comparison([*SYSTEM, SYSTEM[0], SYSTEM[1]], ("hi",))
    assert judges["llama3"].encode(twice)
    two = Comparison([{"role": "system", "content": "Be kind."}, *SYSTEM], ("hi",))
    merged = Comparison("Be kind.\n\nBe brief.\n\nSay hi.", ("hi",))
    assert judges["gemma2"].encode(two) == judges["gemma2"].encode(merged)
    alone = Comparison(SYSTEM[:1], ("hi",))
    ((_, result),) = judges["gemma2"].stream([alone])
    assert "rejects the roles system, assistant" in result.reason


def test_a_text_beyond_the_context_fails_with_its_length(judges):
    long = Comparison("q", ("ok", "x" * 600), id="long")
    results = dict(judges["qwen3"].stream([GIVEN[0], long]))
    assert isinstance(results[1], Unjudged) and results[0].scores
    length = len(judges["qwen3"].encode(long)[1])
    assert f"response 2 with its conversation has {length} tokens; the model's context is 512" in (
        results[1].reason
    )
    for spare, is_scored in ((0, True), (-1, False)):  # the context is the longest length
        exact = Comparison("q", ("x" * (600 - (length - 512) - spare),))
        assert [len(ids) for ids in judges["qwen3"].encode(exact)] == [512 - spare]
        ((_, result),) = judges["qwen3"].stream([exact])
        assert isinstance(result, Unjudged) != is_scored
    with pytest.raises(ValueError, match=r"comparison 0 \(long\): response 2 with"):
        judges["qwen3"]([long])


def test_a_reward_that_is_not_finite_is_an_error(judges, monkeypatch):
    monkeypatch.setattr(judges["qwen3"].head, "_score_batch", lambda *_: [float("nan")] * 2)
    ((_, result),) = judges["qwen3"].stream(GIVEN[:1])
    assert "the reward of response 1 is nan" in result.reason


def test_prompt_slots_bound_the_texts_of_a_batch(judges, folders, monkeypatch):
    judge, sizes = Judge.load(folders["qwen3"], dtype="float32", prompt_slots=2), []
    score_batch = judge.head._score_batch
    monkeypatch.setattr(
        judge.head,
        "_score_batch",
        lambda ids, starts, batch: (sizes.append(batch), score_batch(ids, starts, batch))[1],
    )
    ours, whole = rewards_of(judge(GIVEN)), rewards_of(judges["qwen3"](GIVEN))
    assert set(sizes) == {2}
    assert np.abs(ours - whole).max() <= TOLERANCE * np.abs(whole).max()


@pytest.mark.parametrize("name", ["gemma2", "llama3"])
def test_a_mesh_gives_the_same_rewards(judges, folders, name):
    sharded = Judge.load(folders[name], mesh=make_mesh(1, 4, 2), dtype="float32")
    ours, one = rewards_of(sharded(GIVEN)), rewards_of(judges[name](GIVEN))
    assert np.abs(ours - one).max() <= TOLERANCE * np.abs(one).max()


def test_bfloat16_rewards_are_close(judges, folders):
    half = rewards_of(Judge.load(folders["qwen2"])(GIVEN))
    whole = rewards_of(judges["qwen2"](GIVEN))
    distance = np.abs(half - whole).max()
    assert 0 < distance <= 0.05 * np.abs(whole).max()


# ---------------------------------------------------------------- what is refused


def changed_folder(folder, tmp_path, **changes):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_classifier_of_several_labels_is_refused(folders, tmp_path):
    copy = changed_folder(folders["qwen3"], tmp_path, num_labels=2)
    with pytest.raises(ValueError, match="has 2 labels: a reward model needs num_labels = 1"):
        Judge.load(copy)


def test_a_missing_head_is_an_error(folders, tmp_path):
    copy = changed_folder(folders["qwen3"], tmp_path)
    values = load_file(copy / "model.safetensors")
    del values["score.weight"]
    save_file(values, copy / "model.safetensors")
    with pytest.raises(ValueError, match="missing: score.weight"):
        Judge.load(copy)


def test_a_wrong_padding_id_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="pad_token_id='0' in config.json is wrong"):
        Judge.load(changed_folder(folders["qwen3"], tmp_path, pad_token_id="0"))


@pytest.mark.parametrize(
    "option",
    ["--k 8", "--temperature 0.5", "--template grm", "--meta_rm x", "--principles first"]
    + ["--expected", "--vote mean", "--endpoint http://127.0.0.1:9/v1", "--max_new_tokens 9"],
)
def test_options_without_effect_are_refused_by_name(folders, tmp_path, capsys, option):
    (tmp_path / "in.jsonl").write_text(json.dumps(COMPARISONS[0]))
    argv = [tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--model", folders["qwen3"]]
    assert cli.main([*map(str, argv), *option.split()]) == 2
    error = capsys.readouterr().err
    assert f"{option} has no effect" in error and "is a scalar reward model" in error
    assert error.count("\n") == 1 and f"Omit {option.split()[0]}\n" in error


def test_python_options_without_effect_are_refused_by_name(judges, folders):
    judge = judges["qwen3"]
    assert judge(GIVEN[:1], k=1, temperature=0, seed=3) == judge(GIVEN[:1])
    assert dict(judge.stream(GIVEN[:1], Options()))[0] == judge(GIVEN[0])[0]
    for options in ({"k": 8}, {"temperature": 0.5}, {"vote": "mean"}, {"given_principles": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} = .* has no effect"):
            judge(GIVEN[:1], **options)
    for options in ({"meta_rm": "x"}, {"template": "grm"}, {"rows": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} = .* has no effect"):
            Judge.load(folders["qwen3"], **options)
    with pytest.raises(TypeError, match="takes no argument 'kk'"):
        judge(GIVEN[:1], kk=1)


# ---------------------------------------------------------------- rewards of groups


def test_score_gives_the_rewards_of_groups(judges):
    judge, responses = judges["llama3"], ("7", "8", "7")
    given = Comparison("Name a prime.", responses)
    (verdict,) = judge([given])
    (result,) = score([Group("Name a prime.", responses)], judge)
    assert result.values == list(verdict.scores) and result.critiques == ()
    assert result.prompt_tokens == sum(map(len, judge.encode(given)[:2]))  # "7" is shown once
    (ranked,) = score([Group("Name a prime.", responses)], judge, reward="rank")
    seven, eight = verdict.scores[:2]
    assert ranked.values == ([0.75, 0.0, 0.75] if seven > eight else [0.25, 1.0, 0.25])
    assert score([Group("Name a prime.", responses)], judge, reward="win_rate") == [ranked]
    known = Group("Name a prime.", responses, reference="7")  # is ignored
    assert score([known], judge) == [result]
    with pytest.raises(ValueError, match="principles = 'x' has no effect"):
        score([Group("q", responses, principles="x")], judge)
    with pytest.raises(ValueError, match="expected = True has no effect|vote = 'expected' has no"):
        score([Group("q", responses)], judge, reward="expected")
    (failed,) = score([Group("q", ("x" * 600,))], judge)
    assert failed.rewards[0].status == "failed" and "tokens" in failed.rewards[0].reason


# ---------------------------------------------------------------- files


def write_input(path):
    long = {"query": "q", "responses": ["x" * 600, "y"]}
    rows = [fields | {"id": f"r{i}"} for i, fields in enumerate([*COMPARISONS, long])]
    rows[0]["label"] = 1
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


class Stop(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_rows(judges, tmp_path, monkeypatch):
    judge, source = judges["qwen3"], write_input(tmp_path / "in.jsonl")

    def run(name, **options):
        config = RunConfig(existing="resume", chunk=1, progress=False)
        return judge_file(judge, source, tmp_path / name, Options(), config)

    whole = run("whole.jsonl")
    assert (whole.rows, whole.errors, whole.cost["critiques"]) == (4, 1, 0)
    calls = itertools.count()
    score_batch = judge.head._score_batch

    def stopping(*args):
        if next(calls) == 2:
            raise Stop
        return score_batch(*args)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(judge.head, "_score_batch", stopping)
        run("stopped.jsonl")
    assert run("stopped.jsonl").resumed > 0
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    output, config = tmp_path / "whole.jsonl", RunConfig(existing="resume", progress=False)
    for other, field in (
        (judges["gemma2"], "model = 'qwen3@"),
        (dataclasses.replace(judge, settings={**judge.settings, "dtype": "other"}), "dtype = "),
    ):
        with pytest.raises(IdentityMismatch, match=f"was judged with {field}"):
            judge_file(other, source, output, Options(), config)


def test_rows_say_that_they_are_scalar_and_are_checked(judges, tmp_path):
    source, output = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    judge_file(judges["llama3"], source, output, Options(), RunConfig(progress=False))
    rows = list(read_judged_rows(output, check=True))
    assert [row["kind"] for row in rows] == ["scalar"] * 4 and not any(map(row_problem, rows))
    assert rows[0]["template"] is None and "k" not in rows[0] and rows[3]["error"]["line"] == 4
    row = rows[0]
    for changes, problem in (
        ({"best": 1 - row["best"]}, "best = "),
        ({"tie": True}, "tie = True"),
        ({"scores": [1.0]}, "scores or votes that are not 2"),
        ({"votes": {"sum": row["scores"]}}, "critiques or votes, which a scalar"),
        ({"unparsed": 1}, "unparsed = 1"),
        ({"kind": "other"}, "kind = 'other'"),
        ({"kind": None}, "kind = None"),
    ):
        assert problem in row_problem(row | changes)
    unmarked = {name: value for name, value in row.items() if name != "kind"}
    assert "best = " in row_problem(unmarked)  # a judge without critiques has no verdict


def test_the_report_shows_rewards(judges, tmp_path):
    source, output = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    judge_file(judges["llama3"], source, output, Options(), RunConfig(progress=False))
    run = report.load_run(str(output))
    data = page_data([run], "title")
    (shown,) = data["runs"]
    assert shown["scalar"] and shown["settings"].startswith("scalar reward model llama3@")
    assert shown["summary"]["parsed"] is None and shown["summary"]["all_unparsed"] == 0
    side = data["rows"][0]["sides"][0]
    assert side["scores"] == run.rows[0]["scores"] and not side["all_unparsed"]
    assert "llama3@" in report.page_of_runs([run, run], "two")
    assert cli.rates_text(shown["summary"]).startswith("ties 0.0%\naccuracy ")


def test_a_benchmark_takes_the_rule_of_scalar_models(folders, judges, tmp_path, capsys):
    data = tmp_path / "data" / "rewardbench"
    data.mkdir(parents=True)
    pairs = [("2 + 2 = 4", "5"), ("no", "yes, it is so"), ("same", "same"), ("a", "b")]
    rows = [
        {"prompt": f"p{i}", "chosen": a, "rejected": b, "subset": "math-prm", "id": i}
        for i, (a, b) in enumerate(pairs)
    ]
    (data / "filtered.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ["--benchmark", "rewardbench", "--data", data.parent, "--model", folders["qwen2"]]
    argv += ["--out", tmp_path / "eval/scalar", "--dtype", "float32", "--quiet", "--draws", 10]
    assert evals_cli.main(list(map(str, argv))) == 0
    verdicts = judges["qwen2"]([Comparison(row["prompt"], pair) for row, pair in zip(rows, pairs)])
    (entry,) = results.read_results(tmp_path / "eval/scalar/results.json", complete=True)
    assert entry["judge"]["kind"] == "scalar reward model" and entry["rule"] == "scalar"
    accuracy = np.mean([verdict.best == 0 for verdict in verdicts])  # the tie counts 0
    assert entry["metrics"]["scalar"]["subset/math-prm"]["value"] == pytest.approx(accuracy)
    assert entry["parsing"]["unparsed"] == 0 and entry["parsing"]["ties"] == 0.25
    assert (
        "greedy" not in entry and not (tmp_path / "eval/scalar/rewardbench.greedy.jsonl").exists()
    )
    assert "scalar reward model qwen2@" in capsys.readouterr().out
    assert table.main(["runs", str(tmp_path / "eval/scalar")]) == 0
    assert evals_cli.main([*map(str, argv), "--k", "4"]) == 2
    assert "--k 4 has no effect" in capsys.readouterr().err


@pytest.mark.peers
def test_the_stored_rewards_are_those_of_the_installed_transformers(goldens, tmp_path):
    """GRM_PEERS=PYTHON pytest --run peers tests/judging/test_scalar.py"""
    if "GRM_PEERS" not in os.environ:
        pytest.skip("GRM_PEERS is not set: set it to an interpreter with the `bench` extra")
    python, script = (
        shlex.split(os.environ["GRM_PEERS"]),
        Path(__file__).with_name("scalar_toys.py"),
    )
    subprocess.run([*python, str(script), str(tmp_path / "new.json")], check=True)
    new = json.loads((tmp_path / "new.json").read_text())
    assert new.keys() == goldens.keys()
    for name, golden in goldens.items():
        assert new[name]["ids"] == golden["ids"]
        np.testing.assert_allclose(new[name]["alone"], golden["alone"], rtol=0, atol=1e-4)
