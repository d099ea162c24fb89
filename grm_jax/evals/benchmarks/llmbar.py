"""LLMBar: instruction following against surface quality (arXiv 2310.07641; princeton-nlp)."""

import math
from collections.abc import Iterator

import numpy as np

from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source, records
from grm_jax.judging.votes import winner
from grm_jax.types import Comparison

SUBSETS = (
    "Natural",
    "Adversarial/Neighbor",
    "Adversarial/GPTInst",
    "Adversarial/GPTOut",
    "Adversarial/Manual",
)


def read(source: Source) -> Iterator[Comparison]:
    """Reads `input`, `output_1`, `output_2`, `label` (1 or 2), in published order."""
    for path in source.require(*(f"{subset}/dataset.json" for subset in SUBSETS)):
        subset = next(s for s in SUBSETS if path.parent.as_posix().endswith(s))
        for number, record in enumerate(records(path)):
            name = f"llmbar-{subset}-{number}"
            pair, label = (record["output_1"], record["output_2"]), int(record["label"]) - 1
            meta = {"subset": subset}
            yield Comparison(record["input"], pair, None, label, name, meta)


def grade_orders(judged: bm.JudgedComparison) -> tuple[float, float, float]:
    """Returns (mean accuracy over the orders, same winner in both, right in both) of one pair.

    A tie or an unparseable verdict names the response shown first, as the rating mode does, so it
    differs between orders. The last two are nan where only one order was shown.
    """
    views = judged.views or (((0, 1), judged.scores), ((1, 0), judged.scores))
    named = [order[0] if (i := winner(scores)) is None else i for order, scores in views]
    right = [float(name == judged.comparison.best) for name in named]
    if len({order for order, _ in views}) < 2:
        return float(np.mean(right)), math.nan, math.nan
    return float(np.mean(right)), float(len(set(named)) == 1), float(all(right))


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns accuracy, agreement and both right; "paper" replaces the accuracy by tie credit."""
    accuracy, agree, both = zip(*map(grade_orders, judged))
    return {
        "value": bm.column(map(bm.credit, judged) if rule == "paper" else accuracy),
        "agree": bm.column(agree),
        "both": bm.column(both),
        "subset": bm.Categories.of(j.subset for j in judged),
    }


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes the mean over subsets, then over adversarial subsets, and the order statistics."""
    subsets = bm.mean_by_category(grades["value"], grades["subset"], weights_I)
    adversarial = [value for name, value in subsets.items() if name.startswith("Adversarial")]
    weights_known_I = weights_I * ~np.isnan(grades["agree"])
    return {
        "accuracy": bm.nan_mean(subsets.values()),
        "adversarial": bm.nan_mean(adversarial),
        "positional_agreement": bm.weighted_mean(np.nan_to_num(grades["agree"]), weights_known_I),
        "both_right": bm.weighted_mean(np.nan_to_num(grades["both"]), weights_known_I),
    } | {f"subset/{name}": value for name, value in subsets.items()}


LLMBAR = bm.Benchmark(
    name="llmbar",
    title="LLMBar",
    order=110,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline="mean over subsets of the two orders' accuracy",
    rules={
        "official": "mean accuracy of the two orders; a tie or an unparseable verdict names the "
        "response shown first",
        "paper": bm.PAPER_RULE,
    },
    files="the folder Dataset/LLMBar (Natural and Adversarial/*, each with dataset.json) of "
    "github.com/princeton-nlp/LLMBar, as llmbar/",
    chance="0.5",
    bars=("subset/",),
    aliases=("LLMBar",),
    notes="The original script computes kappa against labels that do not occur; kappa is omitted.",
    both_orders=True,
)
