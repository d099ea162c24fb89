"""`grm judge IN.jsonl OUT.jsonl --model PATH`: scores the comparisons of a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grm_jax.commands import run_command
from grm_jax.data.layouts import LAYOUTS
from grm_jax.judging import arguments
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.summary import summarise


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="grm judge",
        description="Scores the comparisons of a file with a generative reward model: k critiques "
        "per comparison, then a vote.",
        epilog="Exit status: 0 all rows judged, 1 some rows are error rows, 2 wrong command line "
        "or files, 130 interrupted.",
    )
    p.add_argument("input", help="JSONL file (or one JSON array) of comparisons")
    p.add_argument("output", help="JSONL file to write; an unfinished run is in OUTPUT.part")
    p.add_argument("--model", required=True, help="model folder, checkpoint, GGUF file or hub name")
    p.add_argument(
        "--format",
        choices=sorted(LAYOUTS),
        help="format of the input (default: detected for each row)",
    )
    p.add_argument("--limit", type=int, help="judge the first rows only")
    p.add_argument("--resume", action="store_true", help="resume an earlier run")
    p.add_argument("--overwrite", action="store_true", help="start over, replacing earlier output")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments.add_judging_arguments(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs `grm judge`; returns the exit status."""
    args = parser().parse_args(argv)
    hint = f"{args.output}.part holds the finished rows; --resume resumes the run"
    return run_command("grm judge", lambda: judge(args), hint)


def judge(args: argparse.Namespace) -> int:
    """Judges a file. Wrong arguments and files are errors before the weights are loaded."""
    from grm_jax.text import rendering

    arguments.fill_unset(args)
    options = arguments.options_from(args)
    if not Path(args.input).is_file():
        raise FileNotFoundError(f"no input file {args.input}")
    if args.template not in rendering.FAMILIES:
        rendering.load(args.template)
    from grm_jax.judging.run import RunConfig, judge_file, refuse_existing

    existing = "resume" if args.resume else "overwrite" if args.overwrite else "refuse"
    if existing == "refuse":
        refuse_existing(args.output)
    config = RunConfig(existing=existing, chunk=args.chunk, progress=not args.quiet)
    loaded = arguments.judge_from(args)
    result = judge_file(
        loaded, args.input, args.output, options, config, format=args.format, limit=args.limit
    )
    print(
        f"{args.output}: {result.rows} rows, {result.errors} of them errors, {result.resumed} from "
        f"an earlier run\n{rates_text(args.output)}",
        file=sys.stderr,
    )
    return 1 if result.errors else 0


def rates_text(output: str) -> str:
    """Returns the main rates of an output file, in one or two lines."""
    rates = summarise(read_judged_rows(output))
    share = lambda name: "-" if rates[name] is None else f"{rates[name]:.1%}"  # noqa: E731
    text = f"parse rate {share('parsed')}, ties {share('ties')}, flips {share('flips')}"
    if rates["labelled"]:
        text += (
            f"\naccuracy {share('accuracy')} of {rates['labelled']} labelled, "
            f"{share('tie_credit')} with ties shared"
        )
    return text
