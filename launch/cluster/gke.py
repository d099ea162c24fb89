"""Builds the JobSet manifest (jobset.x-k8s.io/v1alpha2) of a run on GKE; kubectl applies it.

    JobSet NAME -> one Job NAME-slice-I per slice -> one pod NAME-slice-I-J-... per host

GKE's environment variables give each pod its process number. Exit statuses 1 and 2 end the JobSet;
any other (stopped and saved, a lost host) restarts all pods, and the run resumes from the bucket.
Sources: the JobSet API's types, GKE's pages on TPUs and on handling disruption.
"""

import dataclasses
import re
import secrets
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grm_jax.hosts.distributed import PORT
from grm_jax.hosts.rendezvous import SECRET
from launch.compile.slices import Slice
from launch.errors import FAILED, START_AGAIN, WRONG_COMMAND, LaunchError

JOB = "slice"
HOME = "/grm_jax"
PYTHON_IMAGE = "python:3.11"
# The secret of GKE's guides to Gemma; for gated models: kubectl create secret generic hf-secret
# --from-literal=hf_api_token=TOKEN
HUB_TOKEN = {"name": "hf-secret", "key": "hf_api_token", "optional": True}
MAX_RESTARTS = 20
LIBTPU_PORT = 8471
# Seconds from SIGTERM to SIGKILL, in which the current step ends and is saved. Autopilot grants at
# most 600; Spot machines always get 25.
GRACE, SPOT_GRACE = 600, 25


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on GKE.

    Attributes:
      name: of the JobSet.
      arguments: of launch/tpu.py in every pod.
      image: holds this tree in /grm_jax, installed by `make venv`.
      tree: (URL, commit) that the pods fetch and install when they start, if there is no image.
      queue: Kueue's local queue.
    """

    name: str
    tpu_slice: Slice
    num_slices: int
    arguments: tuple[str, ...]
    image: str | None = None
    tree: tuple[str, str] = ("", "")
    queue: str | None = None
    spot: bool = False


def manifest(run: Run) -> dict[str, Any]:
    """Returns the JobSet. Raises LaunchError for a name or number of slices that GKE refuses."""
    _check(run)
    # On GKE a slice is a node pool; without this annotation two Jobs could share one.
    annotation = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    labels = {"labels": {"kueue.x-k8s.io/queue-name": run.queue}} if run.queue else {}
    fail = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": run.name, **labels, "annotations": annotation},
        "spec": {
            "failurePolicy": {"maxRestarts": MAX_RESTARTS, "rules": [fail]},
            "replicatedJobs": [
                {"name": JOB, "replicas": run.num_slices, "template": {"spec": _job(run)}}
            ],
        },
    }


def check_name(name: str, longest_pod: str) -> None:
    """Raises LaunchError for a JobSet's name. longest_pod: JOB-I-J of its longest pod name."""
    longest = f"{name}-{longest_pod}-abcde"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(longest) > 63:
        room = 63 - len(longest) + len(name)
        raise LaunchError(
            f"--name={name!r} is not a valid JobSet name: start with a letter, then use at "
            f"most {room} lower-case letters, digits and dashes"
        )


def _check(run: Run) -> None:
    tpu_slice = run.tpu_slice
    check_name(run.name, f"{JOB}-{run.num_slices - 1}-{tpu_slice.hosts - 1}")
    if run.num_slices > 1 and tpu_slice.hosts == 1:
        raise LaunchError(
            f"--num_slices={run.num_slices} of {tpu_slice.name}: GKE connects only slices of "
            "several hosts; use one slice, or a larger accelerator type"
        )


def _job(run: Run) -> dict[str, Any]:
    hosts = run.tpu_slice.hosts
    exit_codes = {"containerName": "worker", "operator": "In", "values": [FAILED, WRONG_COMMAND]}
    return {
        "backoffLimit": 0,  # a slice that lost a host is useless: restart all of it
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]},
        "template": {"spec": _pod(run)},
    }


def node_selector(tpu_slice: Slice, spot: bool) -> dict[str, str]:
    """Returns the labels of the nodes of a slice."""
    return {
        "cloud.google.com/gke-tpu-accelerator": tpu_slice.generation.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": tpu_slice.topology,
        **({"cloud.google.com/gke-spot": "true"} if spot else {}),
    }


def _pod(run: Run) -> dict[str, Any]:
    tpu_slice = run.tpu_slice
    chips = {"google.com/tpu": tpu_slice.chips_per_host}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SPOT_GRACE if run.spot else GRACE,
        "nodeSelector": node_selector(tpu_slice, run.spot),
        "containers": [
            {
                "name": "worker",
                "image": run.image or PYTHON_IMAGE,
                **_command(run),
                "env": [
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": HUB_TOKEN}},
                    {"name": SECRET, "value": secrets.token_hex(16)},  # one for all pods
                ],
                # libtpu, JAX's coordinator, the rendezvous
                "ports": [{"containerPort": port} for port in (LIBTPU_PORT, PORT, PORT + 1)],
                "resources": {"requests": chips, "limits": dict(chips)},
            }
        ],
    }


def _command(run: Run) -> dict[str, Any]:
    """The pod's command. `exec` makes Python process 1, the only one that gets the SIGTERM."""
    program = [".venv/bin/python", "launch/tpu.py", *run.arguments]
    if run.image:
        return {"workingDir": HOME, "command": [f"{HOME}/{program[0]}", *program[1:]]}
    script = (
        f"({fetch_script(run.tree)}) || exit {START_AGAIN}; cd {HOME} && exec {shlex.join(program)}"
    )
    return {"command": ["bash", "-c", script]}


def fetch_script(tree: tuple[str, str]) -> str:
    """Returns the shell commands that fetch and install a tree (URL, commit)."""
    url, commit = tree
    return (
        f"git clone -q {shlex.quote(url)} {HOME} && cd {HOME}"
        f" && git checkout -q {commit} && make venv"
    )


def public_tree(root: Path) -> tuple[str, str]:
    """Returns (URL without user or password, commit) from which pods can fetch the tree at `root`.

    Raises LaunchError if the commit is not on an https:// remote.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return done.stdout.strip()

    url, commit = urlsplit(git("remote", "get-url", "origin")), git("rev-parse", "HEAD")
    hint = f"give --image NAME of a container image with this tree in {HOME}, after `make venv`"
    if url.scheme != "https" or not url.hostname:
        raise LaunchError(
            f"pods cannot fetch {root}: its git remote has no https:// address; {hint}"
        )
    if not git("branch", "-r", "--contains", commit):
        raise LaunchError(
            f"pods cannot fetch commit {commit[:12]}: it is not on the remote; push it, or {hint}"
        )
    host = url.hostname + (f":{url.port}" if url.port else "")
    return url._replace(netloc=host, query="", fragment="").geturl(), commit


def to_yaml(jobset: dict[str, Any]) -> str:
    """The manifest as YAML, with the kubectl commands in a comment."""
    import yaml

    head = (
        "# kubectl apply -f FILE; then: kubectl logs -f -l "
        f"jobset.sigs.k8s.io/jobset-name={jobset['metadata']['name']},"
        "batch.kubernetes.io/job-completion-index=0\n"
    )
    return head + yaml.safe_dump(jobset, sort_keys=False, width=1000)
