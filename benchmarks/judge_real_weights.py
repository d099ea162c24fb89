"""Runs `grm judge` end to end on real weights and data: Gemma 3 270M on PandaLM and GSM8K.

    python benchmarks/judge_real_weights.py --model FOLDER --data DATA --work FOLDER

Judges 50 PandaLM pairs and 50 GSM8K groups of four. Writes rows and report pages to --work and the
rates to benchmarks/results/judge_gemma3_270m.json. The same command resumes a killed run.

The model is a base model of 270 million parameters that was never trained to judge, and under the
`compact` template it only continues the responses. So it gets a template of worked examples and
scores alone, and a chat format without turns. This shows that the path from files to verdicts
works, and the rates of an untrained judge; it does not show good judging.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

RESULT = common.RESULTS / "judge_gemma3_270m.json"
SETS = ("pandalm", "gsm8k")
NUM_COMPARISONS = 50
MAX_CHARACTERS = 1000  # of all responses together: on a CPU, long texts would take most of the time
SETTINGS = ("model", "template", "k", "temperature", "seed", "max_new_tokens", "orders", "vote")


def write_input(name: str, data: Path, path: Path) -> None:
    """Writes labelled comparisons, drawn by a hash of their ids, as input of `grm judge`."""
    from grm_jax.evals.benchmarks import BENCHMARKS
    from grm_jax.evals.run import choose

    short = [
        comparison
        for comparison in BENCHMARKS[name].load(data)
        if len(set(comparison.rewards or ())) > 1
        and sum(map(len, comparison.responses)) <= MAX_CHARACTERS
    ]
    fields = ("id", "query", "responses", "label", "meta")
    rows = [{f: getattr(c, f) for f in fields} for c in choose(short, NUM_COMPARISONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def judge(name: str, args: argparse.Namespace) -> dict[str, int]:
    """Runs `grm judge` on a set, or resumes it; returns what the session took."""
    from grm_jax.judging import cli

    source = args.work / f"{name}.jsonl"
    tokenizer = common.base_model_tokenizer(args.model / "tokenizer.model", args.work / "tokenizer")
    if not source.exists():
        write_input(name, args.data, source)
    options = {
        "model": args.model,
        "tokenizer": tokenizer,
        "template": args.template,
        "k": args.k,
        "dtype": "float32",
        "max_new_tokens": args.max_new_tokens,
        "prompt_slots": 8,
        "rows": 2,
        "chunk": 16,
    }
    output = args.work / f"{name}.out.jsonl"
    clock, cpu = time.monotonic(), time.process_time()
    status = cli.main([str(source), str(output), *common.flags(options), "--resume"])
    if status == 2:
        raise SystemExit(2)
    return {
        "exit_status": status,
        "last_session_seconds": round(time.monotonic() - clock),
        "last_session_cpu_seconds": round(time.process_time() - cpu),
    }


def write_result(name: str, output: Path, session: dict[str, int]) -> None:
    """Writes the rates of a set into the result file, and a report page beside the rows."""
    from grm_jax.judging import report
    from grm_jax.judging.codec import read_judged_rows
    from grm_jax.judging.summary import accuracy_by_k, summarise

    page = output.with_name(f"{name}.html")
    report.main([str(output), "-o", str(page), "--title", f"Gemma 3 270M on {name}"])
    rows = list(read_judged_rows(output))
    result: dict[str, Any] = {
        "comparisons": f"{len(rows)} of {NUM_COMPARISONS}",
        "rates": summarise(rows),
        "by_k": accuracy_by_k(rows),
        "settings": {key: rows[0][key] for key in SETTINGS},
        **session,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
    }
    common.write_json(RESULT, common.read_json(RESULT, {}) | {name: result})


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument(
        "--template", default=str(Path(__file__).with_name("judge_base_model.jinja"))
    )
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=20)
    parser.add_argument(
        "--as_it_stands", action="store_true", help="judge nothing: report the rows in --work"
    )
    args = parser.parse_args()
    for name in args.sets:
        output = args.work / f"{name}.out.jsonl"
        session = {} if args.as_it_stands else judge(name, args)
        if not output.exists():
            output = output.with_name(f"{output.name}.part")
        write_result(name, output, session)


if __name__ == "__main__":
    main()
