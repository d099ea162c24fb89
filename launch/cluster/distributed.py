"""Which process of a slice this is, and JAX's start on it.

given         --coordinator HOST:PORT --process_id I --num_processes N
GKE           TPU_WORKER_ID, TPU_WORKER_HOSTNAMES (a JobSet's pods get them), MEGASCALE_* for several slices
TPU VM        the machine's metadata: agent-worker-number, worker-network-endpoints, tpu-env
otherwise     one process
"""

import dataclasses
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from grm_jax.devices import has_chips
from launch.cluster import rendezvous
from launch.errors import LaunchError

# 8476 is open between the hosts of a slice; JAX's own default changed to 8482, which Google Cloud's firewall may hold back.
PORT = 8476


@dataclasses.dataclass(frozen=True)
class Worker:
    """process_id of num_processes; process 0 listens on host:port for JAX, and on port + 1 for `rendezvous`."""

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
    """This process's place, or None where there is only one.

    metadata: attribute name -> text or None; by default the TPU VM's metadata server, asked only on a machine with TPU chips.
    Raises LaunchError if the flags are incomplete.
    """
    given = {
        "--coordinator": coordinator,
        "--process_id": process_id,
        "--num_processes": num_processes,
    }
    if any(value is not None for value in given.values()):
        missing = [flag for flag, value in given.items() if value is None]
        if missing:
            raise LaunchError(
                f"{' and '.join(missing)} missing: give --coordinator HOST:PORT, --process_id and --num_processes together"
            )
        return _given(str(coordinator), int(process_id or 0), int(num_processes or 0))
    hosts = [
        h
        for h in (
            environment.get("TPU_PROCESS_ADDRESSES")
            or environment.get("TPU_WORKER_HOSTNAMES")
            or ""
        ).split(",")
        if h
    ]
    if hosts and environment.get("TPU_WORKER_ID", "").isdigit():
        return _place(
            [h.split(":")[0] for h in hosts], int(environment["TPU_WORKER_ID"]), environment
        )
    if metadata is None:
        metadata = (
            _metadata if has_chips() and "TPU_SKIP_MDS_QUERY" not in environment else lambda _: None
        )
    number, endpoints = metadata("agent-worker-number"), metadata("worker-network-endpoints")
    if number is None or endpoints is None:
        return None
    return _place(
        [e.split(":")[-1] for e in endpoints.split(",")],
        int(number),
        {**_tpu_env(metadata("tpu-env")), **environment},
    )


def _given(coordinator: str, process_id: int, num_processes: int) -> Worker:
    host, _, port = (
        coordinator.rpartition(":") if ":" in coordinator else (coordinator, "", str(PORT))
    )
    if not port.isdigit() or not host:
        raise LaunchError(f"--coordinator={coordinator!r} is not HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise LaunchError(
            f"--process_id={process_id} is not one of 0 ... {num_processes - 1}: count the processes from 0"
        )
    return Worker(host, int(port), num_processes, process_id)


def _place(hosts: list[str], number: int, environment: Mapping[str, str]) -> Worker | None:
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    this = int(environment.get("MEGASCALE_SLICE_ID") or 0)
    if slices * len(hosts) == 1:
        return None
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    return Worker(first.split(":")[0], PORT, slices * len(hosts), this * len(hosts) + number)


def _metadata(name: str) -> str | None:
    request = urllib.request.Request(
        f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def _tpu_env(text: str | None) -> dict[str, str]:
    """Lines such as  MEGASCALE_NUM_SLICES: '2'"""
    pairs = (line.split(":", 1) for line in (text or "").splitlines() if ":" in line)
    return {key.strip(): value.strip().strip("'") for key, value in pairs}


def start(worker: Worker | None, timeout: float) -> rendezvous.Meeting | None:
    """Meets the other processes, then starts JAX on all of them. Call before JAX touches a device.

    Raises LaunchError naming the processes that did not come within `timeout` seconds.
    """
    if worker is None or worker.num_processes == 1:
        return None
    meeting = rendezvous.meet(
        worker.host, worker.port + 1, worker.process_id, worker.num_processes, timeout
    )
    import jax

    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"{worker.host}:{worker.port}",
        worker.num_processes,
        worker.process_id,
        initialization_timeout=max(10, int(timeout)),
    )
    return meeting
