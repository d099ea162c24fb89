"""Tests that killed and resumed runs are bit-identical to uninterrupted ones."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import resume_child

from grm_jax.training import checkpoint, loop, metrics

STAGES = ("rft", "rl", "meta_rm")
CHILD = Path(resume_child.__file__)


def start(workdir, *arguments):
    env = {**os.environ, "XLA_FLAGS": ""}  # one device
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(workdir), *arguments],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        _, errors = process.communicate(timeout=560)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors[-3000:]


def rows_in(workdir, stage):
    return metrics.read_jsonl(workdir / stage / "metrics.jsonl")


def num_rows(workdir):
    return sum(len(rows_in(workdir, stage)) for stage in STAGES)


def run_with_kills(workdir, kills, rng, *arguments):
    """Kills the run several times, each after a random number of steps, then completes it."""
    kill_rows = []
    for _ in range(kills):
        process, before = start(workdir, *arguments), num_rows(workdir)
        goal = before + rng.randint(1, 5)
        while process.poll() is None and num_rows(workdir) < goal:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kill_rows.append(num_rows(workdir))
        process.communicate()
    finish(start(workdir, *arguments))
    return kill_rows


def leaves(folder):
    """Returns the step and the arrays of a stage's last checkpoint."""
    import orbax.checkpoint as ocp

    with checkpoint.Checkpoints(folder / "checkpoints") as store:
        step = store.steps()[-1]
    manager = ocp.CheckpointManager(folder / "checkpoints", item_names=("state", "record"))
    with manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
        return step, manager.restore(step, args=args)


def compare(one, two, stages=STAGES):
    for stage in stages:
        (step_a, a), (step_b, b) = leaves(one / stage), leaves(two / stage)
        assert step_a == step_b == loop.read_result(one / stage)["steps"]
        assert a.record == b.record, stage
        assert a.state.keys() == b.state.keys() and len(a.state) > 20
        for name in a.state:
            np.testing.assert_array_equal(
                np.asarray(a.state[name]), np.asarray(b.state[name]), err_msg=f"{stage} {name}"
            )
        logs = [metrics.read_jsonl(folder / stage / "metrics.jsonl") for folder in (one, two)]
        assert [row["step"] for row in logs[1]] == list(range(1, step_a + 1))
        assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
        assert all(row["update_norm"] > 0 and row["grad_norm"] > 0 for row in logs[0]), stage


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(workdir))
    return workdir


def test_a_killed_and_resumed_run_is_bit_identical(uninterrupted, tmp_path):
    assert run_with_kills(tmp_path, 3, random.Random(0))
    compare(uninterrupted, tmp_path)


@pytest.mark.slow
def test_a_killed_and_resumed_run_with_lora_on_an_int8_base_is_bit_identical(tmp_path):
    finish(start(tmp_path / "whole", "lora"))
    assert run_with_kills(tmp_path / "killed", 2, random.Random(0), "lora")
    compare(tmp_path / "whole", tmp_path / "killed")


KILLS = 10


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ten_kills_in_each_stage(uninterrupted, tmp_path, stage):
    """Kills and resumes runs of the stage until it was killed ten times; compares each result."""
    rng, kill_steps, runs = random.Random(stage), [], 0
    while len(kill_steps) < KILLS:
        workdir = tmp_path / str(runs)
        runs += 1
        shutil.copytree(uninterrupted, workdir)
        for later in STAGES[STAGES.index(stage) :]:
            shutil.rmtree(workdir / later)
        for target in sorted(rng.sample(range(8), 5)):
            process = start(workdir)
            while process.poll() is None and len(rows_in(workdir, stage)) < target:
                time.sleep(0.005)
            # Target 0 kills the run during start-up or its first steps.
            time.sleep(rng.random() * (0.1 if target else 10))
            if process.poll() is None and not loop.is_done(workdir / stage):
                process.send_signal(signal.SIGKILL)
                kill_steps.append(len(rows_in(workdir, stage)))
            process.kill()
            process.communicate()
        finish(start(workdir))
        compare(uninterrupted, workdir)
    print(f"{stage}: killed after steps {kill_steps}, in {runs} runs")


def test_log_probs_of_sampler_and_trainer_agree_in_every_step(uninterrupted):
    rows = metrics.read_jsonl(uninterrupted / "rl" / "metrics.jsonl")
    assert len(rows) == 8
    assert max(row["gap_max"] for row in rows) <= 1e-4
