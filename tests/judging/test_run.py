"""Judging files: resumed runs, error rows, the identity of a run, and the command line."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_judge import fake_judge, first_wins, well_formed

from grm_jax.data.comparisons import read_rows
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file, judge_into, run_identity
from grm_jax.run_store import IdentityMismatch, RunStore

HERE = Path(__file__).parent
ROWS = [
    {
        "query": f"Question {i}?",
        "responses": [f"answer {i}", "another"],
        "label": i % 2,
        "id": f"q{i}",
    }
    for i in range(200)
]
BAD = {3: b'{"query": \n', 50: b'{"query": "q", "responses": []}\n', 120: b"\xff\xfe\n"}


def write_rows(path, rows, bad=()):
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    for at, raw in dict(bad).items():
        lines.insert(at, raw)
    path.write_bytes(b"".join(lines))
    return path


def loaded(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge_all(judge, source, output, existing="refuse", chunk=256, **options):
    selection = {name: options.pop(name) for name in ("format", "limit") if name in options}
    config = RunConfig(existing=existing, chunk=chunk, progress=False)
    return judge_file(judge, source, output, Options(**{"k": 2, **options}), config, **selection)


def test_rows_have_the_documented_fields(tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:3]), tmp_path / "out.jsonl"
    result = judge_all(fake_judge(first_wins, name="m@1"), source, output, seed=5)
    assert (result.rows, result.errors, result.resumed) == (3, 0, 0)
    row = loaded(output)[1]
    assert (row["id"], row["line"], row["n"], row["label"], row["tie"], row["best"]) == (
        "q1",
        2,
        2,
        1,
        True,
        None,
    )
    assert (row["k"], row["temperature"], row["seed"], row["model"], row["error"]) == (
        2,
        0.5,
        5,
        "m@1",
        None,
    )
    assert row["template"].startswith("compact/judge@") and row["scores"] == [13, 13]
    assert set(row["votes"]) == {"sum", "mean", "majority"}
    critique = row["critiques"][0]
    assert set(critique) >= {
        "text",
        "order",
        "scores",
        "status",
        "meta_score",
        "expected_scores",
        "tokens",
        "sample",
        "principles",
        "analysis",
    }
    assert critique["principles"][0] == {
        "name": "Accuracy",
        "weight": 60.0,
        "description": "the facts are right",
    }


def test_bad_rows_become_error_rows_and_the_others_are_judged(tmp_path):
    rows = [
        ROWS[0],
        {"query": "q", "responses": ["a"] * 40},
        {"query": "q", "responses": ["word " * 100_000, "b"]},
        ROWS[1],
    ]
    source = write_rows(
        tmp_path / "in.jsonl",
        rows,
        {1: b'{"query": "q", "resp\n', 2: b'{"query": "q", "responses": []}\n', 3: b"\xff\n"},
    )
    output = tmp_path / "out.jsonl"
    result = judge_all(fake_judge(first_wins, context=8192), source, output)
    assert (result.rows, result.errors) == (7, 5)
    rows = loaded(output)
    assert [row["line"] for row in rows] == list(range(1, 8))
    assert [row["error"] is None for row in rows] == [True, False, False, False, False, False, True]
    reasons = [row["error"]["reason"] for row in rows if row["error"]]
    for reason, expected in zip(
        reasons,
        ("not JSON", "at least one", "not UTF-8", "40", "do not fit the model's context of 8,192"),
    ):
        assert expected in reason
    assert all(row["error"]["line"] == row["line"] for row in rows if row["error"])
    # Where the comparison could be parsed, its texts are in the row, for `grm report`.
    assert [row.get("query") for row in rows[1:6]] == [None, None, None, "q", "q"]


def test_killed_and_resumed_the_output_is_the_same(tmp_path, request):
    """SIGKILL at random moments of a run over 200 rows and 3 bad ones; the run resumes.

    20 kills with --run slow.
    """
    most = 20 if "slow" in request.config.getoption("--run") else 4
    source = write_rows(tmp_path / "in.jsonl", ROWS, BAD)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}

    def run(output, pause):
        return subprocess.Popen(
            [sys.executable, HERE / "slow_run.py", source, output, str(pause)], env=environment
        )

    assert run(whole, 0).wait() == 1
    rng, kills, store = random.Random(0), 0, tmp_path / "out.jsonl.part"
    size = 0
    while kills < most:
        process = run(output, 0.03)
        # Kill while rows are written, not while Python starts: wait for the first new row.
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if store.exists() and store.stat().st_size > size:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, f"the run ended before kill {kills}: make it slower"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        size = store.stat().st_size
    assert not output.exists()
    assert run(output, 0).wait() == 1
    assert loaded(output) == loaded(whole)
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "whole.jsonl",
    ]


def test_a_torn_last_line_is_dropped_at_any_byte(tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:4]), tmp_path / "out.jsonl"
    judge = fake_judge(first_wins)
    judge_all(judge, source, output)
    whole = output.read_bytes()
    output.unlink()
    header = header_of(judge, source, tmp_path / "header")
    store = header + whole
    for cut in range(0, len(store), 997):
        (tmp_path / "out.jsonl.part").write_bytes(store[:cut])
        judge_all(judge, source, output, existing="resume")
        assert output.read_bytes() == whole
        output.unlink()


def header_of(judge, source, folder):
    """Returns the header line of a run's OUT.part."""
    folder.mkdir()

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    stream, judge.stream = judge.stream, stop
    with pytest.raises(Stop):
        judge_all(judge, source, folder / "out.jsonl")
    judge.stream = stream
    return (folder / "out.jsonl.part").read_bytes()


