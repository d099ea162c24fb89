"""Builds and runs the `gcloud` commands of a queued TPU resource.

gcloud handles credentials itself; this module never reads any.
"""

import dataclasses
import shlex
import subprocess
from collections.abc import Callable

from grm_jax.display import outside_text
from launch.compile.slices import get_slice
from launch.errors import LaunchError

CALL_SECONDS = 3600.0  # of one call; installing on a slice takes minutes
_QUEUED = ["compute", "tpus", "queued-resources"]
_VM = ["compute", "tpus", "tpu-vm"]


@dataclasses.dataclass(frozen=True)
class Resource:
    """A queued resource: `num_slices` slices of one accelerator type in one zone.

    Its methods return the arguments of one gcloud command each.
    """

    name: str
    zone: str
    accelerator: str
    num_slices: int = 1
    spot: bool = False
    project: str | None = None

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs, one per slice; gcloud numbers them if there are several."""
        if self.num_slices == 1:
            return [self.name]
        return [f"{self.name}-{i}" for i in range(self.num_slices)]

    @property
    def _location(self) -> list[str]:
        return [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])

    def create(self) -> list[str]:
        tpu_slice = get_slice(self.accelerator)
        nodes = [f"--node-count={self.num_slices}", f"--node-prefix={self.name}"]
        if self.num_slices == 1:
            nodes = [f"--node-id={self.name}"]
        return [
            *_QUEUED,
            "create",
            self.name,
            *self._location,
            f"--accelerator-type={tpu_slice.name}",
            f"--runtime-version={tpu_slice.generation.runtime_version}",
            *nodes,
            "--async",
            *(["--spot"] if self.spot else []),
            "--quiet",
        ]

    def describe(self) -> list[str]:
        return [*_QUEUED, "describe", self.name, *self._location, "--format=value(state.state)"]

    def delete(self) -> list[str]:
        return [*_QUEUED, "delete", self.name, *self._location, "--force", "--quiet"]

    def ssh(self, node: str, command: str, worker: str) -> list[str]:
        target = [f"--worker={worker}", f"--command={command}", "--quiet"]
        return [*_VM, "ssh", node, *self._location, *target]

    def copy(self, node: str, source: str, target: str) -> list[str]:
        paths = [source, f"{node}:{target}"]
        return [*_VM, "scp", *paths, *self._location, "--worker=all", "--quiet"]


def describe_bucket(uri: str) -> list[str]:
    """Arguments of the command that checks that the bucket of gs://BUCKET/... is readable."""
    name = uri.removeprefix("gs://").partition("/")[0]
    return ["storage", "buckets", "describe", f"gs://{name}", "--format=value(name)"]


@dataclasses.dataclass(frozen=True)
class Result:
    """Exit status, stdout and stderr of one gcloud command."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The first line of stderr with ERROR, else its last line."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit status {self.code}"
        return outside_text(next((line for line in lines if "ERROR" in line), last), 400)


Run = Callable[[list[str]], Result]


def run(arguments: list[str], seconds: float = CALL_SECONDS) -> Result:
    """Runs gcloud; a call that times out has failed. Bytes that are not UTF-8 become surrogates.

    Raises LaunchError if gcloud cannot be run.
    """
    try:
        done = subprocess.run(
            ["gcloud", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except subprocess.TimeoutExpired:
        return Result(1, "", f"ERROR: gcloud {arguments[-1]:.60} timed out after {seconds:.0f} s")
    except FileNotFoundError as error:
        raise LaunchError(
            "gcloud is not on PATH: install the Google Cloud CLI and run `gcloud auth login`"
        ) from error
    except OSError as error:
        raise LaunchError(f"gcloud cannot be run: {error.strerror}") from error
    return Result(done.returncode, done.stdout, done.stderr)


def command_line(arguments: list[str]) -> str:
    """The command as a shell line."""
    return shlex.join(["gcloud", *arguments])
