"""A run on GKE as a JobSet manifest (jobset.x-k8s.io/v1alpha2): one Job per slice, one pod per host; printed, never applied.

    JobSet NAME -> Job NAME-slice-0 ... -> pod NAME-slice-0-0-... on each host of the slice, which finds its place by what GKE tells it

Exit statuses decide what follows: 1 and 2 end the JobSet, any other (stopped and saved, a lost host) starts all of it again, and the run goes
on from the bucket. Sources: the JobSet API's types, and GKE's pages on TPUs and on handling disruption.
"""

import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from launch.cluster.distributed import PORT
from launch.compile.slices import Slice
from launch.errors import FAILED, START_AGAIN, WRONG_COMMAND, LaunchError

# Node labels by generation (GKE's page on planning TPUs).
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
JOB = "slice"
HOME = "/grm_jax"
PYTHON_IMAGE = "python:3.11"
MAX_RESTARTS = 20
# From SIGTERM to SIGKILL: the step under way ends and is saved. 600 s is the most that Autopilot grants; Spot machines give 25 s, whatever is asked.
GRACE, SPOT_GRACE = 600, 25


def manifest(
    name: str,
    part: Slice,
    num_slices: int,
    words: tuple[str, ...],
    image: str | None = None,
    tree: tuple[str, str] | None = None,
    queue: str | None = None,
    spot: bool = False,
) -> dict:
    """The JobSet that runs `launch/tpu.py WORDS` on every host of `num_slices` slices.

    image: holds this tree in /grm_jax, installed by `make venv`. Without it the pods fetch and install `tree`, (URL, commit), when they start.
    queue: of Kueue. Raises LaunchError for a name or a number of slices that GKE would refuse.
    """
    longest = f"{name}-{JOB}-{num_slices - 1}-{part.hosts - 1}-abcde"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(longest) > 63:
        room = 63 - len(longest) + len(name)
        raise LaunchError(
            f"--name={name!r} cannot name a JobSet: use a letter, then letters, digits and dashes, all small, {room} at most"
        )
    if num_slices > 1 and part.hosts == 1:
        raise LaunchError(
            f"--num_slices={num_slices} of {part.name}: GKE joins slices of several hosts only: use one slice, or larger ones"
        )
    chips = {"google.com/tpu": part.chips_per_host}
    container = {
        "name": "worker",
        "image": image or PYTHON_IMAGE,
        **_command(words, image, tree),
        "ports": [
            {"containerPort": port} for port in (8471, PORT, PORT + 1)
        ],  # libtpu's, JAX's, the rendezvous'
        "resources": {"requests": chips, "limits": dict(chips)},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SPOT_GRACE if spot else GRACE,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[part.chip.kind],
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, part.shape)),
            **({"cloud.google.com/gke-spot": "true"} if spot else {}),
        },
        "containers": [container],
    }
    job = {
        "backoffLimit": 0,  # one lost host ends the slice: the others cannot go on without it
        "completionMode": "Indexed",
        "parallelism": part.hosts,
        "completions": part.hosts,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "worker",
                        "operator": "In",
                        "values": [FAILED, WRONG_COMMAND],
                    },
                }
            ]
        },
        "template": {"spec": pod},
    }
    final = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    metadata = {"name": name, **({"labels": {"kueue.x-k8s.io/queue-name": queue}} if queue else {})}
    # A slice is a node pool of its own; without this two Jobs could share one and neither would be whole.
    metadata["annotations"] = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": MAX_RESTARTS, "rules": [final]},
            "replicatedJobs": [{"name": JOB, "replicas": num_slices, "template": {"spec": job}}],
        },
    }


def _command(words: tuple[str, ...], image: str | None, tree: tuple[str, str] | None) -> dict:
    """What a pod runs. Python itself is process 1, by `exec` where a shell comes first: SIGTERM goes to process 1 alone."""
    program = [".venv/bin/python", "launch/tpu.py", *words]
    if image:
        return {"workingDir": HOME, "command": [f"{HOME}/{program[0]}", *program[1:]]}
    url, commit = tree
    fetch = f"git clone -q {shlex.quote(url)} {HOME} && cd {HOME} && git checkout -q {commit} && make venv"
    return {
        "command": [
            "bash",
            "-c",
            f"({fetch}) || exit {START_AGAIN}; cd {HOME} && exec {shlex.join(program)}",
        ]
    }


def public_tree(root: Path) -> tuple[str, str]:
    """(URL without any user or password, commit) from which a pod can fetch what is checked out at `root`.

    Raises LaunchError if there is no such place.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True
        ).stdout.strip()

    url, commit = urlsplit(git("remote", "get-url", "origin")), git("rev-parse", "HEAD")
    way_out = f"give --image NAME, of a container image that holds this tree in {HOME}, installed by `make venv`"
    if url.scheme != "https" or not url.hostname:
        raise LaunchError(
            f"pods cannot fetch {root}: its git remote is no https:// address; {way_out}"
        )
    if not git("branch", "-r", "--contains", commit):
        raise LaunchError(
            f"pods cannot fetch commit {commit[:12]}: it is not on the remote; push it, or {way_out}"
        )
    host = url.hostname + (f":{url.port}" if url.port else "")
    return url._replace(netloc=host, query="", fragment="").geturl(), commit


def spelled(jobset: dict) -> str:
    """As YAML, with what to do with it."""
    import yaml

    name = jobset["metadata"]["name"]
    head = f"# kubectl apply -f FILE; then: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0\n"
    return head + yaml.safe_dump(jobset, sort_keys=False, width=1000)