def test_a_run_killed_between_its_last_two_steps_can_be_resumed(tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:4]), tmp_path / "out.jsonl"
    judge = fake_judge(first_wins)
    judge_all(judge, source, output)
    whole = output.read_bytes()
    header = header_of(judge, source, tmp_path / "header")
    (tmp_path / "out.jsonl.part").write_bytes(
        header + whole
    )  # OUT is written, OUT.part not yet removed
    assert judge_all(judge, source, output, existing="resume").resumed == 4
    assert output.read_bytes() == whole and not (tmp_path / "out.jsonl.part").exists()


def test_earlier_output_is_never_lost_or_mixed(tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:2]), tmp_path / "out.jsonl"
    judge = fake_judge(first_wins)
    judge_all(judge, source, output)
    with pytest.raises(FileExistsError, match="--resume.*--overwrite"):
        judge_all(judge, source, output)
    assert judge_all(judge, source, output, existing="resume").resumed == 2
    with pytest.raises(ValueError, match="was judged with seed = 0, now it is 1: .*--overwrite"):
        judge_all(judge, source, output, existing="resume", seed=1)
    assert judge_all(judge, source, output, existing="overwrite", seed=1).resumed == 0
    assert loaded(output)[0]["seed"] == 1
    (tmp_path / "out.jsonl.part").write_bytes(header_of(judge, source, tmp_path / "header"))
    with pytest.raises(ValueError, match="begun with seed = 0, now it is 2"):
        judge_all(judge, source, output, existing="resume", seed=2)
    write_rows(source, ROWS[:3])
    with pytest.raises(ValueError, match="begun with input"):
        judge_all(judge, source, output, existing="resume")


def test_a_finished_output_of_another_run_is_refused(tmp_path):
    source, output = (
        write_rows(tmp_path / "in.jsonl", ROWS[:2], {1: b"{\n"}),
        tmp_path / "out.jsonl",
    )
    judge_all(fake_judge(first_wins), source, output)
    assert judge_all(fake_judge(first_wins), source, output, existing="resume").resumed == 3
    with pytest.raises(
        ValueError, match="with template = 'compact/judge@.*now it is 'compact/single.*--overwrite"
    ):
        judge_all(
            fake_judge(first_wins, template="compact/single"), source, output, existing="resume"
        )
    renamed = [row | {"template": row["template"] and "old_name@" + row["template"].split("@")[1]}
               for row in loaded(output)]  # fmt: skip
    output.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    assert judge_all(fake_judge(first_wins), source, output, existing="resume").resumed == 3
    with pytest.raises(ValueError, match="holds 3 comparisons, now there are 1: .*--overwrite"):
        judge_all(fake_judge(first_wins), source, output, existing="resume", limit=1)
    write_rows(source, [ROWS[0], ROWS[2], ROWS[1]])
    with pytest.raises(
        ValueError,
        match=r"from another input .*choose another output \(grm eval: --out\), or start over with "
        "--overwrite",
    ):
        judge_all(fake_judge(first_wins), source, output, existing="resume")
    # An earlier version did not write `input`: its rows are accepted if their ids agree.
    rows = [
        {name: value for name, value in row.items() if name != "input"} for row in loaded(output)
    ]
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="from another input"):
        judge_all(fake_judge(first_wins), source, output, existing="resume")
    write_rows(source, ROWS[:2], {1: b"{\n"})
    assert judge_all(fake_judge(first_wins), source, output, existing="resume").resumed == 3


