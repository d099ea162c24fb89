"""PPE correctness: 32 sampled answers per prompt of five verifiable sets (arXiv 2410.14872; lmarena-ai/PPE-*-Best-of-K).

Two benchmarks on the same files: the pairs that the authors sampled (accuracy, what the paper reports), and every answer by
itself (AUC, best-of-k curves, and the accuracy on the pairs that follows from single scores).
"""

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
    credit_or_strict,
    mean_by_category,
    nan_mean,
    shuffled_comparison,
)
from grm_jax.evals.bestofk import best_of_k, min_max
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

# name in the paper -> beginnings of folder names of the published sets
SETS = {
    "MMLU-Pro": ("PPE-MMLU-Pro-Best-of-K", "mmlu_pro"),
    "MATH": ("PPE-MATH-Best-of-K", "math"),
    "GPQA": ("PPE-GPQA-Best-of-K", "gpqa"),
    "MBPP-Plus": ("PPE-MBPP-Plus-Best-of-K", "mbpp_plus"),
    "IFEval": ("PPE-IFEval-Best-of-K", "ifeval"),
}
FILES = "the folders PPE-MMLU-Pro-Best-of-K, PPE-MATH-Best-of-K, PPE-GPQA-Best-of-K, PPE-MBPP-Plus-Best-of-K and \
PPE-IFEval-Best-of-K of the Hugging Face organisation lmarena-ai, each with its data/*.parquet, inside ppe_correctness/"


def _records(source: Source):
    """(set, number, record, responses, truth) of every prompt that is there."""
    some = False
    for name, folders in SETS.items():
        parts = [Source(folder, folders[0], folders[1:], FILES) for folder in source.folders]
        there = [part for part in parts if part.folders and part.folders[0] != part.root]
        if not there:
            continue
        some = True
        for number, record in enumerate(there[0].table("train", "test")):
            count = sum(key.startswith("response_") for key in record)
            responses = [record[f"response_{i + 1}"] for i in range(count)]
            yield name, number, record, responses, [float(s) for s in record["scores"]]
    if not some:
        source.raise_missing(*(folders[0] for folders in SETS.values()))


def read_pairs(source: Source) -> list[Comparison]:
    """The sampled pairs; [i, j] are indices of answers of which one is right. Pairs of a prompt are resampled as one."""
    found = []
    for name, number, record, responses, truth in _records(source):
        group = f"ppe-{name}-{number}"
        for p, (i, j) in enumerate(record["sampled_conflict_pairs"]):
            if truth[i] != truth[j]:
                pair, rewards = (responses[i], responses[j]), (truth[i], truth[j])
                found.append(
                    shuffled_comparison(
                        record["prompt"], pair, rewards, f"{group}-{p}", subset=name, group=group
                    )
                )
    return found


