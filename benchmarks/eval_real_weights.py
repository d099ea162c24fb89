"""`grm eval` on real weights and real data: Gemma 3 270M over 100 comparisons each of RM-Bench chat, PandaLM and GSM8K groups of four.

    .venv/bin/python benchmarks/eval_real_weights.py --model gemma-3-270m.gguf --tokenizer tokenizer.model --data ../shared/data --work runs/eval_270m

--tokenizer: Gemma 3's SentencePiece model. --work keeps every verdict: a killed run goes on where it was. The table, the page and the time go to
benchmarks/results/eval_gemma3_270m. The model is a base model of 270 million parameters that was never trained to judge, so it gets a template of
worked examples and scores alone (benchmarks/judge_base_model.jinja) and a chat format without turns. What is shown is the way from weights and
published files to measured benchmarks, not that it judges well.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "eval_gemma3_270m"
# A group of four in balanced orders is four prompts of 800 tokens, an hour of a core for 100: here it keeps the order of the file.
SETS = {"rm_bench": ("--subset", "chat"), "pandalm": (), "gsm8k": ("--orders", "given")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument(
        "--greedy", action="store_true", help="a greedy run too, which gains are measured against"
    )
    args = parser.parse_args()
    from judge_real_weights import tokenizer_folder

    from grm_jax.evals import cli

    words = tokenizer_folder(args.tokenizer, args.work / "tokenizer")
    clocks = args.work / "seconds.json"
    for name in args.sets:
        flags = {
            "benchmark": name,
            "data": args.data,
            "model": args.model,
            "tokenizer": words,
            "k": args.k,
            "limit": args.limit,
        }
        flags |= {
            "template": HERE / "judge_base_model.jinja",
            "max_new_tokens": 20,
            "dtype": "float32",
        }
        flags |= {"prompt_slots": 8, "rows": 4, "chunk": 8, "out": args.work}
        argv = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        clock, cpu = time.monotonic(), time.process_time()
        if status := cli.main([*argv, *SETS[name], *([] if args.greedy else ["--no_greedy"])]):
            raise SystemExit(status)
        seconds = json.loads(clocks.read_text()) if clocks.exists() else {}
        earlier = seconds.get(name, {"sessions": 0, "wall": 0, "cpu": 0})
        spent = {"wall": round(time.monotonic() - clock), "cpu": round(time.process_time() - cpu)}
        seconds[name] = {"sessions": earlier["sessions"] + 1} | {
            key: earlier[key] + spent[key] for key in spent
        }
        clocks.write_text(json.dumps(seconds, indent=1) + "\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for file in ("results.json", "results.md", "results.html"):
        text = (args.work / file).read_text(encoding="utf-8")
        (RESULTS / file).write_text(
            text.replace(f"{HERE.parent}/", ""), encoding="utf-8"
        )  # the template, seen from here
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    (RESULTS / "seconds.json").write_text(
        json.dumps({"machine": machine} | json.loads(clocks.read_text()), indent=1) + "\n"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
