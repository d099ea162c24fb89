"""LLMBar: instruction following against surface quality (arXiv 2310.07641; princeton-nlp/LLMBar)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Categories,
    Grades,
    Metrics,
    column,
    credit,
    mean_by_category,
    nan_mean,
    weighted_mean,
    winners,
)
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

SUBSETS = (
    "Natural",
    "Adversarial/Neighbor",
    "Adversarial/GPTInst",
    "Adversarial/GPTOut",
    "Adversarial/Manual",
)


def read(source: Source) -> list[Comparison]:
    """Pairs of `input`, `output_1`, `output_2`, `label` (1 or 2), in their order."""
    found = []
    for path in source.require("**/dataset.json"):
        folder = path.parent.as_posix()
        subset = next((s for s in SUBSETS if folder.endswith(s)), None)
        if subset is None:  # the repository's case studies are not part of the benchmark
            continue
        for number, record in enumerate(records(path)):
            name = f"llmbar-{subset}-{number}"
            pair, label = (record["output_1"], record["output_2"]), int(record["label"]) - 1
            found.append(
                Comparison(
                    record["input"], pair, None, label, name, {"subset": subset, "group": name}
                )
            )
    return found or source.raise_missing("LLMBar/Natural/dataset.json")


def per_order(judged: JudgedComparison) -> tuple[float, float, float]:
    """(mean accuracy over the orders, same winner in both, right in both) of one pair.

    A tie, and an unreadable verdict, names the response shown first, as the rating mode does, and so differs between orders.
    """
    views = judged.views or (((0, 1), judged.scores), ((1, 0), judged.scores))
    named = []
    for order, scores in views:
        first = winners(scores) if scores is not None else [0, 1]
        named.append(first[0] if len(first) == 1 else order[0])
    right = [float(n == judged.comparison.best) for n in named]
    if len(set(order for order, _ in views)) < 2:
        return float(np.mean(right)), math.nan, math.nan
    return float(np.mean(right)), float(len(set(named)) == 1), float(all(right))


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Accuracy, agreement, both right; "paper" replaces the accuracy by tie credit of the vote over both orders."""
    found = [per_order(j) for j in judged]
    return {
        "value": column(credit(j) if rule == "paper" else f[0] for j, f in zip(judged, found)),
        "agree": column(f[1] for f in found),
        "both": column(f[2] for f in found),
        "subset": Categories.of(j.subset for j in judged),
    }


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """The mean of Natural and the mean adversarial accuracy are the two published averages; the headline is over subsets."""
    parts = mean_by_category(grades["value"], grades["subset"], weights_I)
    known = ~np.isnan(grades["agree"])
    found = {"accuracy": nan_mean(parts.values())}
    found["adversarial"] = nan_mean(
        value for name, value in parts.items() if name.startswith("Adversarial")
    )
    found["positional_agreement"] = weighted_mean(np.nan_to_num(grades["agree"]), weights_I * known)
    found["both_right"] = weighted_mean(np.nan_to_num(grades["both"]), weights_I * known)
    return found | {f"subset/{name}": value for name, value in parts.items()}


LLMBAR = Benchmark(
    name="llmbar",
    title="LLMBar",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={
        "official": "mean of the accuracies of the two orders; a tie or an unreadable verdict names the response shown first",
        "paper": PAPER,
    },
    files="the folder Dataset/LLMBar (Natural and Adversarial/*, each with dataset.json) of github.com/princeton-nlp/LLMBar, as llmbar/",
    chance="0.5",
    bars=("subset/",),
    aliases=("LLMBar",),
    notes="The kappa values of the original script test for labels that do not occur; they are not reproduced.",
    both_orders=True,
)
