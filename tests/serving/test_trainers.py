"""Trainers as they are released, on rewards of a running server.

    GRM_TRL=PYTHON GRM_TUNIX=PYTHON GRM_VERL=PYTHON GRM_OPENRLHF=PYTHON \\
        pytest --run peers tests/serving/test_trainers.py

Each variable is an interpreter with that trainer installed and what docs/serving.md lists.
"""

import dataclasses
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from fake_judge import well_formed
from toy_server import Scores, serving, toy_judge, toy_service

from grm_jax.judging.groups import Group
from grm_jax.judging.rewards import score

QUESTION = [{"role": "user", "content": "name a moon"}]
ANSWERS = ("io is a moon", "luna")
HOSTS = Path(__file__).parent / "hosts"
ROOT = HOSTS.parents[2]
pytestmark = pytest.mark.peers


class Single(Scores):
    """Decodes any completion as a critique of one response."""

    def decode(self, ids):
        return well_formed([1 + sum(map(int, ids)) % 10])


def run(variable: str, script: str, *args, launcher: str | None = None):
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: set it to an interpreter with the trainer")
    python = shlex.split(os.environ[variable])
    python += ["-m", *shlex.split(launcher)] if launcher else []
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [*python, str(HOSTS / script), *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def rows(done) -> list[dict]:
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def test_trl_trains_5_steps(server):
    logged = rows(run("GRM_TRL", "trl_grpo.py", server.url, 5))
    steps = [row for row in logged if "rewards/judge/mean" in row]
    assert len(steps) == 5
    for row in steps:
        assert 1 <= row["rewards/judge/mean"] <= 10
        assert (row["judge/failed"], row["judge/unparsed"]) == (0, 0)
    assert logged[-1]["statuses"] == ["scored"] * 4


def test_trl_refuses_a_group_that_is_split_over_processes(server):
    """2 processes with 3 samples each: 6 divides by the 2 generations, so TRL accepts it."""
    launcher = "torch.distributed.run --nproc-per-node 2"
    done = run("GRM_TRL", "trl_grpo.py", server.url, 1, 3, launcher=launcher)
    assert done.returncode != 0
    assert "a group of 2 responses is split over processes" in done.stderr
    assert "a multiple of 2, such as 4" in done.stderr


def test_tunix_trains_5_steps(server):
    *judged, end = rows(run("GRM_TUNIX", "tunix_grpo.py", server.url, 5))
    assert end["steps"] == 5 and len(judged) == 5
    for i, batch in enumerate(judged):
        assert batch["statuses"] == ["scored"] * 4
        values = [value for group in batch["rewards"] for value in group]
        assert end["logged"]["judge"][i] == pytest.approx(sum(values) / 4)
        assert end["logged"]["min"][i] == min(values) and end["logged"]["max"][i] == max(values)


def test_verl_gets_the_rewards_of_score_in_process(server):
    (expected,) = score([Group(QUESTION, ANSWERS)], server.service.judge)
    collected = rows(run("GRM_VERL", "verl_rewards.py", server.url))
    assert [row["by"] for row in collected] == ["by_server", "in_process"]
    for row in collected:
        assert [result["reward_score"] for result in row["results"]] == expected.values


def test_openrlhf_gets_the_rewards_of_score_in_process():
    judge = dataclasses.replace(toy_judge(), tokenizer=Single())
    with serving(toy_service(judge)) as server:
        groups = [Group(QUESTION[0]["content"], [answer], "io") for answer in ANSWERS]
        expected = [result.values for result in score(groups, server.service.judge)]
        fetched = rows(run("GRM_OPENRLHF", "openrlhf_rewards.py", server.url))
    assert [row["by"] for row in fetched] == ["http", "http", "file", "file"]
    assert [row["reward"] for row in fetched] == expected * 2
