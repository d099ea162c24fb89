"""PPE correctness: 32 answers per prompt of five verifiable sets (arXiv 2410.14872; lmarena-ai).

Two benchmarks on the same files: the pairs that the authors sampled (accuracy, which the paper
reports), and every answer by itself (AUC, best-of-k curves, accuracy on the same pairs).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from grm_jax.data.comparisons import placed
from grm_jax.evals import benchmark as bm
from grm_jax.evals.bestofk import best_of_k, min_max
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source
from grm_jax.types import Comparison

# name in the paper -> beginnings of folder names of the published sets
SETS = {
    "MMLU-Pro": ("PPE-MMLU-Pro-Best-of-K", "mmlu_pro"),
    "MATH": ("PPE-MATH-Best-of-K", "math"),
    "GPQA": ("PPE-GPQA-Best-of-K", "gpqa"),
    "MBPP-Plus": ("PPE-MBPP-Plus-Best-of-K", "mbpp_plus"),
    "IFEval": ("PPE-IFEval-Best-of-K", "ifeval"),
}
FILES = (
    f"the folders {', '.join(folders[0] for folders in SETS.values())} of the Hugging Face "
    "organisation lmarena-ai, each with its data/*.parquet, inside ppe_correctness/"
)


def _records(source: Source) -> Iterator[tuple[str, str, dict, list[str], list[float]]]:
    """Yields (set, group id, record, responses, labels) of every prompt of the sets present."""
    present = {}
    for name, folders in SETS.items():
        sources = (Source(root, folders[0], folders[1:], FILES) for root in source.folders)
        if own := next((s for s in sources if s.has_own_folder), None):
            present[name] = own
    if not present:
        source.raise_missing(*(folders[0] for folders in SETS.values()))
    for name, own in present.items():
        for number, record in enumerate(own.table("train", "test")):
            count = sum(key.startswith("response_") for key in record)
            responses = [record[f"response_{i + 1}"] for i in range(count)]
            labels = [float(score) for score in record["scores"]]
            yield name, f"ppe-{name}-{number}", record, responses, labels


def read_pairs(source: Source) -> Iterator[Comparison]:
    """Reads the sampled pairs [i, j] of answers of which one is right; a prompt's are one group."""
    for name, group, record, responses, labels in _records(source):
        for p, (i, j) in enumerate(record["sampled_conflict_pairs"]):
            if labels[i] != labels[j]:
                pair, best = (responses[i], responses[j]), int(labels[j] > labels[i])
                meta = {"subset": name, "group": group}
                yield placed(Comparison(record["prompt"], pair, None, best, f"{group}-{p}", meta))


