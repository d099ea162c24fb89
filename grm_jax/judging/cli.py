"""`grm judge IN OUT --model PATH`: scores the comparisons of a file, or one of the command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grm_jax.commands import Number, Parser, run_command
from grm_jax.data import sources
from grm_jax.data.comparisons import read_rows
from grm_jax.data.layouts import LAYOUTS
from grm_jax.devices import watch_compilations
from grm_jax.hosts import distributed
from grm_jax.judging import arguments
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.options import Options
from grm_jax.judging.summary import failure_text, summarise, unparsed_text
from grm_jax.storage import as_path, check_outputs, check_replaceable, is_remote
from grm_jax.types import FAILED, Comparison

if TYPE_CHECKING:  # JAX is imported only when a model is loaded
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.run import RunResult
    from grm_jax.judging.shards import Shard

STDOUT = "-"
LIMIT = Number(int, 1, use="judge at least one row")
_OF_FILES, _OF_ONE = ("format", "limit", "resume", "overwrite", "shard"), ("reference", "system")
_OTHER_FORMATS = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz")  # not for an output


def parser() -> Parser:
    """Returns the parser of the command line."""
    p = Parser(
        prog="grm judge",
        usage="grm judge IN OUT --model MODEL [options]\n"
        "       grm judge --query TEXT --response TEXT --response TEXT --model MODEL",
        description="Scores the comparisons of a file with a generative reward model: k critiques "
        "per comparison, then a vote. With --query, prints one verdict with its critiques.",
        epilog="Exit status: 0 all rows judged, 1 some rows are error rows, 2 wrong command line "
        "or files, 130 interrupted.",
    )
    p.add_argument(
        "input",
        metavar="IN",
        nargs="?",
        help="comparisons: a JSON, JSONL, CSV, Parquet or Arrow file, a folder, - for standard "
        "input, or hf://datasets/ORG/NAME[/SPLIT]",
    )
    p.add_argument(
        "output",
        metavar="OUT",
        nargs="?",
        help="JSONL file to write, or - for standard output; an unfinished run is in OUT.part",
    )
    p.add_argument(
        "--model",
        required=True,
        help="model folder, checkpoint, GGUF file or hub name; with --endpoint, the name there",
    )
    p.add_argument(
        "--format",
        choices=sorted(LAYOUTS),
        metavar="NAME",
        help=f"layout of the input: {', '.join(sorted(LAYOUTS))} (default: detected for each row)",
    )
    p.add_argument("--limit", type=LIMIT, help="judge the first N rows only")
    earlier = p.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="resume a run, or add rows to it")
    earlier.add_argument(
        "--overwrite", action="store_true", help="start over, replacing earlier output"
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments.add_shard_argument(p)
    one = p.add_argument_group("one comparison, instead of IN and OUT")
    one.add_argument("--query", metavar="TEXT", help="the user's text")
    one.add_argument(
        "--response", metavar="TEXT", action="append", help="a response; repeat the flag for each"
    )
    one.add_argument("--reference", metavar="TEXT", help="a known good answer")
    one.add_argument("--system", metavar="TEXT", help="a system message before the query")
    arguments.add_judging_arguments(p)
    p.hints = dict.fromkeys(("--out", "--output"), "OUT is the second argument")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm judge`; returns the exit status."""

    def command() -> int:
        return run_command("grm judge", lambda: _run(parser(), argv))

    return distributed.together(command, "grm judge")


def _run(p: argparse.ArgumentParser, argv: list[str] | None) -> int:
    args = p.parse_args(argv)
    one = args.query is not None
    if one != bool(args.response) or one == bool(args.input) or one == bool(args.output):
        p.error("give IN and OUT, or --query and one --response or more")
    for name in _OF_FILES if one else _OF_ONE:
        if getattr(args, name) not in (None, False):
            p.error(f"--{name} needs {'IN and OUT' if one else '--query and --response'}")
    if one:
        return run_command("grm judge", lambda: judge_one(args))
    rows = f"{args.output}.part" if args.shard is None else "the shard's file"
    hint = f"{rows} holds the finished rows; --resume resumes the run"
    return run_command("grm judge", lambda: judge(args), "" if args.output == STDOUT else hint)


