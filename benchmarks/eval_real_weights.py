"""Runs `grm eval` on real weights and data: Gemma 3 270M on RM-Bench chat, PandaLM and GSM8K.

    python benchmarks/eval_real_weights.py --model gemma-3-270m.gguf --tokenizer tokenizer.model \\
        --data DATA --work runs/eval_270m

100 comparisons of each; --tokenizer is Gemma 3's SentencePiece model. --work keeps every verdict:
the same command resumes a killed run. Table, page and time go to
benchmarks/results/eval_gemma3_270m.

The model is a base model of 270 million parameters that was never trained to judge, so it gets a
template of worked examples and scores alone (benchmarks/judge_base_model.jinja) and a chat format
without turns. This shows the path from weights and published files to measured benchmarks; it does
not show good judging.
"""

import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

RESULTS = common.RESULTS / "eval_gemma3_270m"
# Balanced orders of a group of four are four prompts of 800 tokens, an hour on one core for 100
# comparisons. So GSM8K keeps the order of the file.
SETS = {"rm_bench": ("--subset", "chat"), "pandalm": (), "gsm8k": ("--orders", "given")}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument(
        "--greedy", action="store_true", help="add the greedy run that gains are measured against"
    )
    args = parser.parse_args()
    from grm_jax.evals import cli

    options = {
        "data": args.data,
        "model": args.model,
        "tokenizer": common.base_model_tokenizer(args.tokenizer, args.work / "tokenizer"),
        "k": args.k,
        "limit": args.limit,
        "template": Path(__file__).with_name("judge_base_model.jinja"),
        "max_new_tokens": 20,
        "dtype": "float32",
        "prompt_slots": 8,
        "rows": 4,
        "chunk": 8,
        "out": args.work,
    }
    clocks = args.work / "seconds.json"
    for name in args.sets:
        argv = [*common.flags({"benchmark": name} | options), *SETS[name]]
        clock, cpu = time.monotonic(), time.process_time()
        if status := cli.main(argv if args.greedy else [*argv, "--no_greedy"]):
            raise SystemExit(status)
        seconds = common.read_json(clocks, {})
        earlier = seconds.get(name, {"sessions": 0, "wall": 0, "cpu": 0})
        seconds[name] = {
            "sessions": earlier["sessions"] + 1,
            "wall": earlier["wall"] + round(time.monotonic() - clock),
            "cpu": earlier["cpu"] + round(time.process_time() - cpu),
        }
        common.write_json(clocks, seconds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for file in ("results.json", "results.md", "results.html"):
        text = (args.work / file).read_text(encoding="utf-8")
        # The template's path becomes relative to the repository.
        (RESULTS / file).write_text(text.replace(f"{common.ROOT}/", ""), encoding="utf-8")
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    common.write_json(RESULTS / "seconds.json", {"machine": machine} | common.read_json(clocks, {}))


if __name__ == "__main__":
    main()
