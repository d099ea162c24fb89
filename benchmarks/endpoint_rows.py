"""Compares the output rows of a judge from our sampler and from llama.cpp's server, by field.

    grm convert qwen2.5-coder-1.5b-instruct-q4_k_m.gguf MODEL
    python benchmarks/endpoint_rows.py --gguf qwen2.5-coder-1.5b-instruct-q4_k_m.gguf \\
        --model MODEL --data DATA --llama PYTHON --work runs/endpoint_rows

20 comparisons of PandaLM, k = 4, template benchmarks/judge_small_model.jinja. PYTHON is an
interpreter with xllamacpp. Both runs resume from --work.

benchmarks/results/endpoint_rows.md counts, for each field of a row and of a critique, how often
both outputs have the same value (of `critiques`, the same number). Samples, scores and votes
differ. The settings, the order of rows, the orders of responses and the names of fields must be
equal, except for fields that only one kind of judge has.
"""

import argparse
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

ABSENT = object()
TAG = re.compile(r'<(\w+)(?:[^>]*?\bclass="([^"]*)")?')


def serve(gguf: str, slots: int) -> None:
    """Serves a GGUF file until the process is killed; prints the address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx, params.port, params.warmup = slots, 4096 * slots, 0, False
    server = xllamacpp.Server(params)
    print(f"listening {server.listening_address}", flush=True)
    threading.Event().wait()


def compare(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> dict[str, tuple[int, int, str]]:
    """Returns {field: (pairs with equal values, all pairs, the side that lacks the field or "")}.

    ours, theirs: rows of the same comparisons by the sampler and by the server.
    """
    counts: dict[str, list[bool]] = {}
    lacking: dict[str, set[str]] = {}

    def add(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        for key in {**a, **b}:
            values = a.get(key, ABSENT), b.get(key, ABSENT)
            counts.setdefault(prefix + key, []).append(values[0] == values[1])
            for value, side in zip(values, ("sampler", "server")):
                if value is ABSENT:
                    lacking.setdefault(prefix + key, set()).add(side)

    for a, b in zip(ours, theirs, strict=True):
        add("", *({**row, "critiques": len(row["critiques"])} for row in (a, b)))
        for one, other in zip(a["critiques"], b["critiques"]):
            add("critique.", one, other)
    return {
        field: (sum(equal), len(equal), ", ".join(sorted(lacking.get(field, ()))))
        for field, equal in counts.items()
    }


def statuses(rows: Iterable[Mapping]) -> Counter[str]:
    """Counts the statuses of all critiques."""
    return Counter(critique["status"] for row in rows for critique in row["critiques"])


def page_elements(page: str) -> set[tuple[str, str]]:
    """Returns the (tag, class) pairs of an HTML page."""
    return set(TAG.findall(page))


def table(fields: Mapping[str, tuple[int, int, str]]) -> str:
    """Returns the result of `compare` as a Markdown table."""
    columns = {"field": "left", "equal": "right", "of": "right", "absent by": "left"}
    rows = [[f"`{name}`", *map(str, counts)] for name, counts in fields.items()]
    return common.markdown_table(columns, rows)


def evaluate(args: argparse.Namespace, out: Path, *judge: object) -> list[dict[str, Any]]:
    """Runs or resumes `grm eval`; returns its rows, checked against their schema.

    judge: the flags that name the judge.
    """
    from grm_jax.evals import cli
    from grm_jax.judging.codec import read_judged_rows

    options = {"benchmark": "pandalm", "data": args.data, "k": args.k, "limit": args.limit}
    options |= {"template": Path(__file__).with_name("judge_small_model.jinja"), "out": out}
    argv = common.flags({**options, "max_new_tokens": args.max_new_tokens})
    if status := cli.main([*argv, "--no_greedy", *map(str, judge)]):
        raise SystemExit(status)
    return list(read_judged_rows(out / "pandalm.jsonl", check=True))


def evaluate_by_server(args: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """Starts the server in a subprocess, and runs `evaluate` on it."""
    command = [args.llama, __file__, "--serve", str(args.gguf), "--slots", str(args.slots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            started = (line for line in server.stdout if line.startswith("listening"))
            if not (line := next(started, "")):
                raise SystemExit(f"the server exited with status {server.wait()}")
            url = f"{line.split()[1]}/v1"
            limits = ("--parallel", args.slots, "--timeout", 900)
            return evaluate(args, out, "--endpoint", url, "--model", args.gguf.stem, *limits)
        finally:
            server.kill()


def page_of(rows: Path, page: Path) -> str:
    """Writes the report page of a file of rows; returns its HTML."""
    from grm_jax import cli

    if status := cli.main(["report", str(rows), "-o", str(page)]):
        raise SystemExit(status)
    return page.read_text(encoding="utf-8")


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--llama", help="interpreter with xllamacpp")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "endpoint_rows.md")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.slots)
    for name in ("gguf", "model", "data", "llama", "work"):
        if not getattr(args, name):
            parser.error(f"--{name} is missing")
    folders = {"sampler": args.work / "sampler", "server": args.work / "server"}
    ours = evaluate(args, folders["sampler"], "--model", args.model)
    theirs = evaluate_by_server(args, folders["server"])
    pages = [
        page_of(folder / "pandalm.jsonl", folder / "report.html") for folder in folders.values()
    ]
    different = sorted(page_elements(pages[0]) ^ page_elements(pages[1]))
    text = f"""# Rows by our sampler and through llama.cpp's server

Judge: {args.gguf.stem}, bfloat16 by our sampler, the file itself by the server. {len(ours)}
comparisons of PandaLM, k = {args.k}, `python benchmarks/endpoint_rows.py`.

| | sampler | server |
| --- | --- | --- |
| statuses | {dict(statuses(ours))} | {dict(statuses(theirs))} |

Elements (tag, class) that only one of the two report pages has: {different or "none"}.

{table(compare(ours, theirs))}
"""
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
