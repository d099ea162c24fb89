"""RM-Bench: sensitivity to substance, resistance to style (arXiv 2410.16184; THU-KEG/RM-Bench).

Three chosen and three rejected responses per prompt, in styles concise, detailed, markdown: nine pairs. Hard pairs have the
chosen response in the plainer style, easy pairs in the richer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    STRICT,
    Benchmark,
    Categories,
    Grades,
    Metrics,
    Published,
    credit_or_strict,
    mean_by_category,
    nan_mean,
    shuffled_comparison,
)
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

DOMAINS = ("chat", "math", "code", "safety")
STYLES = 3


def read(source: Source) -> list[Comparison]:
    """Nine pairs per prompt; the domain is the file's name (safety-refuse and safety-response are one domain)."""
    found = []
    whole = source.files("total_dataset.json")
    for path in whole or source.require("*_filtered.json"):
        for record in records(path):
            domain = record["domain"] if whole else path.name.removesuffix("_filtered.json")
            group = f"rm_bench-{domain}-{record['id']}"
            domain = next((d for d in DOMAINS if domain.startswith(d)), domain)
            for i in range(STYLES):
                for j in range(STYLES):
                    pair = (record["chosen"][i], record["rejected"][j])
                    meta: dict = {"subset": domain, "group": group, "styles": [i, j]}
                    found.append(
                        shuffled_comparison(
                            record["prompt"], pair, (1, 0), f"{group}-{i}{j}", **meta
                        )
                    )
    return found


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Value of each pair, and its cell: domain, style of the chosen, style of the rejected."""
    cells = Categories.of((j.subset, *j.comparison.meta["styles"]) for j in judged)
    return credit_or_strict(judged, rule) | {"cell": cells}


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """The mean of the domains, then domains, levels, and levels of each domain."""
    cells = mean_by_category(grades["value"], grades["cell"], weights_I)
    domains = [d for d in DOMAINS if any(cell[0] == d for cell in cells)]
    levels = {
        d: matrix_levels({cell[1:]: value for cell, value in cells.items() if cell[0] == d})
        for d in domains
    }
    per_domain = {d: nan_mean(levels[d].values()) for d in domains}
    found = {"score": nan_mean(per_domain.values())} | {
        f"domain/{d}": value for d, value in per_domain.items()
    }
    found |= {
        f"level/{name}": nan_mean(levels[d][name] for d in domains)
        for name in ("hard", "normal", "easy")
    }
    return found | {f"{d}/{name}": value for d in domains for name, value in levels[d].items()}


def matrix_levels(matrix: dict[tuple[int, int], float]) -> dict[str, float]:
    """hard: mean above the diagonal (chosen plainer); normal: the diagonal; easy: below it. nan where cells are missing."""
    above = [value for (i, j), value in matrix.items() if i < j]
    diagonal = [value for (i, j), value in matrix.items() if i == j]
    below = [value for (i, j), value in matrix.items() if i > j]
    return {"hard": nan_mean(above), "normal": nan_mean(diagonal), "easy": nan_mean(below)}


RM_BENCH = Benchmark(
    name="rm_bench",
    title="RM-Bench",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={"official": STRICT, "paper": PAPER},
    files="data/total_dataset.json, or data/*_filtered.json (chat, math, code, safety-refuse, safety-response), "
    "of github.com/THU-KEG/RM-Bench, as rm_bench/",
    chance="0.5",
    bars=("domain/", "level/"),
    aliases=("RM-Bench",),
    published=(
        Published(
            "DeepSeek-R1",
            {
                "score": 85.28,
                "domain/chat": 84.24,
                "domain/code": 72.66,
                "domain/math": 93.59,
                "domain/safety": 90.65,
            }
            | {"level/hard": 80.24},
            "RM-Bench README",
        ),
        Published("RM-R1-DeepSeek-Distilled-Qwen-32B", {"score": 83.9}, "arXiv 2505.02387"),
    ),
    notes="The mean is over the domains that are there: without math it is not comparable to published totals.",
)
