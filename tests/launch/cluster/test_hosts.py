"""Two hosts of four devices train like one host of eight; a crash or SIGTERM reaches both.

Takes minutes: pytest --run slow tests/launch/cluster/test_hosts.py
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ports
import pytest

from grm_jax.training import checkpoint, metrics

HERE = Path(__file__).parent
STEPS = 20
STOPPED, PEER_LOST = 75, 70

pytestmark = pytest.mark.slow


def start(workdir: Path, hosts: int) -> list[subprocess.Popen]:
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        str(HERE / "hosts_child.py"),
        "--config",
        str(HERE.parent / "tiny_spct.py"),
        "--workdir",
        str(workdir),
    ]
    command += [
        "--emulate",
        str(8 // hosts),
        "--compilation_cache",
        str(workdir.parent / "compiled"),
    ]
    if hosts > 1:
        command += [
            "--coordinator",
            f"127.0.0.1:{ports.free_pair()}",
            "--num_processes",
            str(hosts),
        ]
    processes = []
    for host in range(hosts):
        output = open(workdir.parent / f"{workdir.name}.{host}.log", "a")  # noqa: SIM115
        number = ["--process_id", str(host)] if hosts > 1 else []
        processes.append(
            subprocess.Popen([*command, *number], env=env, stdout=output, stderr=output)
        )
    return processes


def finish(processes, timeout: float = 900) -> list[int]:
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def log(workdir: Path, host: int) -> str:
    return (workdir.parent / f"{workdir.name}.{host}.log").read_text()


def rows(workdir: Path) -> list[dict]:
    return metrics.read_jsonl(workdir / "rl" / "metrics.jsonl")


def wait_for(workdir: Path, steps: int, processes, timeout: float = 600) -> None:
    deadline = time.monotonic() + timeout
    while len(rows(workdir)) < steps:
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, log(
            workdir, 0
        )[-3000:]
        time.sleep(0.05)


def saved_steps(workdir: Path) -> list[int]:
    with checkpoint.Checkpoints(workdir / "rl" / "checkpoints") as store:
        return list(store.steps())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def two(folder):
    assert finish(start(folder / "two", 2)) == [0, 0], log(folder / "two", 0)[-3000:]
    return rows(folder / "two")


def test_two_hosts_of_four_devices_train_as_one_of_eight(folder, two):
    assert finish(start(folder / "one", 1)) == [0], log(folder / "one", 0)[-3000:]
    one = rows(folder / "one")
    assert len(one) == len(two) == STEPS
    assert len({row["reward"] for row in one}) > 5  # rewards vary
    for name in ("loss", "kl", "reward", "entropy"):
        np.testing.assert_allclose(
            [row[name] for row in two], [row[name] for row in one], atol=1e-5, err_msg=name
        )


def test_a_killed_host_ends_the_other_and_both_resume_exactly(folder, two):
    workdir = folder / "killed"
    processes = start(workdir, 2)
    wait_for(workdir, 8, processes)
    processes[1].send_signal(signal.SIGKILL)
    assert finish(processes, 120)[0] == PEER_LOST
    assert "process 1" in log(workdir, 0)
    assert finish(start(workdir, 2)) == [0, 0], log(workdir, 0)[-3000:]
    again = rows(workdir)
    assert [row["step"] for row in again] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in again] == [row["loss"] for row in two]


@pytest.mark.parametrize("host", [0, 1])
def test_sigterm_to_one_host_saves_the_same_step_on_both(folder, two, host):
    workdir = folder / f"terminated{host}"
    processes = start(workdir, 2)
    wait_for(workdir, 7, processes)
    processes[host].send_signal(signal.SIGTERM)
    assert finish(processes, 120) == [STOPPED, STOPPED], log(workdir, 0)[-3000:]
    last = len(rows(workdir))
    assert last >= 7 and saved_steps(workdir)[-1] == last
    assert finish(start(workdir, 2)) == [0, 0], log(workdir, 0)[-3000:]
    assert [row["loss"] for row in rows(workdir)] == [row["loss"] for row in two]
