"""The registry of benchmarks: `BENCHMARKS["rm_bench"].load("data")` returns its comparisons.

Every `Benchmark` that a file of this package defines at its top level is registered. To add one,
add one file (docs/adding_a_benchmark.md). Results list benchmarks by `Benchmark.order`, then name.
"""

import importlib
import pkgutil

from grm_jax.evals import tables
from grm_jax.evals.benchmark import Benchmark
from grm_jax.registry import Registry

BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def _register_all() -> None:
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    benchmarks = [b for m in modules for b in vars(m).values() if isinstance(b, Benchmark)]
    for benchmark in sorted(benchmarks, key=lambda b: (b.order, b.name)):
        BENCHMARKS.add(benchmark.name, benchmark)


_register_all()

# The benchmarks that make up the paper's overall number, in its order.
PAPER = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.paper)


def markdown_table() -> str:
    """Returns the table of benchmarks in docs/evaluation.md."""
    headings = ("name", "headline", "ties and unparseable judgements", "files")
    rows = [
        (f"`{b.name}`", b.headline, next(iter(b.rules.values())), b.files)
        for b in BENCHMARKS.values()
    ]
    return "\n".join(tables.markdown_table(headings, rows)).replace("*", r"\*") + "\n"
