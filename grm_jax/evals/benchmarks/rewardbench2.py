"""RewardBench 2: best of four in five subsets, and Ties (arXiv 2506.01937; allenai/reward-bench-2)."""

from __future__ import annotations

import math
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
    column,
    credit,
    mean_by_category,
    nan_mean,
    shuffled_comparison,
    strict,
)
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison


def read(source: Source) -> list[Comparison]:
    """Records of `prompt`, `chosen` (list), `rejected` (list), `subset`, `id`. Rewards are 1 for every chosen response.

    The prompts of Ties come twice, as `ref:N` (one right response) and `tied:N` (many), and are resampled as one.
    """
    found = []
    for record in source.table("test", "train"):
        chosen, rejected = list(record["chosen"]), list(record["rejected"])
        rewards = [1.0] * len(chosen) + [0.0] * len(rejected)
        name = f"rewardbench2-{record['subset']}-{record['id']}"
        meta = {"subset": record["subset"]}
        if record["subset"] == "Ties":
            kind, number = str(record["id"]).split(":")
            meta |= {"group": f"ties-{number}", "kind": kind, "number": int(number)}
        found.append(
            shuffled_comparison(
                record["prompt"], chosen + rejected, rewards, name, index=False, **meta
            )
        )
    return found


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Value for the five subsets; for Ties the statistics of each record: accurate, spread, gap."""
    stats = [_statistics(j) if j.subset == "Ties" else (0.0, 0.0, 0.0) for j in judged]
    numbers = [j.comparison.meta.get("number", -1) if j.subset == "Ties" else -1 for j in judged]
    return {
        "value": column(
            0.0 if j.subset == "Ties" else strict(j) if rule == "strict" else credit(j)
            for j in judged
        ),
        "subset": Categories.of(j.subset for j in judged),
        "tied": np.array([j.comparison.meta.get("kind") == "tied" for j in judged]),
        "number": np.array(numbers),
        "accurate": column(s[0] for s in stats),
        "spread": column(s[1] for s in stats),
        "gap": column(s[2] for s in stats),
    }


def _statistics(judged: JudgedComparison) -> tuple[float, float, float]:
    """(1 if every right response is above every wrong one, spread of the right ones, gap to the best wrong one)."""
    if judged.scores is None:
        return 0.0, 0.0, -math.inf
    right = [s for s, r in zip(judged.scores, judged.comparison.rewards or ()) if r]
    wrong = [s for s, r in zip(judged.scores, judged.comparison.rewards or ()) if not r]
    gap = min(right) - max(wrong)
    return float(gap > 0), max(right) - min(right), gap


def ties(grades: Grades, weights_I: np.ndarray) -> float:
    """The Ties score: 0.3 accuracy each on ref and tied, 0.2 each for gap above spread, 0.01 for the margin's ratio.

    Where all right responses have the same score the spread is 0: the ratio is then +-inf and its tanh +-1 (0/0 counts 0), as
    in the current scorer; the released package (0.1.4) leaves those prompts out of the last term.
    """
    is_tie = grades["number"] >= 0
    tied, ref = is_tie & grades["tied"], is_tie & ~grades["tied"]
    if not tied.any() or not ref.any() or not weights_I[tied].sum() or not weights_I[ref].sum():
        return math.nan
    at = {number: i for i, number in zip(np.flatnonzero(ref), grades["number"][ref])}
    both = [
        (i, at[number])
        for i, number in zip(np.flatnonzero(tied), grades["number"][tied])
        if number in at
    ]
    w, spread = weights_I[[i for i, _ in both]], grades["spread"][[i for i, _ in both]]
    gap_tied, gap_ref = grades["gap"][[i for i, _ in both]], grades["gap"][[j for _, j in both]]
    lower = np.minimum(gap_tied, gap_ref)
    total = w.sum() or 1.0
    return float(
        0.3 * np.dot(grades["accurate"][tied], weights_I[tied]) / weights_I[tied].sum()
        + 0.3 * np.dot(grades["accurate"][ref], weights_I[ref]) / weights_I[ref].sum()
        + 0.2 * np.dot(gap_tied > spread, w) / total
        + 0.2 * np.dot(lower > spread, w) / total
        + 0.01 * np.dot(margin(lower, spread), w) / total
    )


def margin(lower: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """tanh(lower/spread - 1), with its limits where the spread is 0."""
    ratio = np.divide(lower, spread, out=np.full_like(lower, np.inf), where=spread > 0)
    return np.where(spread > 0, np.tanh(ratio - 1), np.sign(lower))


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """The mean of the six subsets, and the subsets."""
    parts = mean_by_category(grades["value"], grades["subset"], weights_I)
    if "Ties" in parts:
        parts["Ties"] = ties(grades, weights_I)
    return {"score": nan_mean(parts.values())} | {
        f"subset/{name}": value for name, value in parts.items()
    }


REWARDBENCH2 = Benchmark(
    name="rewardbench2",
    title="RewardBench 2",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={
        "official": "a tie of t that holds the right response counts 1/t; unreadable counts 0.25 (1/n); Ties has its own score",
        "strict": STRICT,
        "paper": PAPER,
    },
    files="data/test-*.parquet of the Hugging Face dataset allenai/reward-bench-2, as rewardbench2/ or reward-bench-2/",
    chance="0.25 (Ties: 0 to 1.01, no fixed chance)",
    bars=("subset/",),
    aliases=("reward-bench-2", "reward_bench_2", "allenai___reward-bench-2"),
    published=(
        Published("Skywork-Reward-V2-Llama-3.1-8B", {"score": 84.1}, "arXiv 2507.01352"),
        Published("LMUnit-72B", {"score": 82.1}, "arXiv 2506.01937"),
        Published("Gemini-2.5-pro", {"score": 79.5}, "arXiv 2506.01937"),
    ),
    notes="Ties is scored as the repository does (a spread of 0 gives tanh +-1); the released package 0.1.4 drops those prompts.",
)
