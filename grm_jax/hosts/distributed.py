"""Finds this process's number among the workers of a slice, and initializes JAX on all of them.

flags     --coordinator HOST:PORT --process_id I --num_processes N
GKE       TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, set in a JobSet's pods; MEGASCALE_* for several
          slices
TPU VM    the metadata server: agent-worker-number, worker-network-endpoints, tpu-env
otherwise a single process
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.devices import has_chips
from grm_jax.hosts import rendezvous
from grm_jax.hosts.errors import CRASHED, LaunchError

# Seconds in which the other processes can report an error of their own after one has failed.
GRACE = 5.0
# The connections of this process, for `fail`.
_joined: list[rendezvous.Peers] = []

LOST_SECONDS = 2.0  # in which a crashed peer's connection is closed
JOIN_SECONDS = 300.0  # in which all workers of `grm judge` and `grm eval` have to start

# Open between the hosts of a slice. JAX's default is now 8482, which firewalls may block.
PORT = 8476
MOST_PORT = 65535  # the rendezvous uses the next one


@dataclasses.dataclass(frozen=True)
class Worker:
    """Process `process_id` of `num_processes`. host, port: the coordinator (process 0).

    JAX uses `port`; `rendezvous` uses port + 1.
    """

    host: str
    port: int
    num_processes: int
    process_id: int


def find_worker(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    environment: Mapping[str, str] = os.environ,
    metadata: Callable[[str], str | None] | None = None,
) -> Worker | None:
    """Returns this process's Worker, or None if it is the only process.

    Args:
      metadata: attribute name -> text or None; default: the TPU VM's metadata server, queried only
        on a machine with TPU chips.

    Raises LaunchError for incomplete or inconsistent flags.
    """
    flags = {
        "--coordinator": coordinator,
        "--process_id": process_id,
        "--num_processes": num_processes,
    }
    missing = [flag for flag, value in flags.items() if value is None]
    if coordinator is not None and process_id is not None and num_processes is not None:
        return _from_flags(coordinator, process_id, num_processes)
    if len(missing) < len(flags):
        raise LaunchError(
            f"{' and '.join(missing)} missing: "
            "give --coordinator HOST:PORT, --process_id and --num_processes together"
        )
    addresses = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    hosts = [address for address in (addresses or "").split(",") if address]
    if hosts and environment.get("TPU_WORKER_ID", "").isdecimal():
        hosts = [host.split(":")[0] for host in hosts]
        return _worker(hosts, _variable(environment, "TPU_WORKER_ID", 0), environment)
    if metadata is None:
        if not has_chips() or "TPU_SKIP_MDS_QUERY" in environment:
            return None
        metadata = _query_metadata
    number, endpoints = metadata("agent-worker-number"), metadata("worker-network-endpoints")
    if number is None or endpoints is None:
        return None
    hosts = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    worker = _variable({"worker": number.strip() or "-"}, "worker", 0)
    return _worker(hosts, worker, {**_parse_tpu_env(metadata("tpu-env")), **environment})


def _from_flags(coordinator: str, process_id: int, num_processes: int) -> Worker:
    host, port = coordinator, str(PORT)
    if ":" in coordinator:
        host, _, port = coordinator.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < MOST_PORT) or not host:
        raise LaunchError(
            f"--coordinator={coordinator!r} is not HOST:PORT, with a port below {MOST_PORT}"
        )
    if not 0 <= process_id < num_processes:
        raise LaunchError(
            f"--process_id={process_id} is not one of 0 ... {num_processes - 1}: "
            "number the processes from 0"
        )
    return Worker(host, int(port), num_processes, process_id)


def _variable(environment: Mapping[str, str], name: str, default: int) -> int:
    """Returns a whole number of the environment. Raises LaunchError for another text."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or len(text) > 6:
        raise LaunchError(f"{name}={text!r:.40} of the environment is not a whole number")
    return int(text)


