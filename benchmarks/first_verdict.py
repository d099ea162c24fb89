"""Measures `grm judge` from its start to its exit, with and without a cache of programs.

    python benchmarks/first_verdict.py --model runs/spct_tiny/rl/hf        the judge of `make demo`

Writes benchmarks/results/first_verdict.{json,md}. Every run is a process of its own that judges
comparisons of the judging world with k = 8. First start: the cache of compiled programs is empty.
Second start: the same command again. Other rows: the cache was filled by one comparison, which is
not among them. Of the rounds, the table shows the least wall time and the least CPU time (user and
system): others may use the machine as well.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

ROWS, K = (1, 10, 100), 8
TITLES = {"wall s": "seconds", "CPU s": "cpu_seconds", "compiled": "compiled", "loaded": "loaded"}


def judge_here(source: str, model: str) -> dict[str, int]:
    """Runs `grm judge` in this process; counts programs compiled and loaded from the cache."""
    from grm_jax import cli, devices

    devices.choose_platform()
    import jax

    programs, hits = [], []
    jax.monitoring.register_event_listener(
        lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None
    )
    with devices.watch_compilations(lambda n, done: programs.append(n) if done else None):
        output = f"{source}.out"
        command = ["judge", source, output, "--model", model, "--k", str(K), "--overwrite"]
        if status := cli.main([*command, "--quiet"]):
            raise SystemExit(status)
    return {"compiled": len(programs) - len(hits), "loaded": len(hits)}


def measure(source: Path, model: Path) -> dict[str, float]:
    """Runs `grm judge` in a new process; returns its times and its programs."""

    def cpu_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    start, cpu = time.perf_counter(), cpu_seconds()
    programs = common.run_apart(__file__, "--judge", source, "--model", model)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), **programs}


def one_round(folder: Path, model: Path) -> dict[str, dict[str, float]]:
    """Measures every row of the table once, with new caches."""
    results = {}
    for n in ROWS:
        os.environ["HOME"] = str(folder / f"home{n}")
        for start in ("first start", "second start"):
            results[f"{start}, {n}"] = measure(folder / f"{n}.jsonl", model)
    os.environ["HOME"] = str(folder / f"home{ROWS[0]}")
    results[f"other rows, {ROWS[-1]}"] = measure(folder / "others.jsonl", model)
    return results


def write_rows(folder: Path) -> None:
    """Writes the input files: the first rows of one list, and as many others."""
    from grm_jax.data.world import make_items

    rows = [
        json.dumps({"query": c.query, "responses": list(c.responses)}) + "\n"
        for c in make_items("test", 0, 2 * ROWS[-1])
    ]
    for n in ROWS:
        (folder / f"{n}.jsonl").write_text("".join(rows[:n]))
    (folder / "others.jsonl").write_text("".join(rows[ROWS[-1] :]))


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the judge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "first_verdict")
    parser.add_argument("--judge", help="internal: judge this file once and print the counts")
    args = parser.parse_args()
    if args.judge:
        print(json.dumps(judge_here(args.judge, str(args.model))))
        return
    about = {
        "machine": common.machine(),
        "command": "python benchmarks/first_verdict.py --model runs/spct_tiny/rl/hf",
        "nice": os.nice(0),
    }
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        os.environ.pop(name, None)
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder))
            rounds.append(one_round(Path(folder), args.model.resolve()))
        print(json.dumps(rounds[-1]), file=sys.stderr)
    best = {
        name: {key: min(r[name][key] for r in rounds) for key in TITLES.values()}
        for name in rounds[0]
    }
    rows = [
        (*name.split(", "), *(f"{best[name][key]:g}" for key in TITLES.values())) for name in best
    ]
    columns = {"": "left"} | dict.fromkeys(("comparisons", *TITLES), "right")
    text = common.markdown_table(columns, rows) + "\n"
    print(text)
    common.write_json(common.result_file(args.out, ".json"), {"about": about, "rounds": rounds})
    common.result_file(args.out, ".md").write_text(text)


if __name__ == "__main__":
    main()
