"""Builds the JobSet of a sharded `grm judge` or `grm eval` on GKE: N shards, then the merge.

    JobSet NAME -> Job NAME-shard-0, Indexed: pod I runs --shard I+1/N on one TPU host
                -> Job NAME-merge-0, after all shards: `grm merge`, without a TPU

Shards are independent: a pod that is preempted is replaced, and resumes from the bucket. Only a
wrong command (exit status 2) ends the JobSet. `dependsOn` needs JobSet 0.8 or later.
"""

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from grm_jax.evals import cli as evaluation
from grm_jax.judging import cli as judging, shards
from grm_jax.judging.shards import Shard
from grm_jax.storage import is_remote
from launch.checks import is_committed
from launch.cluster import gke
from launch.compile.slices import Slice
from launch.errors import WRONG_COMMAND, LaunchError

SHARD, MERGE = "shard", "merge"
RETRIES = 20  # of each shard; a preemption does not count
MERGE_RESOURCES = {"cpu": "2", "memory": "8Gi"}
PARSERS = {"judge": judging.parser, "eval": evaluation.parser}


@dataclasses.dataclass(frozen=True)
class ShardedRun:
    """A sharded run on GKE.

    Attributes:
      name: of the JobSet.
      tpu_slice: of one host.
      count: the number of shards.
      command: arguments of `grm`, such as ("judge", "gs://BUCKET/in.jsonl", ...).
      image, tree, queue, spot: as in `gke.Run`.
    """

    name: str
    tpu_slice: Slice
    count: int
    command: tuple[str, ...]
    image: str | None = None
    tree: tuple[str, str] = ("", "")
    queue: str | None = None
    spot: bool = False


def manifest(run: ShardedRun) -> dict[str, Any]:
    """Returns the JobSet. Raises LaunchError for a command that pods cannot run in shards."""
    gke.check_name(run.name, f"{SHARD}-0-{run.count - 1}")
    if run.tpu_slice.hosts > 1:
        raise LaunchError(
            f"--accelerator={run.tpu_slice.name} has {run.tpu_slice.hosts} hosts: a shard runs on "
            "one host; use a smaller type, such as v5litepod-8, and more --shards"
        )
    args = _parsed(run)
    shard = [*run.command, "--shard", f"$((JOB_COMPLETION_INDEX + 1))/{run.count}"]
    if run.command[0] == "judge":
        shard += ["--resume"]
    if not args.mesh and not args.endpoint and run.tpu_slice.chips > 1:
        shard += ["--mesh", "fsdp=-1"]
    labels = {"labels": {"kueue.x-k8s.io/queue-name": run.queue}} if run.queue else {}
    fail = {
        "name": "final",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy", "FailedIndexes"],
    }
    jobs = [
        {"name": SHARD, "replicas": 1, "template": {"spec": _shards(run, shard, args)}},
        {
            "name": MERGE,
            "replicas": 1,
            "dependsOn": [{"name": SHARD, "status": "Complete"}],
            "template": {"spec": _merge(run, args)},
        },
    ]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": run.name, **labels},
        "spec": {
            "network": {"enableDNSHostnames": False},  # with it, GKE makes the pods one slice
            "failurePolicy": {"maxRestarts": gke.MAX_RESTARTS, "rules": [fail]},
            "replicatedJobs": jobs,
        },
    }


def _parsed(run: ShardedRun) -> argparse.Namespace:
    """Returns the arguments of the command. Raises LaunchError for those that pods cannot use."""
    name, *arguments = run.command or ("",)
    if name not in PARSERS:
        raise LaunchError(
            f"--shards runs grm judge or grm eval: write -- judge IN OUT --model ..., not {name!r}"
        )
    args = PARSERS[name]().parse_args(list(arguments))
    for option in ("shard", "resume", "overwrite"):
        if getattr(args, option, None):
            raise LaunchError(f"remove --{option}: the manifest sets it for each shard")
    paths = {"--model": None if args.endpoint else args.model, "--meta_rm": args.meta_rm}
    for option in ("lora", "tokenizer"):
        paths[f"--{option}"] = _file(getattr(args, option, None))
    for option in ("template", "meta_template", "principles", "against"):
        _check_committed(f"--{option}", getattr(args, option, None), run.image)
    if name == "judge":
        if not args.input or not args.output:
            raise LaunchError("grm judge in shards needs IN and OUT")
        paths |= {"IN": args.input, "OUT": args.output}
    else:
        paths |= {"--data": args.data, "--out": args.out or "eval"}
    for label, path in paths.items():
        on_hub = label in ("--model", "--meta_rm") and path and not path.startswith((".", "/"))
        if path and not is_remote(path) and not on_hub:
            raise LaunchError(f"{label} {path} is not in a bucket: pods read and write gs:// paths")
    return args