def counting(judged):
    """A judge that adds the responses of every critique to `judged`."""

    def write(responses, key):
        judged.append(tuple(responses))
        return first_wins(responses, key)

    return fake_judge(write)


def test_a_finished_output_is_extended_by_the_rows_that_it_lacks(tmp_path):
    """A larger --limit keeps what is judged, and the output is that of one run."""
    source = write_rows(tmp_path / "in.jsonl", ROWS[:9], {1: b"{\n"})
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    judge_all(counting(once := []), source, whole)
    judge_all(counting(judged := []), source, output, limit=4)
    assert judge_all(counting(judged), source, output, "resume", limit=7).resumed == 4
    result = judge_all(counting(judged), source, output, "resume")
    assert (result.rows, result.resumed, result.errors) == (10, 7, 1)
    assert output.read_bytes() == whole.read_bytes() and judged == once
    rows = output.read_text().splitlines(keepends=True)
    output.write_text("".join(rows[:3] + rows[5:]))  # rows that someone removed
    assert judge_all(counting([]), source, output, "resume").resumed == 8
    assert output.read_bytes() == whole.read_bytes()


def test_a_finished_output_of_other_settings_is_not_extended(tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:4]), tmp_path / "out.jsonl"
    judge_all(fake_judge(first_wins), source, output, limit=2)
    before = output.read_bytes()
    with pytest.raises(IdentityMismatch, match="was judged with seed = 0, now it is 1"):
        judge_all(fake_judge(first_wins), source, output, "resume", seed=1)
    output.write_bytes(b"".join(reversed(before.splitlines(keepends=True))))
    with pytest.raises(IdentityMismatch, match="from another input"):
        judge_all(fake_judge(first_wins), source, output, "resume")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl", "out.jsonl"]


