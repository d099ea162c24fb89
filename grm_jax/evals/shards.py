"""Shards of `grm eval`: the settings beside a shard's rows, and the reports of all shards."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.evals import results, run
from grm_jax.hosts import distributed
from grm_jax.judging import arguments, shards
from grm_jax.judging.shards import Shard
from grm_jax.storage import as_path, check_outputs, is_remote, write_atomic

NAME, SUFFIX = shards.EVALUATION, ".json"
# What the reports depend on, beside the rows. The data's folder may differ between machines.
ARGUMENTS = (
    *("benchmark", "data", "limit", "subset", "with_reference", "draws", "against"),
    *("price_in", "price_out"),
)
FREE = ("data", "against")


def judge(
    args: argparse.Namespace,
    shard: Shard,
    tasks: Sequence[Any],
    out: Any,
    load: Callable[[], Callable[[Any], Any]],
) -> int:
    """Judges one shard of every benchmark into `out`; returns the exit status.

    At the end it writes OUT/evaluation-I-of-N.json with what the reports need beside the rows.

    Args:
      tasks: `run.Task`s.
      out: folder, may be in a bucket.
      load: loads the judge; returns the function from a task to its `run.Judgement`.
    """
    path = shard.path(out / f"{NAME}{SUFFIX}")
    if distributed.is_first() and not is_remote(out):
        read = [*arguments.files_read(args), *(file for task in tasks for file in task.read)]
        names = [name for task in tasks for name in _names(task.benchmark.name, True)]
        check_outputs([path, *(shard.path(out / f"{name}.jsonl") for name in names)], read)
        results.make_folder(Path(out))
    judge_task, saved = load(), []
    for task in tasks:
        made, name = judge_task(task), task.benchmark.name
        saved.append(
            {
                "benchmark": name,
                "judge": made.judge,
                "greedy": made.greedy is not None,
                "comparisons": run.fingerprint(task.comparisons),
                "cost": {n: made.cost[n] for n in ("parameters",) if n in made.cost},
            }
        )
        if distributed.is_first():
            count = len(shard.select(task.comparisons))
            print(f"{name}: {count} of {len(task.comparisons)} rows, shard {shard}")
    if not distributed.is_first():
        return 0
    settings = {"shard": str(shard), "arguments": {n: getattr(args, n) for n in ARGUMENTS}}
    write_atomic(path, strict_json.dumps(settings | {"tasks": saved}, indent=1) + "\n")
    folder = shlex.quote(str(out))
    print(f"{path}\nnext, when all shards are judged: grm merge {folder} --out {folder}")
    return 0


def _names(benchmark: str, greedy: bool) -> tuple[str, ...]:
    """Returns the names of the files of rows of a benchmark, without suffix."""
    return (benchmark, f"{benchmark}.greedy")[: 1 + greedy]


Headers = Sequence[tuple[Any, Mapping[str, Any]]]  # pairs of a shard's path and its settings


def read_headers(files: Sequence[Any]) -> Headers:
    """Reads the settings of all shards of one evaluation.

    files: what `judging.shards.find` returns.  Raises as `judging.shards.check_same_run`.
    """
    paths = [path for path in files if (shards.shard_of(path) or ("",))[0] == NAME]
    headers = [(path, _settings(path)) for path in paths]
    shards.check_same_run([(path, _compared(settings)) for path, settings in headers])
    return headers


def merge_rows(headers: Headers, out: Path, overwrite: bool) -> None:
    """Merges the rows and the cost of an evaluation.  Raises as `judging.shards.merge`."""
    for task in headers[0][1]["tasks"]:
        _merge_task(task, headers, out, overwrite)


def _settings(path: Any) -> dict[str, Any]:
    settings = shards.read_json(path)
    if not {"shard", "arguments", "tasks"} <= settings.keys():
        raise ValueError(f"{path} is damaged: judge the shard again")
    return settings


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that all shards of a run share, and the shard."""
    compared = {n: value for n, value in settings["arguments"].items() if n not in FREE}
    return compared | {"shard": settings["shard"], "tasks": settings["tasks"]}


def _merge_task(task: Mapping[str, Any], headers: Headers, out: Path, overwrite: bool) -> None:
    for name in _names(task["benchmark"], task["greedy"]):
        rows = [Shard.parse(s["shard"]).path(path.parent / f"{name}.jsonl") for path, s in headers]
        target = out / f"{name}.jsonl"
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists: pass --overwrite to replace it")
        merged = shards.merge(rows, target)
        from grm_jax.judging.run import cost_of

        seconds = sum(shards.read_json(p.with_suffix(".cost.json"))["seconds"] for p in rows)
        write_atomic(
            target.with_suffix(".cost.json"), strict_json.dumps(cost_of(seconds, merged.counts))
        )


@contextlib.contextmanager
def output_folder(out: str) -> Iterator[Path]:
    """Yields the folder to write; of a bucket's, a local one that is uploaded at the end."""
    if not is_remote(out):
        results.make_folder(Path(out))
        yield Path(out)
        return
    remote = as_path(out)
    with tempfile.TemporaryDirectory(prefix="grm_jax-") as scratch:
        folder = Path(scratch)
        if (remote / results.FILE).exists():  # entries of other benchmarks stay
            write_atomic(folder / results.FILE, (remote / results.FILE).read_bytes())
        yield folder
        for file in sorted(folder.iterdir()):
            write_atomic(remote / file.name, file.read_bytes())
