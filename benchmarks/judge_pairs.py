"""Measures `grm judge` on 1,000 short comparisons, k = 8, in this checkout and in another one.

    git worktree add ../before COMMIT
    python benchmarks/judge_pairs.py --model runs/spct_tiny/rl/hf --before ../before

Writes benchmarks/results/judge_pairs.{json,md}; four minutes on two cores. Every run is a process
of its own, from start to exit, with a filled cache of compiled programs. The two checkouts take
turns; the table shows the median over the rounds of wall time, of CPU time (user and system), and
of the ratios within a round. The output rows of both must be byte-identical.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

K = 8


def write_comparisons(path: Path, count: int) -> None:
    from grm_jax.data.world import make_items

    rows = (
        {"query": c.query, "responses": list(c.responses)} for c in make_items("test", 0, count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(checkout: Path, source: Path, model: Path, output: Path) -> dict[str, float]:
    """Runs `grm judge` of a checkout once; returns its wall and CPU seconds."""

    def cpu_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    command = [sys.executable, "-m", "grm_jax.cli", "judge", str(source), str(output)]
    command += ["--model", str(model), "--k", str(K), "--overwrite", "--quiet"]
    start, cpu = time.perf_counter(), cpu_seconds()
    subprocess.run(command, cwd=checkout, check=True, stderr=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the judge")
    parser.add_argument(
        "--before", type=Path, required=True, help="a checkout of an earlier commit"
    )
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "judge_pairs")
    args = parser.parse_args()
    checkouts = {"before": args.before.resolve(), "after": common.ROOT}
    commits = {
        name: subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=path, capture_output=True, text=True
        ).stdout.strip()
        for name, path in checkouts.items()
    }
    about = {"machine": common.machine(), "commits": commits, "comparisons": args.comparisons}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "comparisons.jsonl"
        write_comparisons(source, args.comparisons)
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for round_ in range(args.rounds + 1):
            for name, checkout in checkouts.items():
                measured = measure(checkout, source, args.model.resolve(), folder / name)
                if round_:  # the first round fills the cache
                    runs[name].append(measured)
                    print(name, json.dumps(measured), file=sys.stderr)
        assert (folder / "before").read_bytes() == (folder / "after").read_bytes()
    medians = {
        name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
    }
    rows = [
        (f"{name} ({commits[name]})", f"{m['seconds']:.1f}", f"{m['cpu_seconds']:.1f}")
        + (f"{60 * args.comparisons / m['seconds']:,.0f}",)
        for name, m in medians.items()
    ]
    ratios = {
        key: statistics.median(
            a[key] / b[key] for a, b in zip(runs["before"], runs["after"], strict=True)
        )
        for key in medians["before"]
    }
    titles = ("wall s", "CPU s", "comparisons/min")
    text = (
        common.markdown_table({"": "left"} | dict.fromkeys(titles, "right"), rows)
        + f"\n\n{args.comparisons:,} comparisons, k = {K}. Before over after, median of "
        f"{args.rounds} pairs: wall {ratios['seconds']:.2f}, CPU "
        f"{ratios['cpu_seconds']:.2f}. The output rows are byte-identical.\n"
    )
    print(text)
    common.write_json(common.result_file(args.out, ".json"), {"about": about, "runs": runs})
    common.result_file(args.out, ".md").write_text(text)


if __name__ == "__main__":
    main()
