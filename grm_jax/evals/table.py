"""`grm table paper RUN ...`: results of several runs beside the paper's tables and figure 4.

A RUN is an --out folder of `grm eval`, or NAME=FOLDER. Benchmarks other than the paper's four get a
table of their own.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from grm_jax import strict_json
from grm_jax.commands import Number, Parser, run_command, write_output
from grm_jax.evals import results
from grm_jax.evals.run_tables import build, markdown, terminal
from grm_jax.evals.table_page import page
from grm_jax.storage import check_outputs

_OUT_FORMATS = (".md", ".html", ".json")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="grm table",
        description="Compares results of `grm eval` with each other, and with the paper's.",
    )
    p.add_argument(
        "what",
        metavar="paper|runs",
        choices=("paper", "runs"),
        help="with or without the paper's rows",
    )
    p.add_argument(
        "runs", nargs="+", metavar="RUN", help="--out folder of grm eval, or NAME=FOLDER"
    )
    p.add_argument(
        "--out",
        metavar="FILE",
        help="file to write: .md, .html or .json (default: the main columns to the terminal, or "
        "Markdown if the output is redirected)",
    )
    p.add_argument(
        "--flops_per_token",
        default="",
        metavar="NAME=FLOPS,...",
        help="forward FLOPs per token of a run's model (default: 2 x parameters)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `grm table`; returns the exit status."""
    return run_command("grm table", lambda: tabulate(parser().parse_args(argv)))


def tabulate(args: argparse.Namespace) -> int:
    """Reads the runs, and writes or prints the tables."""
    if args.out:
        if Path(args.out).suffix not in _OUT_FORMATS:
            raise ValueError(
                f"--out {args.out}: name a file that ends in {', '.join(_OUT_FORMATS)}"
            )
        check_outputs([args.out], [results_path(run.rpartition("=")[2]) for run in args.runs])
    runs = read_runs(args.runs)
    built = build(runs, args.what == "paper", flops_of(args.flops_per_token, runs))
    if args.out and args.out.endswith(".json"):
        text = strict_json.dumps(built, indent=1) + "\n"
    elif args.out and args.out.endswith(".html"):
        text = page(built)
    elif not args.out and sys.stdout.isatty():
        terminal(built)
        return 0
    else:
        text = markdown(built)
    return write_output(text, args.out)


def flops_of(text: str, runs: Collection[str]) -> dict[str, float]:
    """Parses "NAME=FLOPS,..." with names of `runs`."""
    flops = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.rpartition("=")
        if name not in runs:
            raise ValueError(f"--flops_per_token {pair}: {name!r} is none of {', '.join(runs)}")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--flops_per_token {pair}: write NAME=FLOPS, as in a=1e9") from None
        flops[name] = Number(float, above=0).check(f"--flops_per_token {name}=", number)
    return flops


def results_path(run: str) -> Path:
    """Returns the results file of a RUN argument: the file itself, or the one in a folder."""
    return Path(run) / results.FILE if Path(run).is_dir() else Path(run)


def read_runs(arguments: Sequence[str]) -> dict[str, dict[str, dict]]:
    """Reads the results of each RUN argument.

    Raises ValueError for a folder without results, or two runs of one name.
    """
    runs: dict[str, dict[str, dict]] = {}
    for argument in arguments:
        name, _, folder = argument.rpartition("=")
        path = results_path(folder)
        if not path.is_file():
            raise ValueError(f"{folder} holds no results.json: give an --out folder of `grm eval`")
        name = name or Path(folder).resolve().name
        entries = results.read_results(path)
        if not entries:
            raise ValueError(f"{path} has no entries: run `grm eval` into this folder first")
        if name in runs:
            raise ValueError(f"two runs are called {name!r}: name them as NAME=FOLDER")
        runs[name] = {entry["benchmark"]: entry for entry in entries}
    return runs
