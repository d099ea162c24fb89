"""GSM8K groups: four solutions of one problem by four models, each checked (arXiv 2110.14168; openai/grade-school-math)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Categories,
    Grades,
    Metrics,
    column,
    shuffled_comparison,
    weighted_mean,
    winners,
)
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison


def read(source: Source) -> list[Comparison]:
    """Groups that hold right and wrong solutions; the label is 1.0 for every right one. Solutions are left as published."""
    found = []
    for number, record in enumerate(records(source.require("example_model_solutions.jsonl")[0])):
        solutions = [value for value in record.values() if isinstance(value, dict)]
        rewards = [float(s["is_correct"]) for s in solutions]
        if 0 < sum(rewards) < len(rewards):
            texts, name = [s["solution"] for s in solutions], f"gsm8k-{number}"
            right = f"{int(sum(rewards))} of {len(rewards)} right"
            reference = record.get("ground_truth")
            found.append(
                shuffled_comparison(
                    record["question"],
                    texts,
                    rewards,
                    name,
                    index=False,
                    subset=right,
                    reference=reference,
                )
            )
    return found


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Per group: pairs won, pairs, truth of the pick, and of each response its score within the group's range."""
    won, pairs, picked = [], [], []
    for j in judged:
        truth = np.array(j.comparison.rewards)
        scores = np.array(j.scores if j.scores is not None else np.zeros(len(truth)))
        tie = 0.0 if rule == "strict" or (rule == "official" and j.scores is None) else 0.5
        right, wrong = scores[truth > 0][:, None], scores[truth == 0][None, :]
        same = np.isclose(right, wrong, rtol=1e-9, atol=1e-9)
        won.append(((right > wrong) & ~same).sum() + tie * same.sum())
        pairs.append(same.size)
        picked.append(truth[winners(scores.tolist())].mean())
    return {
        "won": column(won),
        "pairs": column(pairs),
        "picked": column(picked),
        "share_right": column(np.mean(j.comparison.rewards) for j in judged),
        "subset": Categories.of(j.subset for j in judged),
        "scores": np.concatenate([_in_group(j) for j in judged]),
        "truth": np.concatenate([j.comparison.rewards for j in judged]),
        "of": np.repeat(np.arange(len(judged)), [j.comparison.n for j in judged]),
    }


def _in_group(judged: JudgedComparison) -> np.ndarray:
    return (
        np.zeros(judged.comparison.n)
        if judged.scores is None
        else np.array(judged.scores) / judged.num_votes
    )


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """Accuracy over all (right, wrong) pairs of all groups; truth of the best of four; chance of that; AUC over responses."""
    found = {
        "accuracy": weighted_mean(grades["won"] / grades["pairs"], weights_I * grades["pairs"])
    }
    found["best_of_4"] = weighted_mean(grades["picked"], weights_I)
    found["best_of_4_chance"] = weighted_mean(grades["share_right"], weights_I)
    found["auc"] = roc_auc(grades["scores"], grades["truth"] > 0.5, weights_I[grades["of"]])
    for code, name in sorted(enumerate(grades["subset"].names), key=lambda item: item[1]):
        at = grades["subset"].codes_I == code
        value = weighted_mean(
            (grades["won"] / grades["pairs"])[at], (weights_I * grades["pairs"])[at]
        )
        found[f"subset/{name}"] = value
    return found


GSM8K = Benchmark(
    name="gsm8k",
    title="GSM8K groups of four",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={
        "official": "no scorer is published; a tie within a pair counts 1/2, unreadable 0",
        "strict": "a tie within a pair or an unreadable judgement is wrong",
        "paper": PAPER,
    },
    files="grade_school_math/data/example_model_solutions.jsonl of github.com/openai/grade-school-math, as gsm8k/",
    chance="0.5",
    bars=("subset/",),
    aliases=("grade-school-math",),
    notes="731 of 1,319 groups hold both right and wrong solutions. All four are judged at once.",
)