def aggregate_pairs(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """The mean of the sets, and each: mean over prompts of the share of a prompt's pairs that are right."""
    by_prompt = mean_by_category(grades["value"], grades["prompt"], weights_I)
    values = np.array(list(by_prompt.values()))
    # A prompt counts as often as it was drawn, however many pairs it has.
    drawn = grades["first"]
    parts = mean_by_category(np.nan_to_num(values), grades["set_of_prompt"], weights_I[drawn])
    return {"accuracy": nan_mean(parts.values())} | {
        f"subset/{name}": value for name, value in parts.items()
    }


def grade_pairs(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Value of each pair, with the prompt it belongs to and the set that the prompt belongs to."""
    prompt = Categories.of(j.group for j in judged)
    first = np.array(
        [int(np.argmax(prompt.codes_I == c)) for c in range(len(prompt.names))], dtype=np.int64
    )
    sets = Categories.of(judged[i].subset for i in first)
    return credit_or_strict(judged, rule) | {
        "prompt": prompt,
        "first": first,
        "set_of_prompt": sets,
    }


def read_singles(source: Source) -> list[Comparison]:
    """Every answer by itself, labelled 1 or 0."""
    found = []
    for name, number, record, responses, truth in _records(source):
        group = f"ppe-{name}-{number}"
        pairs = [list(pair) for pair in record["sampled_conflict_pairs"]]
        for i, response in enumerate(responses):
            meta = {"subset": name, "group": group, "index": i} | (
                {"pairs": pairs} if i == 0 else {}
            )
            found.append(
                Comparison(record["prompt"], (response,), None, (truth[i],), f"{group}-{i}", meta)
            )
    return found


def grade_singles(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Per prompt: answers' scores and truths, the accuracy on its pairs, its best-of-k curve. One row per prompt.

    An unreadable answer has the lowest score of its prompt.
    """
    groups: dict[str, list[int]] = {}
    for i, j in enumerate(judged):
        groups.setdefault(j.group, []).append(i)
    rows = []
    for members in groups.values():
        given = [_score(judged[i]) for i in members]
        lowest = min((s for s in given if s is not None), default=0.0) - 1
        scores = np.array([lowest if s is None else s for s in given])
        truth = np.array([judged[i].comparison.label[0] for i in members])
        pairs = next(
            (
                judged[i].comparison.meta["pairs"]
                for i in members
                if "pairs" in judged[i].comparison.meta
            ),
            [],
        )
        rows.append(
            (judged[members[0]].subset, scores, truth, _pair_accuracy(scores, truth, pairs, rule))
        )
    return {
        "rows": [
            (min_max(scores), truth, best_of_k(scores, truth)) for _, scores, truth, _ in rows
        ],
        "value": np.array([row[3] for row in rows]),
        "set": Categories.of(row[0] for row in rows),
        "first": np.array([members[0] for members in groups.values()], dtype=np.int64),
    }


def _score(judged: JudgedComparison) -> float | None:
    """On the scale of one critique: a sum is smaller where a critique could not be read."""
    return None if judged.scores is None else judged.scores[0] / judged.num_votes


def _pair_accuracy(scores, truth, pairs, rule: str) -> float:
    found = []
    for i, j in pairs:
        if max(i, j) < len(scores) and truth[i] != truth[j]:
            better, worse = (i, j) if truth[i] > truth[j] else (j, i)
            tie = 0.5 if rule == "paper" else 0.0
            found.append(
                1.0
                if scores[better] > scores[worse]
                else tie
                if scores[better] == scores[worse]
                else 0.0
            )
    return float(np.mean(found)) if found else math.nan


def aggregate_singles(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """AUC, accuracy and the three best-of-k numbers: the mean of the sets, and each set."""
    weights = weights_I[grades["first"]]
    found: Metrics = {}
    sets: dict[str, Metrics] = {}
    for code, name in enumerate(grades["set"].names):
        at = np.flatnonzero((grades["set"].codes_I == code) & (weights > 0))
        if not len(at):
            continue
        rows, w = [grades["rows"][i] for i in at], weights[at]
        score = np.concatenate([row[0] for row in rows])
        truth = np.concatenate([row[1] for row in rows])
        values, known = grades["value"][at], ~np.isnan(grades["value"][at])
        sets[name] = {
            "auc": roc_auc(
                score, truth > 0.5, np.concatenate([np.full(len(r[1]), x) for r, x in zip(rows, w)])
            ),
            "accuracy": float(np.average(values[known], weights=w[known]))
            if known.any()
            else math.nan,
        } | _curve(rows, w)
    for key in ("auc", "accuracy", "best_of_k_max", "best_of_k_end", "best_of_k_loss"):
        found[key] = nan_mean(metrics[key] for metrics in sets.values())
        found |= {f"{key}/{name}": metrics[key] for name, metrics in sets.items()}
    return found


def _curve(rows, weights) -> Metrics:
    """max: mean over orders of the curve's maximum; end: the pick among all; loss: mean squared distance to the oracle."""
    shortest = min(row[2].shape[1] for row in rows)
    picked = np.average(
        np.stack([row[2][0, :shortest] for row in rows]), axis=0, weights=weights
    )  # (k, orders)
    oracle = np.average(np.stack([row[2][1, :shortest] for row in rows]), axis=0, weights=weights)
    return {
        "best_of_k_max": float(picked.max(axis=0).mean()),
        "best_of_k_end": float(picked[-1].mean()),
        "best_of_k_loss": float(np.mean((oracle - picked) ** 2)),
    }


_GRM = dict(zip(SETS, (64.8, 68.8, 55.6, 50.1, 59.8)))
_META = dict(zip(SETS, (68.1, 70.0, 56.9, 50.8, 70.4)))
_NOTES = "The mean weighs the five sets equally, as the paper does."
PPE_CORRECTNESS = Benchmark(
    name="ppe_correctness",
    title="PPE Correctness",
    read=read_pairs,
    grade=grade_pairs,
    aggregate=aggregate_pairs,
    rules={"official": STRICT, "paper": PAPER},
    files=FILES,
    chance="0.5",
    bars=("subset/",),
    published=(
        Published(
            "DeepSeek-GRM-27B, greedy",
            {"accuracy": 59.8} | {f"subset/{n}": v for n, v in _GRM.items()},
            "SPCT, table 9",
        ),
        Published(
            "DeepSeek-GRM-27B, MetaRM@32",
            {"accuracy": 63.2} | {f"subset/{n}": v for n, v in _META.items()},
            "SPCT, table 9",
        ),
    ),
    notes=_NOTES,
)
PPE_BEST_OF_K = Benchmark(
    name="ppe_best_of_k",
    title="PPE Correctness, AUC and best of k",
    read=read_singles,
    grade=grade_singles,
    aggregate=aggregate_singles,
    rules={
        "official": "a tie between two answers of a pair is wrong; unreadable ranks last in its prompt",
        "paper": PAPER,
    },
    files=FILES,
    chance="AUC 0.5",
    bars=("auc/",),
    aliases=("ppe_correctness",),
    notes=_NOTES
    + " Rewards are scaled to 0..1 within a prompt before the AUC. Best of k: 100 random orders.",
)