def test_an_unfinished_run_may_end_with_another_limit(tmp_path):
    source, output = write_rows(tmp_path / "in.jsonl", ROWS[:6]), tmp_path / "out.jsonl"

    def stopping(responses, key):
        if responses[0] == ROWS[3]["responses"][0]:
            raise KeyboardInterrupt
        return first_wins(responses, key)

    with pytest.raises(KeyboardInterrupt):
        judge_all(fake_judge(stopping), source, output, limit=5, chunk=1)
    with pytest.raises(IdentityMismatch, match="part holds row 3, .* 2 rows .* the same --limit"):
        judge_all(fake_judge(first_wins), source, output, "resume", limit=2)
    assert judge_all(fake_judge(first_wins), source, output, "resume").resumed == 3
    judge_all(fake_judge(first_wins), source, tmp_path / "whole.jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_runs_that_differ_in_the_template_of_single_responses_are_not_mixed(tmp_path):
    """A judge's own template, and the same one from the command line."""
    rows = [{"query": "q", "responses": ["a"]}]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    named, own = (
        fake_judge(lambda responses, key: well_formed([1]), single=single)
        for single in (None, "compact/single_binary")
    )
    judge_all(own, source, output)
    assert loaded(output)[0]["template"].startswith("compact/single_binary@")
    assert judge_all(own, source, output, "resume").resumed == 1
    with pytest.raises(ValueError, match="template"):
        judge_all(named, source, output, "resume")
    assert run_identity(own, Options(), "") != run_identity(named, Options(), "")


def test_an_unfinished_run_can_be_read_while_it_is_written(tmp_path):
    path = tmp_path / "out.jsonl.part"
    with RunStore(path, {"input": "x"}, key="line") as store:
        store.append(1, {"line": 1, "critiques": []})
        with open(path, "ab") as file:
            file.write(b'{"line": 2, "cri')
        assert [row["line"] for row in read_judged_rows(path)] == [1]


@pytest.mark.parametrize("name", ["out.jsonl.part", "parts"])
def test_an_error_loses_no_row_that_is_judged(tmp_path, name):
    """The rows of a store in a folder are appended in chunks."""
    rows = list(read_rows(write_rows(tmp_path / "in.jsonl", ROWS[:5])))

    def stopping(responses, key):
        if responses[0] == ROWS[3]["responses"][0]:
            raise KeyboardInterrupt
        return first_wins(responses, key)

    judge, options = fake_judge(stopping), Options(k=2)
    identity = run_identity(judge, options, "")
    with RunStore(tmp_path / name, identity, key="line") as store:
        with pytest.raises(KeyboardInterrupt):
            judge_into(store, judge, rows, options, identity, RunConfig())
    with RunStore(tmp_path / name, identity, key="line") as store:
        assert sorted(store) == [1, 2, 3]


# --- the command line ---


def test_the_exit_status_is_1_with_error_rows(tmp_path, command, capsys):
    good, bad = (
        write_rows(tmp_path / "good.jsonl", ROWS[:3]),
        write_rows(tmp_path / "bad.jsonl", ROWS[:3], {1: b"{\n"}),
    )
    assert command(good, tmp_path / "good.out", "--k", 2) == 0
    output = capsys.readouterr().err
    assert f"{tmp_path}/good.out: 3 rows\nparse rate 100.0%" in output
    assert output.endswith(f"\nnext: grm report {tmp_path}/good.out\n")
    assert command(bad, tmp_path / "bad.out", "--k", 2) == 1
    assert "4 rows, 1 of them errors" in capsys.readouterr().err


def test_wrong_arguments_are_errors_before_the_weights_load(tmp_path, command, capsys):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    for argv, message in [
        ((tmp_path / "none.jsonl", tmp_path / "o"), "no input file"),
        ((source, tmp_path / "o", "--k", 0), "k = 0"),
        ((source, tmp_path / "o", "--mesh", "fsdp:8"), "data=1,fsdp=8,tensor=1"),
        ((source, tmp_path / "o", "--principles", tmp_path / "none.txt"), "none.txt"),
        ((source, source), "exists: pass --resume"),
    ]:
        assert command(*argv) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        command(source, tmp_path / "o", "--format", "csv")
    assert error.value.code == 2


def test_out_of_memory_is_a_one_line_error(tmp_path, command, capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError("one row of prompt 512 needs 3 GiB: use more devices on `tensor`")

    monkeypatch.setattr("grm_jax.judging.run.judge_file", full)
    assert command(write_rows(tmp_path / "in.jsonl", ROWS[:2]), tmp_path / "out.jsonl") == 2
    assert (
        capsys.readouterr().err
        == "grm judge: one row of prompt 512 needs 3 GiB: use more devices on `tensor`\n"
    )


def test_a_file_without_judged_rows_is_an_error(tmp_path):
    for text, remedy in (
        ('{"line": \n', "name an output of `grm judge`"),
        ('{"query": "q"}\n', "not its input"),
    ):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(ValueError, match=remedy):
            list(read_judged_rows(tmp_path / "x.jsonl"))


def test_an_interrupted_run_prints_how_to_resume(tmp_path, command, capsys, monkeypatch):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    monkeypatch.setattr(
        "grm_jax.judging.run.judge_file", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert command(source, tmp_path / "out.jsonl") == 130
    assert "--resume resumes the run" in capsys.readouterr().err


def test_principles_from_a_file(tmp_path, command):
    source = write_rows(tmp_path / "in.jsonl", ROWS[:1])
    (tmp_path / "p.txt").write_text("1. Rhyme (100%): it rhymes")
    assert (
        command(source, tmp_path / "out.jsonl", "--principles", tmp_path / "p.txt", "--k", 1) == 0
    )
    (row,) = loaded(tmp_path / "out.jsonl")
    assert row["principles"].startswith("given@") and row["template"].startswith(
        "compact/given_principles@"
    )
