"""Measures `grm report` on many rows: time to write the page, its size, and time to open it.

    python benchmarks/report_page.py [--rows 10000] [--k 8] [--out FILE.json]

Generates rows of two responses of about 200 words with k critiques of about 200 words, in 23
subsets, writes the page, and opens it in headless Chromium. `load` ends with the
browser's load event, when the overview and the list are on the screen; `open` is the time from a
click to the comparison; `search` is the first search in all texts, which decompresses every part.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import browser  # noqa: E402

from benchmarks import common  # noqa: E402

WORDS = (
    "the response explains correct answer steps because however therefore example code function "
    "value list number check fails passes detail"
).split()


def text(rng: random.Random, length: int) -> str:
    """Returns random words."""
    return " ".join(rng.choices(WORDS, k=length))


def row(i: int, k: int) -> dict[str, Any]:
    """Returns an output row of `grm judge`."""
    rng = random.Random(i)
    critiques = []
    for sample in range(k):
        scores = [float(rng.randint(1, 10)) for _ in range(2)]
        names = ("Accuracy", "Clarity")
        principles = [{"name": n, "weight": 50.0, "description": text(rng, 12)} for n in names]
        analysis = text(rng, 180)
        critiques.append(
            {
                **{"text": analysis, "analysis": analysis, "principles": principles},
                **{"order": [sample % 2, 1 - sample % 2], "scores": scores, "status": "ok"},
                **{"meta_score": None, "expected_scores": None, "tokens": 300, "sample": sample},
            }
        )
    total = [sum(critique["scores"][j] for critique in critiques) for j in range(2)]
    best = None if total[0] == total[1] else int(total[1] > total[0])
    return {
        **{"id": f"row-{i}", "line": i + 1, "n": 2, "label": 0, "scores": total, "best": best},
        **{"tie": best is None, "votes": {"sum": total, "mean": [s / k for s in total]}},
        **{"vote": "sum", "unparsed": 0, "kept": None, "critiques": critiques, "error": None},
        **{"query": text(rng, 80), "responses": [text(rng, 200), text(rng, 200)]},
        **{"reference": None, "meta": {"subset": f"s{i % 23}"}, "model": "m@1", "meta_rm": None},
        **{"template": "t@1", "k": k, "temperature": 0.5, "seed": 0, "input": "generated"},
    }


def seconds_since(start: float) -> float:
    """Returns the seconds since a time of `perf_counter`, rounded."""
    return round(time.perf_counter() - start, 2)


def measure_browser(page: Path, rows: int) -> dict[str, float]:
    """Opens the page, a comparison and a search; returns the seconds of each."""
    search = (
        f"const s = document.getElementById('search'); s.value = 'row-{rows - 1} therefore';"
        "s.dispatchEvent(new Event('input'))"
    )
    with browser.Browser() as window:
        window.open(page)
        timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        load = window.wait(f"return {timing}") / 1000
        start = time.perf_counter()
        window.click('[data-place="7"]')
        window.wait("return document.querySelector('.turn') !== null")
        opened = seconds_since(start)
        start = time.perf_counter()
        window.run(search)
        done = "return document.getElementById('count').textContent.startsWith('1 of')"
        window.wait(done, seconds=300)
        return {"load": round(load, 2), "open": opened, "search": seconds_since(start)}


def main() -> None:
    """Runs the benchmark and writes the result."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "report_page.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, page = Path(folder) / "rows.jsonl", Path(folder) / "page.html"
        with source.open("w") as file:
            file.writelines(json.dumps(row(i, args.k)) + "\n" for i in range(args.rows))
        start = time.perf_counter()
        from grm_jax.judging import report

        if report.main([str(source), "-o", str(page)]):
            raise SystemExit(1)
        result = {
            "machine": common.machine(),
            "command": f"python benchmarks/report_page.py --rows {args.rows} --k {args.k}",
            "rows_mb": round(source.stat().st_size / 1e6, 1),
            "page_mb": round(page.stat().st_size / 1e6, 1),
            "seconds": {"write": seconds_since(start), **measure_browser(page, args.rows)},
        }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
