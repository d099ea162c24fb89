"""RM-Bench: sensitivity to substance, resistance to style (arXiv 2410.16184; THU-KEG/RM-Bench).

Three chosen and three rejected responses per prompt, in the styles concise, detailed and markdown,
give nine pairs. In hard pairs the chosen response has the plainer style, in easy pairs the richer.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from grm_jax.data.comparisons import placed
from grm_jax.data.layouts import LAYOUTS
from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison

DOMAINS = ("chat", "math", "code", "safety")


def read(source: Source) -> Iterator[Comparison]:
    """Reads nine pairs per prompt; the domain is the file's name (both safety files: safety)."""
    total = source.files("total_dataset.json")
    for path in total or source.require("*_filtered.json"):
        for record in records(path):
            domain = record["domain"] if total else path.name.removesuffix("_filtered.json")
            group = f"rm_bench-{domain}-{record['id']}"
            domain = next((d for d in DOMAINS if domain.startswith(d)), domain)
            for pair in LAYOUTS["rm_bench"].read(record, group):
                i, j = pair.meta["chosen_style"], pair.meta["rejected_style"]
                meta = {"subset": domain, "group": group, "styles": [i, j]}
                yield placed(dataclasses.replace(pair, id=f"{group}-{i}{j}", meta=meta))


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns the value of each pair, and its cell: domain, style of chosen and of rejected."""
    cells = bm.Categories.of((j.subset, *j.comparison.meta["styles"]) for j in judged)
    return bm.grade_strict(judged, rule) | {"cell": cells}


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes the mean of the domains, then domains, levels, and levels of each domain."""
    cells = bm.mean_by_category(grades["value"], grades["cell"], weights_I)
    domains = [d for d in DOMAINS if any(cell[0] == d for cell in cells)]
    levels = {
        d: matrix_levels({cell[1:]: value for cell, value in cells.items() if cell[0] == d})
        for d in domains
    }
    scores = {d: bm.nan_mean(levels[d].values()) for d in domains}
    names = ("hard", "normal", "easy")
    return (
        {"score": bm.nan_mean(scores.values())}
        | {f"domain/{d}": value for d, value in scores.items()}
        | {f"level/{name}": bm.nan_mean(levels[d][name] for d in domains) for name in names}
        | {f"{d}/{name}": value for d in domains for name, value in levels[d].items()}
    )


def matrix_levels(matrix: dict[tuple[int, int], float]) -> dict[str, float]:
    """Averages the matrix of styles: hard above the diagonal (chosen plainer), normal on it, easy
    below it. nan where all cells of a level are missing.
    """
    return {
        "hard": bm.nan_mean(value for (i, j), value in matrix.items() if i < j),
        "normal": bm.nan_mean(value for (i, j), value in matrix.items() if i == j),
        "easy": bm.nan_mean(value for (i, j), value in matrix.items() if i > j),
    }


RM_BENCH = bm.Benchmark(
    name="rm_bench",
    title="RM-Bench",
    order=90,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline="mean of the domains",
    rules={"official": bm.STRICT_RULE, "paper": bm.PAPER_RULE},
    files="data/total_dataset.json, or data/*_filtered.json (chat, math, code, safety-refuse, "
    "safety-response), of github.com/THU-KEG/RM-Bench, as rm_bench/",
    chance="0.5",
    bars=("domain/", "level/"),
    aliases=("RM-Bench",),
    published=(
        bm.Published(
            "DeepSeek-R1",
            {
                "score": 85.28,
                "domain/chat": 84.24,
                "domain/code": 72.66,
                "domain/math": 93.59,
                "domain/safety": 90.65,
                "level/hard": 80.24,
            },
            "RM-Bench README",
        ),
        bm.Published("RM-R1-DeepSeek-Distilled-Qwen-32B", {"score": 83.9}, "arXiv 2505.02387"),
    ),
    notes="The mean is over the domains present: without math it is not comparable to published "
    "totals.",
)
