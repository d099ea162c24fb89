"""Measures one comparison of long hostile texts: rendering and sanitising, and parsing.

    python benchmarks/hostile_texts.py [--length 100000] [--out FILE.md]

Both responses are the same text of LENGTH characters: a string repeated that a pattern of the
sanitiser or the parser mentions, or a mixture of such strings. `parse` reads it as a critique.
Times are the processor's, the best of three.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "adversarial"))

import test_prompts  # noqa: E402

from benchmarks import common  # noqa: E402
from grm_jax.text import parse, rendering  # noqa: E402
from grm_jax.types import Comparison  # noqa: E402


def milliseconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--length", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "hostile_texts.md")
    args = parser.parse_args()
    rows = []
    for label, text in test_prompts.hostile_texts(random.Random(0), args.length):
        comparison = Comparison("What is 2 + 2?", (text, text))
        render = milliseconds(lambda c=comparison: rendering.render("grm", c))
        parsed = milliseconds(lambda t=text: parse(t, 2))
        rows.append((render + parsed, render, parsed, f"`` {label} ``"))
    rows.sort(reverse=True)
    cells = [(label, *(f"{value:.1f}" for value in values)) for *values, label in rows]
    columns = {"text": "left", "sum, ms": "right", "render and sanitise": "right", "parse": "right"}
    machine = ", ".join(f"{key} {value}" for key, value in common.machine().items())
    page = [
        "# Long hostile texts",
        "",
        f"Two responses of {args.length:,} characters each, family `grm`. {machine}.",
        "",
        f"    python benchmarks/hostile_texts.py --length {args.length}",
        "",
        common.markdown_table(columns, cells),
    ]
    args.out.write_text("\n".join(page) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