def _file(value: Any) -> Any:
    """Returns the value of an option if it names a local file; None for a name on the Hub."""
    is_file = isinstance(value, str) and (value.startswith((".", "/", "~")) or Path(value).exists())
    return value if is_file else None


def _check_committed(label: str, value: Any, image: str | None) -> None:
    """Raises LaunchError for a local file that pods lack: they have the tree, or the image."""
    path = str(value or "")
    is_absolute = path.startswith(("/", "~"))
    if is_remote(path) or (is_absolute and not image):
        raise LaunchError(f"{label} {path} is read from the pod's disk: commit it to the tree")
    is_file = path.startswith(".") or (Path(path).is_file() and not is_absolute)
    if is_file and not is_committed(path):
        raise LaunchError(f"{label} {path} is not committed: pods have the committed tree")


def _shards(run: ShardedRun, command: list[str], args: argparse.Namespace) -> dict[str, Any]:
    rules = [
        {
            "action": "Ignore",  # a preempted or drained node: the pod is replaced
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "worker", "operator": "In", "values": [WRONG_COMMAND]},
        },
    ]
    output = args.output if run.command[0] == "judge" else args.out
    env = [
        {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{output}.compilation_cache"},
        {"name": "TPU_WORKER_ID", "value": "0"},  # each pod is a slice of its own
        {"name": "TPU_WORKER_HOSTNAMES", "value": "localhost"},
    ]
    chips = {"google.com/tpu": run.tpu_slice.chips_per_host}
    return {
        "completionMode": "Indexed",
        "completions": run.count,
        "parallelism": run.count,
        "backoffLimitPerIndex": RETRIES,
        "podFailurePolicy": {"rules": rules},
        "template": {
            "spec": {
                **_pod(run, command, env, chips),
                "nodeSelector": gke.node_selector(run.tpu_slice, run.spot),
            }
        },
    }


def _merge(run: ShardedRun, args: argparse.Namespace) -> dict[str, Any]:
    if run.command[0] == "judge":
        label = shards.shard_of(Shard(1, run.count).path(args.output))
        assert label is not None
        folder, _, file = args.output.rpartition("/")
        suffix = f".{file.rpartition('.')[2]}" if "." in file else ""
        command = ["merge", f"{folder}/{label[0]}-*-of-{run.count:05d}{suffix}"]
        command += ["--out", args.output, "--overwrite"]
    else:
        command = ["merge", args.out, "--out", args.out, "--overwrite"]
    return {
        "backoffLimit": RETRIES,
        "parallelism": 1,
        "completions": 1,
        "template": {"spec": _pod(run, command, [], MERGE_RESOURCES)},
    }


def _pod(
    run: ShardedRun, command: list[str], env: list[dict[str, Any]], resources: dict[str, Any]
) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "worker",
                "image": run.image or gke.PYTHON_IMAGE,
                "command": ["bash", "-c", _script(run, command)],
                "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": gke.HUB_TOKEN}}, *env],
                "resources": {"requests": dict(resources), "limits": dict(resources)},
            }
        ],
    }


def _script(run: ShardedRun, command: list[str]) -> str:
    """The script of a pod. Exit status 1 says that some rows are error rows: the work is done."""
    words = [word if word.startswith("$((") else shlex.quote(word) for word in command]
    fetch = "" if run.image else f"({gke.fetch_script(run.tree)}) || exit {gke.START_AGAIN}; "
    program = f"{gke.HOME}/.venv/bin/python -m grm_jax.cli {' '.join(words)}"
    return f"{fetch}cd {gke.HOME} && {program}; status=$?; [ $status -eq 1 ] || exit $status"
