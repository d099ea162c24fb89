"""RewardBench: 2,985 pairs in 23 subsets, four sections (arXiv 2403.13787; allenai/reward-bench)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Grades,
    Metrics,
    Published,
    columns,
    credit,
    mean_by_category,
    nan_mean,
    shuffled_comparison,
    strict,
)
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

# Weights inside a section. math-prm holds 447 pairs and is counted as many as the six code subsets together.
COUNTS = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
    "mt-bench-hard": 37,
    "math-prm": 984,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
} | {f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")}
_HARD = ("natural", "adver-neighbor", "adver-GPTInst", "adver-GPTOut", "adver-manual")
SECTIONS = {
    "Chat": (
        "alpacaeval-easy",
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    ),
    "Chat Hard": ("mt-bench-hard", *(f"llmbar-{kind}" for kind in _HARD)),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", *(name for name in COUNTS if name.startswith("hep-"))),
}


def read(source: Source) -> list[Comparison]:
    """Pairs of `prompt`, `chosen`, `rejected`, `subset`, `id`; the prior sets, which the paper leaves out, are skipped."""
    found = []
    for number, record in enumerate(source.table("filtered", "test", "train")):
        if record["subset"] in COUNTS:
            name = f"rewardbench-{record.get('id', number)}-{record['subset']}"
            pair = (record["chosen"], record["rejected"])
            found.append(
                shuffled_comparison(record["prompt"], pair, (1, 0), name, subset=record["subset"])
            )
    return found


def sections(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Section scores of subset accuracies; a subset that is not there leaves its section's weights, nan without any."""
    scores = {}
    for section, subsets in SECTIONS.items():
        there = [s for s in subsets if not math.isnan(accuracies.get(s, math.nan))]
        total = sum(COUNTS[s] for s in there)
        scores[section] = (
            sum(accuracies[s] * COUNTS[s] for s in there) / total if total else math.nan
        )
    return scores


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """See the rules."""
    return columns(judged, (strict(j) if rule == "scalar" else credit(j) for j in judged))


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """The mean of the four sections, the sections, the subsets."""
    subsets = mean_by_category(grades["value"], grades["subset"], weights_I)
    found = sections(subsets)
    parts = {f"section/{name}": value for name, value in found.items()}
    return (
        {"score": nan_mean(found.values())}
        | parts
        | {f"subset/{name}": value for name, value in subsets.items()}
    )


def _row(model: str, chat, hard, safety, reasoning, total, source) -> Published:
    values = {
        "section/Chat": chat,
        "section/Chat Hard": hard,
        "section/Safety": safety,
        "section/Reasoning": reasoning,
    }
    return Published(model, {"score": total} | values, source)


REWARDBENCH = Benchmark(
    name="rewardbench",
    title="RewardBench",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={
        "generative": "a tie or an unreadable judgement counts 0.5 (scripts/run_generative.py)",
        "scalar": "a tie counts 0, as for scalar reward models (scripts/run_rm.py)",
        "paper": PAPER,
    },
    files="data/filtered-*.parquet of the Hugging Face dataset allenai/reward-bench, as rewardbench/ or reward-bench/",
    chance="0.5",
    bars=("section/", "subset/"),
    aliases=("reward-bench", "reward_bench", "allenai___reward-bench"),
    published=(
        _row("DeepSeek-GRM-27B, greedy", 94.1, 78.3, 88.0, 83.8, 86.0, "SPCT, table 8"),
        _row("DeepSeek-GRM-27B, MetaRM@32", 95.3, 85.7, 89.5, 91.0, 90.4, "SPCT, table 8"),
        _row(
            "RM-R1-Qwen2.5-Instruct-32B",
            95.25,
            83.11,
            91.89,
            95.21,
            91.37,
            "RM-R1 repository, stored result",
        ),
    ),
    notes="Prior sets are left out, as in the paper. The official script places responses by an unseeded coin; here the "
    "place depends on the item's id.",
)
