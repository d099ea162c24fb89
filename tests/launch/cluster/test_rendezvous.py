"""Processes join, are absent, or crash; worker numbers from flags, GKE and TPU VMs."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import ports
import pytest

from grm_jax.hosts import rendezvous
from grm_jax.hosts.distributed import Worker, find_worker
from launch.errors import PEER_LOST, LaunchError, WorkersAbsent

ROOT = Path(__file__).resolve().parents[3]
HOST = "127.0.0.1"


@pytest.fixture
def port():
    return ports.free_pair()


def join_all(port, processes, count, timeout=60.0, on_death=lambda *_: None):
    """The result or error of `join` in each process, run as threads."""
    outcomes = {}

    def run(i):
        try:
            outcomes[i] = rendezvous.join(HOST, port, i, count, timeout, on_death)
        except LaunchError as error:
            outcomes[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in processes]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return outcomes


def test_all_processes_join(port):
    peers = join_all(port, range(4), 4)
    assert all(isinstance(p, rendezvous.Peers) for p in peers.values())
    [p.leave() for p in peers.values()]


def test_every_host_names_the_absent_processes_within_the_timeout(port):
    outcomes = join_all(port, [0, 2], 5, timeout=3.0)
    for i in (0, 2):
        assert isinstance(outcomes[i], WorkersAbsent)
        assert "processes 1, 3, 4" in str(outcomes[i]) and "did not join within 3 s" in str(
            outcomes[i]
        )


def test_an_absent_coordinator_is_named(port):
    outcome = join_all(port, [3], 4, timeout=0.5)[3]
    assert isinstance(outcome, WorkersAbsent)
    assert "process 0 did not join" in str(outcome) and f"{HOST}:{port}" in str(outcome)


def test_two_processes_with_one_number_are_refused(port):
    threads = [
        threading.Thread(target=lambda: _quietly(rendezvous.join, HOST, port, 1, 3, 60.0))
        for _ in range(2)
    ]
    [t.start() for t in threads]
    with pytest.raises(LaunchError, match="process number 1 of .* is taken"):
        rendezvous.join(HOST, port, 0, 3, 60.0)
    [t.join() for t in threads]


def _quietly(fn, *args):
    try:
        fn(*args)
    except LaunchError:
        pass


def test_a_port_in_use_is_reported(port):
    with (
        socket.create_server(("", port)),
        pytest.raises(LaunchError, match=f"cannot listen on port {port}"),
    ):
        rendezvous.join(HOST, port, 0, 2, 1.0)


CHILD = """
    import sys, time
    sys.path.insert(0, {root!r})
    from grm_jax.hosts import rendezvous
    i, port, action = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    peers = rendezvous.join("127.0.0.1", port, i, 3, 120.0)
    print("joined", flush=True)
    time.sleep(0.2 if action == "leave" else 600)
    peers.leave()
