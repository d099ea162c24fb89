"""RewardBench 2: best of four in five subsets, and Ties (arXiv 2506.01937; allenai)."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from grm_jax.data.comparisons import placed
from grm_jax.data.layouts import LAYOUTS
from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source
from grm_jax.types import Comparison


def read(source: Source) -> Iterator[Comparison]:
    """Reads `prompt`, `chosen` (list), `rejected` (list), `subset`, `id`; chosen ones get reward 1.

    Ties has each prompt twice, as `ref:N` (one right response) and `tied:N` (many): one group.
    """
    for record in source.table("test", "train"):
        name = f"rewardbench2-{record['subset']}-{record['id']}"
        (comparison,) = LAYOUTS["rewardbench"].read(record, name)
        meta = {"subset": record["subset"]}
        if record["subset"] == "Ties":
            kind, number = str(record["id"]).split(":")
            meta |= {"group": f"ties-{number}", "kind": kind, "number": int(number)}
        yield placed(dataclasses.replace(comparison, label=comparison.rewards, meta=meta))


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns values for the five subsets; for Ties whether accurate, spread and gap."""
    credit = bm.strict if rule == "strict" else bm.credit
    accurate, spread, gap = zip(*map(_tie_statistics, judged))
    metas = [j.comparison.meta for j in judged]
    return {
        "value": bm.column(0.0 if j.subset == "Ties" else credit(j) for j in judged),
        "subset": bm.Categories.of(j.subset for j in judged),
        "tied": np.array([meta.get("kind") == "tied" for meta in metas]),
        "number": np.array([meta.get("number", -1) for meta in metas]),
        "accurate": bm.column(accurate),
        "spread": bm.column(spread),
        "gap": bm.column(gap),
    }


def _tie_statistics(judged: bm.JudgedComparison) -> tuple[float, float, float]:
    """Returns (1 if all right responses score above all wrong ones, spread of the right, gap)."""
    if judged.subset != "Ties":
        return 0.0, 0.0, 0.0
    if judged.scores is None:
        return 0.0, 0.0, -math.inf
    pairs = list(zip(judged.scores, judged.comparison.rewards or ()))
    right = [score for score, reward in pairs if reward]
    gap = min(right) - max(score for score, reward in pairs if not reward)
    return float(gap > 0), max(right) - min(right), gap


def ties(grades: bm.Grades, weights_I: np.ndarray) -> float:
    """Computes the Ties score: 0.3 accuracy each on ref and tied, 0.2 each for gap above spread,
    0.01 for the margin.

    Where all right responses have the same score the spread is 0. The ratio is then +-inf and its
    tanh +-1 (0/0 counts 0), as in the current scorer; the released package (0.1.4) drops those
    prompts from the last term.
    """
    is_tie = grades["number"] >= 0
    tied, ref = is_tie & grades["tied"], is_tie & ~grades["tied"]
    if not weights_I[tied].sum() or not weights_I[ref].sum():
        return math.nan
    ref_of = {number: i for i, number in zip(np.flatnonzero(ref), grades["number"][ref])}
    pairs = [(i, ref_of[n]) for i in np.flatnonzero(tied) if (n := grades["number"][i]) in ref_of]
    tied_P, ref_P = ([pair[side] for pair in pairs] for side in (0, 1))
    weights_P, spread_P = weights_I[tied_P], grades["spread"][tied_P]
    gap_P = grades["gap"][tied_P]
    lower_P = np.minimum(gap_P, grades["gap"][ref_P])
    total = weights_P.sum() or 1.0
    accurate = grades["accurate"]
    return float(
        0.3 * np.dot(accurate[tied], weights_I[tied]) / weights_I[tied].sum()
        + 0.3 * np.dot(accurate[ref], weights_I[ref]) / weights_I[ref].sum()
        + 0.2 * np.dot(gap_P > spread_P, weights_P) / total
        + 0.2 * np.dot(lower_P > spread_P, weights_P) / total
        + 0.01 * np.dot(margin(lower_P, spread_P), weights_P) / total
    )


def margin(lower: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Computes tanh(lower/spread - 1), with its limits where the spread is 0."""
    ratio = np.divide(lower, spread, out=np.full_like(lower, np.inf), where=spread > 0)
    return np.where(spread > 0, np.tanh(ratio - 1), np.sign(lower))


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes the mean of the six subsets, and the subsets."""
    subsets = bm.mean_by_category(grades["value"], grades["subset"], weights_I)
    if "Ties" in subsets:
        subsets["Ties"] = ties(grades, weights_I)
    score = {"score": bm.nan_mean(subsets.values())}
    return score | {f"subset/{name}": value for name, value in subsets.items()}


REWARDBENCH2 = bm.Benchmark(
    name="rewardbench2",
    title="RewardBench 2",
    order=20,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline="mean of six subsets",
    rules={
        "official": "a tie of t that includes the right response counts 1/t; unparseable counts "
        "0.25 (1/n); Ties has its own score",
        "strict": bm.STRICT_RULE,
        "paper": bm.PAPER_RULE,
    },
    files="data/test-*.parquet of the Hugging Face dataset allenai/reward-bench-2, as "
    "rewardbench2/ or reward-bench-2/",
    chance="0.25 (Ties: 0 to 1.01, no fixed chance)",
    bars=("subset/",),
    aliases=("reward-bench-2", "reward_bench_2", "allenai___reward-bench-2"),
    published=(
        bm.Published("Skywork-Reward-V2-Llama-3.1-8B", {"score": 84.1}, "arXiv 2507.01352"),
        bm.Published("LMUnit-72B", {"score": 82.1}, "arXiv 2506.01937"),
        bm.Published("Gemini-2.5-pro", {"score": 79.5}, "arXiv 2506.01937"),
    ),
    notes="Ties is scored as the repository does (a spread of 0 gives tanh +-1); the released "
    "package 0.1.4 drops those prompts.",
)