def _worker(hosts: list[str], number: int, environment: Mapping[str, str]) -> Worker | None:
    """The Worker of host `number` of this slice, counted over all slices."""
    num_slices = _variable(environment, "MEGASCALE_NUM_SLICES", 1)
    slice_id = _variable(environment, "MEGASCALE_SLICE_ID", 0)
    if not (number < len(hosts) and slice_id < num_slices):
        raise LaunchError(
            f"worker {number} of slice {slice_id} is not one of {len(hosts)} hosts x {num_slices} "
            "slices: check TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and MEGASCALE_*"
        )
    if num_slices * len(hosts) == 1:
        return None
    coordinator = (environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", coordinator):
        raise LaunchError(
            f"the coordinator's host is {coordinator!r:.60}: correct TPU_WORKER_HOSTNAMES and "
            "MEGASCALE_COORDINATOR_ADDRESS, or give --coordinator HOST:PORT"
        )
    process_id = slice_id * len(hosts) + number
    return Worker(coordinator, PORT, num_slices * len(hosts), process_id)


def _query_metadata(name: str) -> str | None:
    request = urllib.request.Request(
        f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.read(1 << 20).decode()
    except (OSError, ValueError, HTTPException):
        return None


def _parse_tpu_env(text: str | None) -> dict[str, str]:
    """Parses lines such as  MEGASCALE_NUM_SLICES: '2'"""
    pairs = (line.split(":", 1) for line in (text or "").splitlines() if ":" in line)
    return {key.strip(): value.strip().strip("'") for key, value in pairs}


def job_secret(config: str) -> str:
    """Returns the secret of the job: the launcher's, or one derived from the config's name.

    The derived one keeps out other jobs and port scanners, but nobody who knows the command.
    """
    derived = hashlib.sha256(Path(config).name.encode()).hexdigest()
    return os.environ.get(rendezvous.SECRET) or derived


def start(
    worker: Worker | None,
    timeout: float,
    secret: str = "",
    on_death: rendezvous.OnDeath = rendezvous.end_process,
) -> rendezvous.Peers | None:
    """Waits for all processes, then initializes JAX on them. Call before JAX touches a device.

    on_death: called with number and host of a process that crashes.

    Raises LaunchError naming the processes that did not join within `timeout` seconds.
    """
    if worker is None or worker.num_processes == 1:
        return None
    if not 0 < timeout < 1e7:
        raise LaunchError(f"--timeout={timeout:g}: give the seconds for all workers to join")
    process = worker.process_id, worker.num_processes
    peers = rendezvous.join(worker.host, worker.port + 1, *process, timeout, on_death, secret)
    _joined.append(peers)
    import jax

    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"{worker.host}:{worker.port}",
        worker.num_processes,
        worker.process_id,
        initialization_timeout=max(10, int(timeout)),
        coordinator_bind_address=f"{rendezvous.own_address(worker.host) or '[::]'}:{worker.port}",
    )
    return peers


def fail(status: int, message: str = "") -> None:
    """Exits a process that has failed, if it has peers, so that they exit as well.

    Without it they would wait in a collective, and JAX's shutdown would wait for them for minutes.
    message: printed to stderr first.
    """
    if _joined:
        _joined[0].leaving.set()  # exits with its own status even if a peer is faster
        print(message, end="", file=sys.stderr, flush=True)
        _joined[0].fail(GRACE)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def together(command: Callable[[], int], program: str, finished: Collection[int] = (0, 1)) -> int:
    """Runs a command that may join other processes; returns its exit status.

    If it raises, or returns a status not in `finished`, the other processes exit as well.
    program: its name in messages.
    """
    try:
        status = command()
    except Exception:
        fail(CRASHED, traceback.format_exc())
        raise
    if status not in finished:
        fail(status)
    leave()
    return status


@contextlib.contextmanager
def lost_peer_first() -> Iterator[None]:
    """Reports a crashed peer instead of the error of the collective that waited for it."""
    try:
        yield
    except Exception:
        if _joined and _joined[0].lost.wait(LOST_SECONDS):
            time.sleep(GRACE)  # `on_death` ends the process
        raise


def join_command(args: argparse.Namespace, program: str) -> None:
    """Joins the other hosts of a slice, if there are any; see `find_worker`.

    args: those of `commands.add_host_arguments`.  Raises LaunchError as `start`.
    """
    worker = find_worker(args.coordinator, args.process_id, args.num_processes)
    on_death = functools.partial(
        rendezvous.end_process, program=program, resume="Run the same command again to resume"
    )
    start(worker, JOIN_SECONDS, job_secret(program), on_death)


def is_first() -> bool:
    """Returns whether this is the only process, or process 0 of several that have joined."""
    return not _joined or _joined[0].process == 0


def has_peers() -> bool:
    """Returns whether this process has joined others."""
    return bool(_joined)


def leave() -> None:
    """Ends a process that is done without a report of a crash to its peers."""
    if _joined:
        _joined[0].leave()


def from_first(compute: Callable[[], Any]) -> Any:
    """Returns the JSON value of compute() on process 0; all processes call it together."""
    if not _joined:
        return compute()
    import numpy as np
    from jax.experimental import multihost_utils

    text = strict_json.dumps(compute()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    data = np.frombuffer(text.ljust(size), np.uint8)
    return strict_json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))))