"""


def children(port, actions):
    script = textwrap.dedent(CHILD.format(root=str(ROOT)))

    def start(i, action):
        return subprocess.Popen(
            [sys.executable, "-c", script, str(i), str(port), action],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return [start(i, action) for i, action in enumerate(actions)]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_and_is_named_by_the_others(port, victim):
    started = children(port, ["stay"] * 3)
    try:
        assert [c.stdout.readline() for c in started] == ["joined\n"] * 3
        os.kill(started[victim].pid, signal.SIGKILL)
        for i, child in enumerate(started):
            if i != victim:
                _, errors = child.communicate(timeout=120)
                assert child.returncode == PEER_LOST
                assert (
                    f"process {victim} on" in errors
                    and "exited unexpectedly" in errors
                    and "Start the job again" in errors
                )
    finally:
        [c.kill() for c in started]


def test_processes_that_finish_leave_without_errors(port):
    started = children(port, ["leave"] * 3)
    assert [c.wait(timeout=120) for c in started] == [0, 0, 0]


def test_worker_from_flags():
    assert find_worker("10.0.0.2:9000", 3, 8) == Worker("10.0.0.2", 9000, 8, 3)
    assert find_worker("host", 0, 2).port == 8476


@pytest.mark.parametrize(
    "flags, error",
    [
        (("host:1", None, 2), "--process_id missing"),
        (("host:x", 0, 2), "not HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2 is not one of 0 ... 1"),
    ],
)
def test_inconsistent_worker_flags_are_refused(flags, error):
    with pytest.raises(LaunchError, match=error):
        find_worker(*flags)


def test_worker_in_a_jobset():
    pods = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "job-0.svc,job-1.svc"}
    assert find_worker(environment=pods, metadata=None) == Worker("job-0.svc", 8476, 2, 1)
    second = {
        **pods,
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "job-0.svc:8080",
    }
    assert find_worker(environment=second, metadata=None) == Worker("job-0.svc", 8476, 4, 3)


@pytest.mark.parametrize("endpoints", ["10.0.0.1,10.0.0.2", "a:0:10.0.0.1,b:1:10.0.0.2"])
def test_worker_on_a_tpu_vm(endpoints):
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": endpoints,
        "tpu-env": "TYPE: 'V4'\n",
    }
    assert find_worker(environment={}, metadata=attributes.get) == Worker("10.0.0.1", 8476, 2, 1)


def test_worker_of_the_second_slice_on_tpu_vms():
    env = (
        "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'\n"
    )
    attributes = {
        "agent-worker-number": "0",
        "worker-network-endpoints": "10.1.0.1,10.1.0.2",
        "tpu-env": env,
    }
    assert find_worker(environment={}, metadata=attributes.get) == Worker("10.0.0.9", 8476, 4, 2)


def test_a_single_machine_is_no_worker():
    assert find_worker(environment={}, metadata={}.get) is None
    assert (
        find_worker(
            environment={"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, metadata=None
        )
        is None
    )


def test_messages_are_lines_of_json(port):
    """The protocol on the wire."""
    server = threading.Thread(
        target=lambda: _quietly(rendezvous.join, HOST, port, 0, 2, 60.0, lambda *_: None)
    )
    server.start()
    for _ in range(600):
        try:
            connection = socket.create_connection((HOST, port))
            break
        except OSError:
            time.sleep(0.1)
    connection.sendall(b'{"process": 1, "host": "b"}\n')
    assert json.loads(connection.makefile().readline()) == {"all": True}
    connection.sendall(b'{"bye": 1}\n')
    connection.close()
    server.join()


JAX_CHILD = """
    import sys, time
    sys.path.insert(0, {root!r})
    from grm_jax.hosts import distributed
    worker = distributed.find_worker("127.0.0.1:" + sys.argv[2], int(sys.argv[1]), 2)
    distributed.start(worker, 240)
    import jax, jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    mesh = Mesh(jax.devices(), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    x = jax.make_array_from_callback((4,), sharding, lambda i: jnp.arange(4.0)[i])
    result = f"{{jax.process_count()}} {{jax.device_count()}} {{float(jax.jit(jnp.sum)(x))}}"
    # To a file: Gloo's threads write to stdout as well, and may split a line.
    import pathlib
    partial = pathlib.Path(sys.argv[3] + ".partial")
    partial.write_text(result)
    partial.rename(sys.argv[3])
    time.sleep(600)
"""


def test_jax_starts_on_two_processes_and_both_end_if_one_is_killed(port, tmp_path):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    script = textwrap.dedent(JAX_CHILD.format(root=str(ROOT)))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(i), str(port), str(tmp_path / str(i))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(2)
    ]
    try:
        for i, child in enumerate(started):
            deadline = time.monotonic() + 300
            while (
                not (tmp_path / str(i)).exists()
                and child.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.1)
            assert (tmp_path / str(i)).exists(), (
                child.communicate(timeout=1)[1] if child.poll() is not None else "silent"
            )
            assert (tmp_path / str(i)).read_text().split() == ["2", "4", "6.0"]
        os.kill(started[1].pid, signal.SIGKILL)
        _, errors = started[0].communicate(timeout=120)
        assert started[0].returncode == PEER_LOST and "process 1 on" in errors
    finally:
        [c.kill() for c in started]


@pytest.mark.parametrize(
    ("failing", "flags", "statuses"),
    [((0,), [], [2, PEER_LOST]), ((0, 1), ["--traceback"], [1, 1])],
)
def test_a_process_that_fails_before_training_ends_the_others(
    port, tmp_path, failing, flags, statuses
):
    command = [sys.executable, str(ROOT / "launch/tpu.py"), "--workdir", str(tmp_path)]
    command += ["--config", str(ROOT / "tests/launch/tiny_spct.py"), "--emulate", "4"]
    command += ["--coordinator", f"127.0.0.1:{port - 1}", "--num_processes", "2"]
    wrong = ["--config.init=missing", *flags]
    started = [
        subprocess.Popen(
            [*command, "--process_id", str(i), *(wrong if i in failing else [])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        errors = [child.communicate(timeout=300)[1] for child in started]
        assert [child.returncode for child in started] == statuses, errors
        assert "config.init names missing" in errors[0] and "exited unexpectedly" not in errors[0]
        assert ("process 0 on" in errors[1]) == (failing == (0,))
    finally:
        [child.kill() for child in started]
