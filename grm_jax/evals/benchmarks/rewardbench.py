"""RewardBench: 2,985 pairs, 23 subsets, four sections (arXiv 2403.13787; allenai/reward-bench)."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from grm_jax.data.comparisons import placed
from grm_jax.data.layouts import LAYOUTS
from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source
from grm_jax.types import Comparison

# Weights within a section: math-prm has 447 pairs and weighs as much as the six code subsets.
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
SECTIONS = {
    "Chat": (
        "alpacaeval-easy",
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    ),
    "Chat Hard": ("mt-bench-hard", *(name for name in COUNTS if name.startswith("llmbar-"))),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", *(name for name in COUNTS if name.startswith("hep-"))),
}


def read(source: Source) -> Iterator[Comparison]:
    """Reads `prompt`, `chosen`, `rejected`, `subset`, `id`; skips the prior sets, as the paper."""
    for number, record in enumerate(source.table("filtered", "test", "train")):
        if record["subset"] in COUNTS:
            name = f"rewardbench-{record.get('id', number)}-{record['subset']}"
            yield from map(placed, LAYOUTS["rewardbench"].read(record, name))


def sections(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Computes section scores from subset accuracies, over the subsets present; nan without any."""
    scores = {}
    for section, subsets in SECTIONS.items():
        present = [s for s in subsets if not math.isnan(accuracies.get(s, math.nan))]
        total = sum(COUNTS[s] for s in present)
        weighted = sum(accuracies[s] * COUNTS[s] for s in present)
        scores[section] = weighted / total if total else math.nan
    return scores


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes the mean of the four sections, the sections, the subsets."""
    subsets = bm.mean_by_category(grades["value"], grades["subset"], weights_I)
    scores = sections(subsets)
    return (
        {"score": bm.nan_mean(scores.values())}
        | {f"section/{name}": value for name, value in scores.items()}
        | {f"subset/{name}": value for name, value in subsets.items()}
    )


def _published(model: str, source: str, score: float, *by_section: float) -> bm.Published:
    values = {f"section/{name}": value for name, value in zip(SECTIONS, by_section)}
    return bm.Published(model, {"score": score} | values, source)


_PAPER, _RM_R1 = "SPCT, table 8", "RM-R1 repository, stored result"
REWARDBENCH = bm.Benchmark(
    name="rewardbench",
    title="RewardBench",
    order=10,
    paper=True,
    read=read,
    grade=bm.grade_credit,
    aggregate=aggregate,
    headline="mean of four sections, without prior sets",
    rules={
        "generative": "a tie or an unparseable judgement counts 0.5 (scripts/run_generative.py)",
        "scalar": "a tie counts 0, as for scalar reward models (scripts/run_rm.py)",
        "paper": bm.PAPER_RULE,
    },
    files="data/filtered-*.parquet of the Hugging Face dataset allenai/reward-bench, as "
    "rewardbench/ or reward-bench/",
    chance="0.5",
    bars=("section/", "subset/"),
    aliases=("reward-bench", "reward_bench", "allenai___reward-bench"),
    published=(
        _published("DeepSeek-GRM-27B, greedy", _PAPER, 86.0, 94.1, 78.3, 88.0, 83.8),
        _published("DeepSeek-GRM-27B, MetaRM@32", _PAPER, 90.4, 95.3, 85.7, 89.5, 91.0),
        _published("RM-R1-Qwen2.5-Instruct-32B", _RM_R1, 91.37, 95.25, 83.11, 91.89, 95.21),
    ),
    notes="Prior sets are skipped, as in the paper. The official script orders responses by an "
    "unseeded coin; here the order depends on the item's id.",
)