def grade_pairs(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns the value of each pair, its prompt, and the set of each prompt."""
    prompt = bm.Categories.of(j.group for j in judged)
    sets = bm.Categories.of(judged[i].subset for i in prompt.first_I)
    return bm.grade_strict(judged, rule) | {"prompt": prompt, "set_of_prompt": sets}


def aggregate_pairs(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes the mean over sets of the mean over prompts of the share of right pairs."""
    prompts = bm.mean_by_category(grades["value"], grades["prompt"], weights_I)
    values_P = np.nan_to_num(np.array(list(prompts.values())))
    # A prompt counts as often as it was drawn, however many pairs it has.
    weights_P = weights_I[grades["prompt"].first_I]
    sets = bm.mean_by_category(values_P, grades["set_of_prompt"], weights_P)
    accuracy = {"accuracy": bm.nan_mean(sets.values())}
    return accuracy | {f"subset/{name}": value for name, value in sets.items()}


def read_singles(source: Source) -> Iterator[Comparison]:
    """Reads every answer by itself, labelled 1 or 0."""
    for name, group, record, responses, labels in _records(source):
        for i, response in enumerate(responses):
            meta = {"subset": name, "group": group, "index": i}
            if i == 0:
                meta["pairs"] = [list(pair) for pair in record["sampled_conflict_pairs"]]
            label = (labels[i],)
            yield Comparison(record["prompt"], (response,), None, label, f"{group}-{i}", meta)


def grade_singles(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns per prompt: scores and labels of its answers, best-of-k curve, accuracy on its pairs.

    An unparseable answer gets the lowest score of its prompt.
    """
    scores_I = bm.scores_per_critique(judged)
    truth_I = bm.column(j.comparison.rewards[0] for j in judged)
    prompt = bm.Categories.of(j.group for j in judged)
    curves, values = [], []
    for code in range(len(prompt.names)):
        members = np.flatnonzero(prompt.codes_I == code).tolist()
        scores, truth = scores_I[members], truth_I[members]
        lowest = np.nanmin(scores, initial=np.inf) if not np.isnan(scores).all() else 0.0
        scores = np.where(np.isnan(scores), lowest - 1, scores)
        pairs: list = next(
            (p for i in members if (p := judged[i].comparison.meta.get("pairs"))), []
        )
        curves.append((min_max(scores), truth, best_of_k(scores, truth)))
        values.append(_pair_accuracy(scores, truth, pairs, 0.5 if rule == "paper" else 0.0))
    return {
        "curves": curves,
        "value": np.array(values),
        "set": bm.Categories.of(judged[i].subset for i in prompt.first_I),
        "first": prompt.first_I,
    }


def _pair_accuracy(
    scores: np.ndarray, truth: np.ndarray, pairs: Sequence[Sequence[int]], tie: float
) -> float:
    """The share of (right, wrong) pairs in score order; nan if `pairs` names none that is here."""
    values = []
    for i, j in pairs:
        if max(i, j) < len(scores) and truth[i] != truth[j]:
            better, worse = (i, j) if truth[i] > truth[j] else (j, i)
            tied = tie if scores[better] == scores[worse] else 0.0
            values.append(1.0 if scores[better] > scores[worse] else tied)
    return float(np.mean(values)) if values else math.nan


def aggregate_singles(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes AUC, accuracy and three best-of-k numbers: the mean over sets, and each set."""
    weights_P = weights_I[grades["first"]]
    sets: dict[str, bm.Metrics] = {}
    for code, name in enumerate(grades["set"].names):
        at = np.flatnonzero((grades["set"].codes_I == code) & (weights_P > 0))
        if not len(at):
            continue
        scores, truths, curves = zip(*(grades["curves"][i] for i in at))
        truth, weights = np.concatenate(truths), weights_P[at]
        per_answer = np.repeat(weights, [len(t) for t in truths])
        values, known = grades["value"][at], ~np.isnan(grades["value"][at])
        sets[name] = {
            "auc": roc_auc(np.concatenate(scores), truth > 0.5, per_answer),
            "accuracy": float(np.average(values[known], weights=weights[known]))
            if known.any()
            else math.nan,
        } | _summarise_curves(curves, weights)
    metrics: bm.Metrics = {}
    for key in ("auc", "accuracy", "best_of_k_max", "best_of_k_end", "best_of_k_loss"):
        metrics[key] = bm.nan_mean(values[key] for values in sets.values())
        metrics |= {f"{key}/{name}": values[key] for name, values in sets.items()}
    return metrics


def _summarise_curves(curves: Sequence[np.ndarray], weights: np.ndarray) -> bm.Metrics:
    """max: mean over orders of the curve's maximum; end: the pick among all answers; loss: mean
    squared distance to the oracle. curves: (picked or oracle, k, orders) of each prompt."""
    shortest = min(curve.shape[1] for curve in curves)
    picked, oracle = (
        np.average(np.stack([curve[row, :shortest] for curve in curves]), axis=0, weights=weights)
        for row in (0, 1)
    )
    return {
        "best_of_k_max": float(picked.max(axis=0).mean()),
        "best_of_k_end": float(picked[-1].mean()),
        "best_of_k_loss": float(np.mean((oracle - picked) ** 2)),
    }


def _published(model: str, accuracy: float, *by_set: float) -> bm.Published:
    subsets = {f"subset/{name}": value for name, value in zip(SETS, by_set)}
    return bm.Published(model, {"accuracy": accuracy} | subsets, "SPCT, table 9")


_NOTES = "The mean weighs the five sets equally, as the paper does."
PPE_CORRECTNESS = bm.Benchmark(
    name="ppe_correctness",
    title="PPE Correctness",
    order=40,
    paper=True,
    read=read_pairs,
    grade=grade_pairs,
    aggregate=aggregate_pairs,
    headline="mean of five accuracies on the sampled pairs",
    rules={"official": bm.STRICT_RULE, "paper": bm.PAPER_RULE},
    files=FILES,
    chance="0.5",
    bars=("subset/",),
    published=(
        _published("DeepSeek-GRM-27B, greedy", 59.8, 64.8, 68.8, 55.6, 50.1, 59.8),
        _published("DeepSeek-GRM-27B, MetaRM@32", 63.2, 68.1, 70.0, 56.9, 50.8, 70.4),
    ),
    notes=_NOTES,
)
PPE_BEST_OF_K = bm.Benchmark(
    name="ppe_best_of_k",
    title="PPE Correctness, AUC and best of k",
    order=50,
    read=read_singles,
    grade=grade_singles,
    aggregate=aggregate_singles,
    headline="AUC; best-of-k curves over 100 random orders",
    rules={
        "official": "a tie between two answers of a pair is wrong; unparseable ranks last in its "
        "prompt",
        "paper": bm.PAPER_RULE,
    },
    files=FILES,
    chance="AUC 0.5",
    bars=("auc/",),
    aliases=("ppe_correctness",),
    notes=f"{_NOTES} Rewards are scaled to 0..1 within a prompt before the AUC. Best of k: 100 "
    "random orders.",
)
