"""`grm merge SHARD... --out OUT`: joins the shards of `grm judge` or `grm eval --shard I/N`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grm_jax.commands import Parser, run_command
from grm_jax.evals import cli, run, shards as evaluation
from grm_jax.judging import arguments, shards
from grm_jax.judging.cli import print_summary
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.summary import failure_text
from grm_jax.storage import as_path, check_outputs, fetch, forget, is_remote


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = Parser(
        prog="grm merge",
        usage="grm merge SHARD... --out OUT [options]",
        description="Joins the N shards that `grm judge --shard I/N` or `grm eval --shard I/N` "
        "wrote on independent machines. The result is that of one run without --shard.",
        epilog="Exit status: 0, 1 some rows are error rows, 2 a shard is missing, incomplete, "
        "damaged, or of another run.",
    )
    p.add_argument(
        "shards",
        nargs="+",
        metavar="SHARD",
        help="files such as OUT-00001-of-00008.jsonl, or folders that hold them; may be gs://",
    )
    p.add_argument(
        "--out", required=True, help="of grm judge the JSONL file, of grm eval the folder to write"
    )
    p.add_argument(
        "--data", metavar="DIR", help="of grm eval: the benchmarks' folder, if it was moved"
    )
    p.add_argument("--against", metavar="DIR", help="of grm eval: as of the command of the shards")
    p.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm merge`; returns the exit status."""
    return run_command("grm merge", lambda: merge(parser().parse_args(argv)))


def merge(args: argparse.Namespace) -> int:
    """Merges the shards of a file, or of an evaluation; returns the exit status."""
    files = shards.find(args.shards)
    if any(path.suffix == evaluation.SUFFIX for path in files):
        headers = evaluation.read_headers(files)
        settings = headers[0][1]
        kept = _arguments(settings, args)
        tasks = _load(settings, kept)
        with evaluation.output_folder(args.out) as out:
            evaluation.merge_rows(headers, out, args.overwrite)
            _report(settings, kept, tasks, out)
        return 0
    if args.data or args.against:
        raise ValueError("--data and --against are of shards of grm eval: remove them")
    return _merge_rows(files, args)


def _merge_rows(files: list[Any], args: argparse.Namespace) -> int:
    output = as_path(args.out)
    if not is_remote(output):
        if output.is_dir():
            raise ValueError(f"{args.out} is a folder: name the JSONL file to write")
        check_outputs([output], files)
    if output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.out} exists: pass --overwrite to replace it")
    merged = shards.merge(files, output)
    forget(args.out)
    local = str(fetch(args.out))
    print_summary(args.out, local, merged.rows, merged.errors)
    if merged.errors:
        print(f"The error rows of {args.out} have all reasons.", file=sys.stderr)
        print(failure_text(read_judged_rows(local)), file=sys.stderr)
    return 1 if merged.errors else 0


def _arguments(settings: Mapping[str, Any], args: argparse.Namespace) -> argparse.Namespace:
    """Returns the arguments of the shards' command, with the folders that `grm merge` names."""
    kept = argparse.Namespace(**settings["arguments"], part=False, scores=None)
    kept.data = str(fetch(args.data or kept.data))
    kept.against = args.against or kept.against
    return kept


def _load(settings: Mapping[str, Any], kept: argparse.Namespace) -> dict[str, cli.Task]:
    """Loads the benchmarks. Raises ValueError for other comparisons than the shards have."""
    tasks = {task.benchmark.name: task for task in cli.load(kept)}
    for saved in settings["tasks"]:
        task = tasks.get(name := saved["benchmark"])
        if task is None or run.fingerprint(task.comparisons) != saved["comparisons"]:
            raise ValueError(
                f"{kept.data} has other comparisons of {name} than the shards were judged on: give "
                "the same files with --data"
            )
    return tasks


def _report(
    settings: Mapping[str, Any], kept: argparse.Namespace, tasks: Mapping[str, cli.Task], out: Path
) -> None:
    """Measures the merged rows and writes the reports, as the single run does."""
    entries = []
    for saved in settings["tasks"]:
        task = tasks[name := saved["benchmark"]]
        judged = run.load_judged(task.comparisons, out / f"{name}.jsonl")
        greedy = None
        if saved["greedy"]:
            greedy = run.load_judged(task.comparisons, out / f"{name}.greedy.jsonl")
        cost = shards.read_json(out / f"{name}.cost.json")
        cost |= arguments.price_of(kept, cost) | saved["cost"]
        made = cli.Judgement(judged, saved["judge"], greedy, cost)
        entries.append(cli.measured(task, made, kept))
    cli.write_reports(entries, out)


if __name__ == "__main__":
    sys.exit(main())