def judge_one(args: argparse.Namespace) -> int:
    """Judges the comparison of the command line, and prints its verdict and critiques."""
    options = _options(args)
    user, system = (
        {"role": "user", "content": args.query},
        {"role": "system", "content": args.system},
    )
    query = args.query if args.system is None else [system, user]
    comparison = Comparison(query, tuple(args.response), args.reference)
    arguments.join_hosts(args, "grm judge")
    with _results_on_stderr():
        loaded = arguments.judge_from(args)
        with _compilations_on_terminal(loaded, options):
            (verdict,) = loaded([comparison], **dataclasses.asdict(options))
    if not distributed.is_first():
        return 0
    print(verdict.explain(width=shutil.get_terminal_size().columns))
    return 0


def judge(args: argparse.Namespace) -> int:
    """Judges a file. Wrong arguments and files are errors before the weights are loaded."""
    options = _options(args)
    arguments.join_hosts(args, "grm judge")
    if distributed.has_peers() and STDOUT in (args.input, args.output):
        raise ValueError("several hosts need files as IN and OUT: every host reads the input")
    _check_files(args)
    if args.output != STDOUT:
        return _judge_file(args, options, args.output)
    with tempfile.TemporaryDirectory(prefix="grm_jax-") as folder:
        output = Path(folder) / f"{sources.name_of(args.input)}.jsonl"
        with _results_on_stderr():
            status = _judge_file(args, options, str(output))
        with open(output, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
    return status


def _options(args: argparse.Namespace) -> Options:
    from grm_jax.text import rendering

    arguments.fill_unset(args)
    options = arguments.options_from(args)
    if args.template not in rendering.FAMILIES:
        rendering.load(args.template)
    return options


def _check_files(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError for files that cannot be read or written."""
    from grm_jax.judging.run import part_path, refuse_existing

    if arguments.shard_from(args) and STDOUT in (args.input, args.output):
        raise ValueError("--shard needs files as IN and OUT: every shard reads the whole input")
    if args.output == STDOUT and args.resume:
        raise ValueError("--resume needs a file: rows on standard output are not stored")
    streams = (
        (args.input, sys.stdin, "standard input"),
        (args.output, sys.stdout, "standard output"),
    )
    for given, stream, name in streams:
        if given == STDOUT and stream is None:
            raise ValueError(f"{name} is closed: name a file instead of -")
    if args.input == sources.STDIN and sys.stdin.isatty():
        print("reading comparisons from the terminal; Ctrl-D ends them", file=sys.stderr)
    path = Path(args.input)
    if (
        args.input != sources.STDIN
        and path.suffix
        and not is_remote(args.input)
        and not path.exists()
    ):
        raise FileNotFoundError(f"no input file {args.input}{sources.hub_hint(args.input)}")
    if not any(True for _ in read_rows(args.input, args.format)):
        raise ValueError(f"{args.input} has no rows")
    if args.output == STDOUT or not distributed.is_first():
        return
    if is_remote(args.output):
        if args.shard is None:
            raise ValueError(
                f"{args.output}: the output is a local file: copy it to a bucket later"
            )
        as_path(args.output)
        return
    output = Path(args.output)
    if output.suffix in _OTHER_FORMATS:
        jsonl = output.with_name(output.name.split(".")[0] + ".jsonl")
        raise ValueError(f"{output}: rows are JSON lines: name it {jsonl}")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} of the output does not exist: create it")
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{output} is not writable: name a file in a folder of yours")
    if shard := arguments.shard_from(args):
        output = Path(shard.path(output))
    check_replaceable(output)
    resumed = args.resume or args.overwrite
    if not resumed:
        refuse_existing(output)
    read = [*sources.local_files(args.input), *arguments.files_read(args)]
    check_outputs([output, part_path(output)], read)
    if not resumed:
        refuse_existing(part_path(output))


def _judge_file(args: argparse.Namespace, options: Options, output: str) -> int:
    from grm_jax.judging.run import RunConfig, judge_file

    existing = "resume" if args.resume else "overwrite" if args.overwrite else "refuse"
    shard = arguments.shard_from(args)
    config = RunConfig(existing, chunk=args.chunk, progress=not args.quiet, shard=shard)
    judge = arguments.judge_from(args)
    with distributed.lost_peer_first():
        result = judge_file(
            judge, *(args.input, output, options, config), format=args.format, limit=args.limit
        )
    name = "standard output" if args.output == STDOUT else args.output
    if not distributed.is_first():
        return 1 if result.errors else 0
    if shard:
        return _print_shard(args, shard, result)
    resumed = f", {result.resumed} from an earlier run" if result.resumed else ""
    rates = print_summary(name, output, result.rows, result.errors, resumed)
    if args.endpoint:
        print(requests_text(rates, judge, args), file=sys.stderr)
    if result.errors:
        print(f"The error rows of {name} have all reasons.", file=sys.stderr)
        print(failure_text(read_judged_rows(output)), file=sys.stderr)
    if args.output != STDOUT:
        print(f"next: grm report {shlex.quote(args.output)}", file=sys.stderr)
    return 1 if result.errors else 0


def print_summary(
    name: str, output: str, rows: int, errors: int, more: str = ""
) -> Mapping[str, Any]:
    """Prints the counts and rates of an output; returns the rates of `summarise`.

    name: of the output as it is shown.  more: follows the counts.
    """
    errors_text = f", {errors} of them errors" if errors else ""
    rates = summarise(read_judged_rows(output))
    print(f"{name}: {rows} rows{errors_text}{more}\n{rates_text(rates)}", file=sys.stderr)
    return rates


def _print_shard(args: argparse.Namespace, shard: Shard, result: RunResult) -> int:
    """Prints the counts of a shard, and how to merge all; returns the exit status."""
    errors = f", {result.errors} of them errors" if result.errors else ""
    print(
        f"{shard.path(args.output)}: {result.rows} rows of shard {shard}{errors}", file=sys.stderr
    )
    path = as_path(args.output)
    pattern = path.with_name(f"{path.stem}-*-of-{shard.count:05d}{path.suffix}")
    names = f"{shlex.quote(str(pattern))} --out {shlex.quote(args.output)}"
    print(f"next, when all shards are judged: grm merge {names}", file=sys.stderr)
    return 1 if result.errors else 0


def _compilations_on_terminal(judge: Judge, options: Options) -> contextlib.AbstractContextManager:
    """Shows on stderr, if it is a terminal, which program is being compiled."""
    from grm_jax.judging.run import compiling_text, num_programs

    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    programs = num_programs(judge, options)

    def show(n: int, done: bool) -> None:
        text = "\r\x1b[K" if done else f"\r{compiling_text(n, programs)}"
        print(text, end="", file=sys.stderr, flush=True)

    return watch_compilations(show)


def _results_on_stderr() -> contextlib.AbstractContextManager:
    """Sends what libraries print to stderr, because stdout is for results alone."""
    return contextlib.redirect_stdout(sys.stderr)


def rates_text(rates: Mapping[str, Any]) -> str:
    """Returns the main rates of `summarise`, and what to do if few critiques are parsed."""
    share = lambda name: "-" if rates[name] is None else f"{rates[name]:.1%}"  # noqa: E731
    names = {"parsed": "parse rate", "ties": "ties", "flips": "flips"}
    if rates["comparisons"] and not rates["critiques"]:  # a scalar reward model
        names = {"ties": "ties"}
    text = ", ".join(f"{label} {share(name)}" for name, label in names.items())
    if rates["labelled"]:
        text += (
            f"\naccuracy {share('accuracy')} of {rates['labelled']} labelled, "
            f"{share('tie_credit')} with ties shared"
        )
    hint = unparsed_text(rates["statuses"])
    return f"{text}\n{hint}" if hint else text


def requests_text(rates: Mapping[str, Any], judge: Judge, args: argparse.Namespace) -> str:
    """Returns tokens and price of an output by endpoint, and the failed tries of this session."""
    text = f"{rates['critiques']:,} critiques, {rates['statuses'].get(FAILED, 0):,} of them failed"
    text += f"; {rates['prompt_tokens']:,} prompt tokens, {rates['tokens']:,} new"
    text += "".join(f", price {price:,.4f}" for price in arguments.price_of(args, rates).values())
    tries = getattr(judge.sampler, "tries", {})
    kinds = ", ".join(f"{n:,} x {kind}" for kind, n in sorted(tries.items()))
    return f"{text}\nfailed tries of this session: {kinds}" if kinds else text
