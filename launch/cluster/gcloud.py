"""The `gcloud` command lines that a queued TPU resource needs, each built in one place, and how they are run.

Credentials are gcloud's own business: nothing here reads one.
"""

import dataclasses
import shlex
import subprocess
from collections.abc import Callable

from launch.compile.slices import get_slice
from launch.errors import LaunchError

# The software of the TPU VMs, by generation (Google Cloud's page on TPU runtime versions).
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class Resource:
    """A queued resource: `num_slices` slices of one accelerator, in one zone."""

    name: str
    zone: str
    accelerator: str
    num_slices: int = 1
    spot: bool = False
    project: str | None = None

    @property
    def nodes(self) -> list[str]:
        """The TPU VMs by name, one per slice; gcloud numbers them itself when there are several."""
        return (
            [self.name]
            if self.num_slices == 1
            else [f"{self.name}-{i}" for i in range(self.num_slices)]
        )

    @property
    def _place(self) -> list[str]:
        return [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])

    def create(self) -> list[str]:
        part = get_slice(self.accelerator)
        nodes = (
            [f"--node-id={self.name}"]
            if self.num_slices == 1
            else [f"--node-count={self.num_slices}", f"--node-prefix={self.name}"]
        )
        return [
            "compute", "tpus", "queued-resources", "create", self.name, *self._place, f"--accelerator-type={part.name}",
            f"--runtime-version={RUNTIMES[part.chip.kind]}", *nodes, "--async", *(["--spot"] if self.spot else []), "--quiet",
        ]  # fmt: skip

    def describe(self) -> list[str]:
        return [
            "compute",
            "tpus",
            "queued-resources",
            "describe",
            self.name,
            *self._place,
            "--format=value(state.state)",
        ]

    def delete(self) -> list[str]:
        return [
            "compute",
            "tpus",
            "queued-resources",
            "delete",
            self.name,
            *self._place,
            "--force",
            "--quiet",
        ]

    def ssh(self, node: str, command: str, worker: str) -> list[str]:
        return [
            "compute",
            "tpus",
            "tpu-vm",
            "ssh",
            node,
            *self._place,
            f"--worker={worker}",
            f"--command={command}",
            "--quiet",
        ]

    def copy(self, node: str, source: str, target: str) -> list[str]:
        return [
            "compute",
            "tpus",
            "tpu-vm",
            "scp",
            source,
            f"{node}:{target}",
            *self._place,
            "--worker=all",
            "--quiet",
        ]


def bucket(uri: str) -> list[str]:
    """Whether the bucket of gs://BUCKET/... is there and may be read."""
    name = uri.removeprefix("gs://").partition("/")[0]
    return ["storage", "buckets", "describe", f"gs://{name}", "--format=value(name)"]


@dataclasses.dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The line of the error output that says most."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return next(
            (line for line in lines if "ERROR" in line),
            lines[-1] if lines else f"exit status {self.code}",
        )


Run = Callable[[list[str]], Answer]


def run(arguments: list[str]) -> Answer:
    """Runs gcloud. Raises LaunchError if it is not installed."""
    try:
        done = subprocess.run(
            ["gcloud", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise LaunchError(
            "gcloud is not on PATH: install the Google Cloud CLI and run `gcloud auth login`"
        ) from error
    return Answer(done.returncode, done.stdout, done.stderr)


def spelled(arguments: list[str]) -> str:
    """As one would type it."""
    return shlex.join(["gcloud", *arguments])
