"""`grm judge` end to end on real weights and real data: Gemma 3 270M over 50 PandaLM pairs and 50 GSM8K groups of four.

    .venv/bin/python benchmarks/judge_real_weights.py --model FOLDER --data ../shared/data --work FOLDER

Writes the rows and the report page to --work and the rates to benchmarks/results/judge_gemma3_270m.json. A killed run goes on.
The model is a base model of 270 million parameters that was never trained to judge. Under the `compact` template it only goes on
writing responses, so it gets a template of worked examples and scores alone, and a chat format without turns. What is shown is that
the way from files to verdicts works, and what an untrained judge's rates are, not that it judges well.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "judge_gemma3_270m.json"
SETS = ("pandalm", "gsm8k")
EACH = 50
NO_TURNS = "{{ bos_token }}{% for message in messages %}{{ message.content }}\n\n{% endfor %}"
MOST_CHARACTERS = 1000  # of all responses together: long texts would make most of the time on a CPU


def write_input(name: str, data: Path, path: Path) -> None:
    """50 labelled comparisons of a set, drawn by a hash of their ids, as rows of `grm judge`."""
    from grm_jax.evals.benchmarks import BENCHMARKS
    from grm_jax.evals.files import Source
    from grm_jax.evals.run import choose

    found = [
        c
        for c in BENCHMARKS[name].read(Source(data, name))
        if c.rewards is not None and len(set(c.rewards)) > 1
    ]
    found = [c for c in found if sum(map(len, c.responses)) <= MOST_CHARACTERS]
    rows = [
        {
            "id": c.id,
            "query": c.query,
            "responses": list(c.responses),
            "label": c.label,
            "meta": c.meta,
        }
        for c in choose(found, EACH)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--template", default=str(HERE / "judge_base_model.jinja"))
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=20)
    parser.add_argument(
        "--as_it_stands", action="store_true", help="no judging: write down what the journals hold"
    )
    args = parser.parse_args()
    for name in args.sets:
        if args.as_it_stands:
            output = args.work / f"{name}.out.jsonl"
            write_result(
                name,
                output if output.exists() else args.work / f"{name}.out.jsonl.part",
                args.work,
                {},
            )
        else:
            write_result(name, args.work / f"{name}.out.jsonl", args.work, judge(name, args))


def tokenizer_folder(tokenizer: Path, folder: Path) -> Path:
    """A folder with the vocabulary and a chat format that only puts BOS in front."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    (folder / "chat_template.jinja").write_text(NO_TURNS)
    return folder


def judge(name: str, args: argparse.Namespace) -> dict:
    """Runs `grm judge` on a set, going on where it stopped; returns what the session took."""
    from grm_jax.judging import cli

    words = tokenizer_folder(args.model / "tokenizer.model", args.work / "tokenizer")
    source = args.work / f"{name}.jsonl"
    if not source.exists():
        write_input(name, args.data, source)
    clock, cpu = time.monotonic(), time.process_time()
    options = {
        "model": args.model,
        "tokenizer": words,
        "template": args.template,
        "k": args.k,
        "dtype": "float32",
    }
    options |= {"max_new_tokens": args.max_new_tokens, "prompt_slots": 8, "rows": 2, "chunk": 16}
    flags = [str(part) for option, value in options.items() for part in (f"--{option}", value)]
    status = cli.main([str(source), str(args.work / f"{name}.out.jsonl"), *flags, "--resume"])
    if status == 2:
        raise SystemExit(2)
    clock, cpu = time.monotonic() - clock, time.process_time() - cpu
    return {
        "exit_status": status,
        "last_session_seconds": round(clock),
        "last_session_cpu_seconds": round(cpu),
    }


def write_result(name: str, output: Path, work: Path, session: dict) -> None:
    """Rates of a set into the result file, and its report page beside the rows."""
    from grm_jax.judging import report
    from grm_jax.judging.codec import read_judged_rows
    from grm_jax.judging.summary import accuracy_by_k, summarise

    report.main(
        [str(output), "-o", str(work / f"{name}.html"), "--title", f"Gemma 3 270M on {name}"]
    )
    rows = list(read_judged_rows(output))
    found = {
        "comparisons": f"{len(rows)} of {EACH}",
        "rates": summarise(rows),
        "by_k": accuracy_by_k(rows),
    }
    found |= {"settings": {key: rows[0][key] for key in SETTINGS}, **session}
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, shared with other work"
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results | {name: found}, indent=1) + "\n")


SETTINGS = ("model", "template", "k", "temperature", "seed", "max_new_tokens", "orders", "vote")

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
