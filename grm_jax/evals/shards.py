"""Shards of `grm eval`: the settings beside a shard's rows, and the reports of all shards."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.evals import results, run
from grm_jax.judging import arguments, shards
from grm_jax.judging.shards import Shard
from grm_jax.storage import as_path, check_outputs, fetch, is_remote, write_atomic

NAME, SUFFIX = shards.EVALUATION, ".json"
# What the reports depend on, beside the rows. The data's folder may differ between machines.
ARGUMENTS = (
    *("benchmark", "data", "limit", "subset", "with_reference", "draws", "against"),
    *("price_in", "price_out"),
)
FREE = ("data", "against")


def judge(args: argparse.Namespace, shard: Shard) -> int:
    """Judges one shard of every benchmark into --out; returns the exit status.

    At the end it writes OUT/evaluation-I-of-N.json with what the reports need beside the rows.
    """
    from grm_jax.evals import cli

    if not args.model:
        raise ValueError("--shard needs --model: a baseline or a scores file needs one machine")
    out = as_path(args.out or Path("eval") / cli.judge_name(args))
    if is_remote(args.data):
        args = argparse.Namespace(**vars(args) | {"data": str(fetch(args.data))})
    loaded = cli.load(args)
    path = shard.path(out / f"{NAME}{SUFFIX}")
    if not is_remote(out):
        read = [*arguments.files_read(args), *(file for task in loaded for file in task.read)]
        names = [n for task in loaded for n in _names(task.benchmark.name, True)]
        check_outputs([path, *(shard.path(out / f"{name}.jsonl") for name in names)], read)
        results.make_folder(Path(out))
    judge_task, tasks = cli.model_function(args, out, shard), []
    for task in loaded:
        made = judge_task(task)
        tasks.append(
            {
                "benchmark": task.benchmark.name,
                "judge": made.judge,
                "greedy": made.greedy is not None,
                "comparisons": run.fingerprint(task.comparisons),
                "cost": {n: made.cost[n] for n in ("parameters",) if n in made.cost},
            }
        )
        rows = len(shard.select(task.comparisons))
        print(f"{task.benchmark.name}: {rows} of {len(task.comparisons)} rows, shard {shard}")
    settings = {"shard": str(shard), "arguments": {n: getattr(args, n) for n in ARGUMENTS}}
    write_atomic(path, strict_json.dumps(settings | {"tasks": tasks}, indent=1) + "\n")
    name = shlex.quote(str(out))
    print(f"{path}\nnext, with all shards: grm merge {name} --out {name}")
    return 0


def _names(benchmark: str, greedy: bool) -> tuple[str, ...]:
    """Returns the names of the files of rows of a benchmark, without suffix."""
    return (benchmark, f"{benchmark}.greedy")[: 1 + greedy]


def merge(found: Sequence[Any], args: argparse.Namespace) -> int:
    """Merges an evaluation: rows, cost, and the reports; returns the exit status."""
    paths = [path for path in found if (shards.shard_of(path) or ("",))[0] == NAME]
    headers = [(path, _settings(path)) for path in paths]
    compared = [(path, _compared(settings)) for path, settings in headers]
    shards.check_same_run(compared)
    first = headers[0][1]
    with _output_folder(args.out) as out:
        for task in first["tasks"]:
            _merge_task(task, headers, out, args.overwrite)
        _report(first, args, out)
    return 0


def _settings(path: Any) -> dict[str, Any]:
    settings = shards.read_json(path)
    if not {"shard", "arguments", "tasks"} <= settings.keys():
        raise ValueError(f"{path} is damaged: judge the shard again")
    return settings


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that all shards of a run share, and the shard."""
    compared = {n: value for n, value in settings["arguments"].items() if n not in FREE}
    return compared | {"shard": settings["shard"], "tasks": settings["tasks"]}


def _merge_task(
    task: Mapping[str, Any], headers: Sequence[tuple[Any, Any]], out: Path, overwrite: bool
) -> None:
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
def _output_folder(out: str) -> Iterator[Path]:
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


def _report(settings: Mapping[str, Any], args: argparse.Namespace, out: Path) -> None:
    """Measures the merged rows and writes the reports, as the single run does."""
    from grm_jax.evals import cli

    kept = argparse.Namespace(**settings["arguments"], part=False, scores=None)
    kept.data = str(fetch(args.data or kept.data))
    kept.against = args.against or kept.against
    tasks = {task.benchmark.name: task for task in cli.load(kept)}
    entries = []
    for saved in settings["tasks"]:
        name = saved["benchmark"]
        task = tasks.get(name)
        if task is None or run.fingerprint(task.comparisons) != saved["comparisons"]:
            raise ValueError(
                f"{kept.data} has other comparisons of {name} than the shards were judged on: give "
                "the same files with --data"
            )
        judged = run.load_judged(task.comparisons, out / f"{name}.jsonl")
        greedy = None
        if saved["greedy"]:
            greedy = run.load_judged(task.comparisons, out / f"{name}.greedy.jsonl")
        cost = shards.read_json(out / f"{name}.cost.json")
        cost |= arguments.price_of(kept, cost) | saved["cost"]
        made = cli.Judgement(judged, saved["judge"], greedy, cost)
        entries.append(cli.measured(task, made, kept))
    cli.write_reports(entries, out)
