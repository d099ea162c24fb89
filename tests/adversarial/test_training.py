"""Faults of training: damaged files, kills between two writes, two runs at once, full disks."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
import toy_training

from grm_jax import locks
from grm_jax.training import checkpoint, loop, metrics, workdir

CHILD = Path(toy_training.__file__)


def start(folder, **options):
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), json.dumps(options)],
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal: a suite that runs in the background ignores Ctrl-C, and so do children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process):
    """Returns (exit status, stdout, stderr)."""
    output = process.communicate(timeout=300)
    return process.returncode, *output


def wait_until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "the training does not start"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training with three checkpoints, and its numbers."""
    folder = tmp_path_factory.mktemp("trained") / "toy"
    return folder, toy_training.train(folder)


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "toy")
    return tmp_path / "toy"


# ---------------------------------------------------------------- two runs, Ctrl-C, full disks


def test_a_second_training_in_a_folder_is_refused_and_ctrl_c_saves_the_first(tmp_path, trained):
    options = {"steps": 4000, "save_every": 4000, "sleep": 0.05}
    first = start(tmp_path / "toy", **options)
    wait_until(lambda: len(metrics.read_jsonl(tmp_path / "toy" / "metrics.jsonl")) >= 2)
    with pytest.raises(locks.InUse, match=f"the training of toy on host .*, pid {first.pid}, "):
        toy_training.train(tmp_path / "toy", **options)
    first.send_signal(signal.SIGINT)
    status, output, errors = finish(first)
    assert status == 130 and "interrupted: saves after this step" in errors
    assert "the state is saved. Run the same command again to resume" in output
    with checkpoint.Checkpoints(tmp_path / "toy" / "checkpoints") as store:
        (step,) = store.steps()
    assert step == len(metrics.read_jsonl(tmp_path / "toy" / "metrics.jsonl"))
    resumed = toy_training.train(tmp_path / "toy", steps=step + 2)
    np.testing.assert_array_equal(resumed, toy_training.train(tmp_path / "b", steps=step + 2))


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    process = start(tmp_path, steps=3, pause=3600, save_every=1)
    wait_until((tmp_path / "pausing").exists)
    process.send_signal(signal.SIGINT)
    assert any("interrupted: saves after this step" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    status, _, errors = finish(process)
    assert status == 130
    assert "interrupted again: not saved. Run the same command again to resume" in errors


def test_a_full_disk_is_one_line_and_the_older_checkpoint_survives(tmp_path):
    size = 20_000
    toy_training.train(tmp_path, steps=2, size=size)
    for path in (tmp_path / "result.json", *(tmp_path / "final").rglob("*")):
        if path.is_file():
            path.unlink()
    status, output, errors = finish(start(tmp_path, size=size, fsize=30_000))
    (line,) = [line for line in output.splitlines() if not line.startswith("toy")]
    assert status == 1
    # Threads of the storage library that are still running may print tracebacks of their own.
    assert not re.search(r'File "[^"]*/grm_jax/(?!\.venv)', errors)
    assert line.startswith(f"SaveError: {tmp_path}/checkpoints: a checkpoint could not be written")
    # The reason is of the storage thread that failed first: "File too large", mostly.
    assert re.search(r"written \(\S.*\); the newest checkpoint is 2\. Free space", line)
    resumed = toy_training.train(tmp_path, size=size)
    expected = toy_training.train(tmp_path / "b", size=size)
    np.testing.assert_array_equal(resumed, expected)


def test_a_folder_that_is_not_writable_is_refused_before_anything_else(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(locks.os, "open", read_only)
    monkeypatch.setattr(loop, "_restore", lambda *_: pytest.fail("the run began"))
    monkeypatch.setattr(locks.filelock.UnixFileLock, "_acquire", read_only)
    with pytest.raises(OSError, match=f"{tmp_path} is not writable: Read-only file system"):
        toy_training.train(tmp_path)


def test_all_processes_of_a_run_fail_with_process_0(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.jax, "process_index", lambda: 1)
    answer = {"fault": "x is in use: training on host a, pid 1", "in_use": "yes"}
    monkeypatch.setattr(workdir.inputs, "from_process_0", lambda _: answer)
    with pytest.raises(locks.InUse, match="host a, pid 1"), workdir.lock(tmp_path):
        raise AssertionError
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- damaged files


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(folder):
    """Flips bits in every file."""
    for file in files_of(folder):
        data = bytearray(file.read_bytes())
        data[len(data) // 2 :] = bytes(b ^ 0x15 for b in data[len(data) // 2 :])
        file.write_bytes(data)


def test_two_damaged_checkpoints_fall_back_to_the_third_and_are_both_named(copy, trained, caplog):
    (copy / "result.json").unlink()
    for step in (4, 6):
        damage(copy / "checkpoints" / str(step))
    with caplog.at_level(logging.WARNING):
        numbers = toy_training.train(copy)
    np.testing.assert_array_equal(numbers, trained[1])
    for step in (4, 6):
        assert f"checkpoint {copy}/checkpoints/{step} is unreadable" in caplog.text
    assert [row["step"] for row in metrics.read_jsonl(copy / "metrics.jsonl")] == [*range(1, 7)]


def test_damaged_checkpoints(trained, tmp_path_factory, cases, record_property):
    """Random damage of a checkpoint: the saved numbers are restored, or none of this checkpoint."""
    folder, numbers = trained
    abstract = toy_training.abstract_params(folder)

    def draw():
        files = files_of(folder / "final")
        for i, rng in cases(fast=12, full=300):
            copy = tmp_path_factory.mktemp("damaged") / "final"
            shutil.copytree(folder / "final", copy)
            file = copy / rng.choice(files).relative_to(folder / "final")
            if rng.random() < 0.15:
                file.unlink()
            else:
                file.write_bytes(fuzz.change_bytes(rng, file.read_bytes(), rng.choice([1, 1, 3])))
            yield f"{i}: {file.relative_to(copy)}", copy

    def check(copy):
        try:
            with checkpoint.Checkpoints(copy, keep=1) as store:
                restored = store.restore(abstract)
        except checkpoint.CheckpointError as error:
            raise ValueError(str(error)) from error
        assert restored is None or np.array_equal(restored[1]["w"], numbers), "other numbers"

    fuzz.run("damaged checkpoints", draw(), check, record_property)


def test_a_changed_record_makes_its_checkpoint_unreadable(copy, trained, caplog):
    (copy / "result.json").unlink()
    record = copy / "checkpoints/6/record/metadata"
    record.write_text(record.read_text().replace('{"data": "a"}', '{"data": "b"}'))
    np.testing.assert_array_equal(toy_training.train(copy), trained[1])
    assert f"{copy}/checkpoints/6 is unreadable" in caplog.text
    assert "its record is damaged" in caplog.text


def test_final_weights_of_another_end_of_the_stage_are_replaced(copy, trained):
    """The stage ends again at the same step with other numbers; final/ has the new ones."""
    shutil.rmtree(copy / "checkpoints")
    (copy / "result.json").unlink()
    numbers = toy_training.train(copy, lr=0.5)
    assert not np.array_equal(numbers, trained[1])
    loaded = loop.load_params(copy, toy_training.abstract_params(copy))
    np.testing.assert_array_equal(loaded["w"], numbers)
    assert loop.saved_weights(copy) == loop.read_result(copy)["weights"]


def test_final_weights_that_are_not_those_of_the_result_are_refused(copy):
    result = loop.read_result(copy)
    loop.write_result(copy, {**result, "weights": "0123"})
    with pytest.raises(checkpoint.CheckpointError, match="final holds other parameters than those"):
        loop.load_params(copy, toy_training.abstract_params(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": NaN}', "\x00" * 40])
def test_a_damaged_result_counts_as_none_and_the_stage_ends_again(text, copy, trained):
    before = loop.read_result(copy)
    (copy / "result.json").write_text(text)
    assert not loop.is_done(copy)
    np.testing.assert_array_equal(toy_training.train(copy), trained[1])
    after = loop.read_result(copy)
    kept = ("stage", "steps", "identity", "weights")
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}
    assert after["last"] == before["last"]


@pytest.mark.parametrize("line", ["{", "[1]", "\x00\x00", '{"step": 1e999}', "7", '{"loss": 1}'])
def test_a_broken_line_of_the_metrics_does_not_drop_later_ones(line, copy, caplog):
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:], '{"step": 7, "lo']))
    with caplog.at_level(logging.WARNING):
        rows = metrics.read_jsonl(path)
    steps = [row["step"] for row in rows if "step" in row]
    assert steps == [1, 2, 4, 5, 6]
    assert ("line 3 is damaged" in caplog.text) == (line != '{"loss": 1}')
    with metrics.MetricLog(copy, "metrics", 5, tensorboard=False) as log:
        log.write(6, {"loss": 0.5})
    assert [row["step"] for row in metrics.read_jsonl(path)] == [1, 2, 4, 5, 6]


def test_bytes_that_are_no_text_in_the_metrics_are_skipped(copy):
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"\xff\xfe{}", *lines[2:], b""]))
    assert [row["step"] for row in metrics.read_jsonl(path)] == [1, 3, 4, 5, 6]
