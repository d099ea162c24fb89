"""Commands killed at random moments, and several commands on one output at once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grm_jax import cli as grm
from grm_jax.judging.codec import read_judged_rows

HERE = Path(__file__).parent
PATH = os.pathsep.join(map(str, (HERE.parent / "judging", HERE.parents[1])))
START_SECONDS = 300


def started(argv, script=HERE / "slow_command.py"):
    command = [sys.executable, *([script] if script else ["-m", "grm_jax.cli"]), *argv]
    return subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": PATH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process, seconds=300):
    """Returns the exit status and the lines of stderr; a process that hangs fails the test."""
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors.splitlines()


def kill(argv, folder, rng, longest, script=HERE / "slow_command.py"):
    """Starts a command, and kills it at a random moment after it has stored something new.

    Returns whether it was killed; False if it ended by itself.
    """
    sizes = lambda: {p: p.stat().st_size for p in folder.rglob("*.part") if p.is_file()}
    process, before = started(argv, script), sizes()
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and sizes() == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, longest))
    if process.poll() is not None:
        status, errors = finished(process)
        assert status == 0, errors
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


def rows_file(path, count):
    rows = [{"query": f"Question {i}?", "responses": [f"a {i}", "b"]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def left_in(folder):
    """Names in a folder, without what a kill left of the file of a run's cost."""
    return sorted(p.name for p in folder.iterdir() if ".cost.json" not in p.name)


# ---------------------------------------------------------------- kills


@pytest.mark.slow
def test_a_judge_killed_60_times(tmp_path):
    source, rng = rows_file(tmp_path / "in.jsonl", 500), random.Random(0)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    argv = lambda pause, out: [pause, "judge", source, out, "--model", "m", "--k", 2, "--quiet"]
    assert finished(started(argv(0, whole)))[0] == 0
    kills = 0
    while kills < 60:
        killed = kill([*argv(0.004, output), "--resume"], tmp_path, rng, 0.06)
        assert killed, f"the run ended before kill {kills}: make it slower"
        kills += 1
    assert finished(started([*argv(0, output), "--resume"]))[0] == 0
    assert output.read_bytes() == whole.read_bytes()
    assert left_in(tmp_path) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


@pytest.mark.slow
def test_an_evaluation_killed_20_times(tmp_path):
    rng = random.Random(1)

    def argv(pause, out):
        options = "--benchmark world --data . --model m --k 2 --limit 150 --draws 5 --quiet"
        return [pause, "eval", *options.split(), "--template", "compact", "--out", out]

    def results_of(folder):
        """The results without the seconds that judging took."""
        entries = json.loads((folder / "results.json").read_text())
        for entry in entries:
            del entry["cost"]["seconds"]
        return entries

    assert finished(started(argv(0, tmp_path / "whole")))[0] == 0
    kills = 0
    while kills < 20:
        killed = kill(argv(0.006, tmp_path / "out"), tmp_path, rng, 0.12)
        assert killed, f"the run ended before kill {kills}: make it slower"
        kills += 1
    assert finished(started(argv(0, tmp_path / "out")))[0] == 0
    for name in ("world.jsonl", "world.greedy.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert results_of(tmp_path / "out") == results_of(tmp_path / "whole")
    assert left_in(tmp_path / "out") == left_in(tmp_path / "whole")


@pytest.mark.slow
def test_a_judge_with_weights_killed_4_times(tmp_path):
    from flax import nnx

    from grm_jax import checkpoints
    from grm_jax.data.world.vocabulary import SIZE, vocabulary_path
    from grm_jax.models import build_model, get_config

    model, rng = tmp_path / "hf", random.Random(2)
    config = get_config("tiny_gemma2", vocab_size=SIZE, max_length=512)
    checkpoints.save(build_model(config, nnx.Rngs(0)), model)
    shutil.copy(vocabulary_path(), model / "tokenizer.model")
    source = rows_file(tmp_path / "in.jsonl", 60)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"

    def argv(out):
        options = ["--template", "compact", "--k", 2, "--max_new_tokens", 60, "--quiet"]
        return ["judge", source, out, "--model", model, *options, "--chunk", 4]

    assert finished(started(argv(whole), None))[0] == 0
    kills = sum(kill([*argv(output), "--resume"], tmp_path, rng, 0.2, None) for _ in range(4))
    assert kills == 4
    assert finished(started([*argv(output), "--resume"], None))[0] == 0
    assert output.read_bytes() == whole.read_bytes()


# ---------------------------------------------------------------- several processes at once


def test_two_judges_and_a_report_on_one_output(tmp_path, capsys):
    """One judge writes, the others get one line; reports of the unfinished run never fail badly."""
    source = rows_file(tmp_path / "in.jsonl", 40)
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    argv = [0.03, "judge", source, output, "--model", "m", "--k", 2, "--quiet"]
    judges = [started([*argv, *flags]) for flags in ((), ("--resume",), ("--overwrite",))]
    counts = []
    deadline = time.monotonic() + START_SECONDS
    while any(judge.poll() is None for judge in judges) and time.monotonic() < deadline:
        if part.exists() and not counts:  # the judges wait for the first reports
            [judge.send_signal(signal.SIGSTOP) for judge in judges]
        for path in (part, output):
            if path.exists():
                status = grm.main(["report", str(path), "-o", str(tmp_path / "r.html")])
                errors = capsys.readouterr().err.splitlines()
                assert status == 0 or (status == 2 and len(errors) == 1), errors
        try:
            counts.append(sum(1 for _ in read_judged_rows(part)))
        except FileNotFoundError:
            time.sleep(0.01)
        [judge.send_signal(signal.SIGCONT) for judge in judges]
    ended = [finished(judge) for judge in judges]
    assert [status for status, _ in ended].count(0) >= 1
    for status, errors in ended:
        waits = "is being written by another run|exists: pass --resume"
        assert status == 0 or (len(errors) == 1 and any(w in errors[0] for w in waits.split("|")))
    assert [row["line"] for row in read_judged_rows(output, check=True)] == list(range(1, 41))
    assert counts and left_in(tmp_path) == ["in.jsonl", "out.jsonl", "r.html"]


def test_two_evaluations_into_one_folder_lose_no_result(tmp_path):
    def argv(benchmark):
        options = f"--benchmark {benchmark} --data . --judge longest --limit 8 --draws 5"
        return ["eval", *options.split(), "--out", tmp_path / "out"]

    runs = [started(argv(name), None) for name in ("world", "world_held_out")]
    assert [finished(run)[0] for run in runs] == [0, 0]
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["benchmark"] for entry in entries] == ["world", "world_held_out"]
