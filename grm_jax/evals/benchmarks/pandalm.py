"""PandaLM test set: pairs judged by three people, with ties (arXiv 2306.05087; WeOpenML/PandaLM)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Categories,
    Grades,
    Metrics,
    Published,
    column,
    credit,
    strict,
    weighted_mean,
    winners,
)
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

CLASSES = (0, 1, 2)  # tie, first, second


def read(source: Source) -> list[Comparison]:
    """Pairs of `instruction`, `input`, `response1`, `response2`, `annotator1..3`, in their order; label None for a tie.

    The label is the majority's. Responses that are JSON booleans (records 157 to 164) are read as the words True and False.
    """
    found = []
    for record in records(source.require("testset-v1.json")[0]):
        votes = Counter(int(record[f"annotator{i}"]) for i in (1, 2, 3)).most_common()
        majority = votes[0][0] if votes[0][1] >= 2 else 0
        query = record["instruction"] + (
            f"\n\n{record['input']}" if str(record.get("input") or "").strip() else ""
        )
        responses = (str(record["response1"]), str(record["response2"]))
        name = f"pandalm-{record['idx']}"
        label = majority - 1 if majority else (0.5, 0.5)
        meta = {"subset": "tie" if not majority else "decided", "group": name, "class": majority}
        found.append(Comparison(query, responses, None, label, name, meta))
    return found


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Credit on the decided pairs, and the class that the judge's scores name (equal or unreadable: tie)."""
    named = [winners(j.scores) if j.scores is not None else [0, 1] for j in judged]
    truth = np.array([j.comparison.meta["class"] for j in judged])
    given = [
        strict(j) if rule == "strict" else credit(j) for j in judged if j.comparison.meta["class"]
    ]
    value = np.zeros(len(judged))
    value[truth > 0] = given
    return {
        "value": value,
        "decided": column(t > 0 for t in truth),
        "truth": truth,
        "said": np.array([first[0] + 1 if len(first) == 1 else 0 for first in named]),
        "subset": Categories.of(j.subset for j in judged),
    }


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """Accuracy on the decided pairs; accuracy and macro precision, recall, F1 over the three classes, as published."""
    found = {"accuracy": weighted_mean(grades["value"], weights_I * grades["decided"])}
    found["accuracy_3"] = weighted_mean(
        (grades["truth"] == grades["said"]).astype(float), weights_I
    )
    return found | macro(grades["truth"], grades["said"], weights_I)


def macro(truth_I: np.ndarray, said_I: np.ndarray, weights_I: np.ndarray) -> Metrics:
    """Macro precision, recall and F1 over the classes; a class that was never said has precision 0."""
    scores = []
    for c in CLASSES:
        hit = weights_I[(truth_I == c) & (said_I == c)].sum()
        said, there = weights_I[said_I == c].sum(), weights_I[truth_I == c].sum()
        precision, recall = (hit / said if said else 0.0), (hit / there if there else 0.0)
        scores.append(
            (precision, recall, 2 * precision * recall / (precision + recall) if hit else 0.0)
        )
    names = ("precision_3", "recall_3", "f1_3")
    return {name: math.fsum(s[i] for s in scores) / len(CLASSES) for i, name in enumerate(names)}


PANDALM = Benchmark(
    name="pandalm",
    title="PandaLM",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={
        "official": "accuracy on pairs with a human winner, ties 1/2; over three classes equal scores say 'tie', unreadable too",
        "strict": "on pairs with a human winner a tie or an unreadable judgement is wrong",
        "paper": PAPER,
    },
    files="data/testset-v1.json of github.com/WeOpenML/PandaLM, as pandalm/",
    chance="0.5 on decided pairs",
    bars=("accuracy", "recall_3", "f1_3"),
    aliases=("PandaLM",),
    published=(
        Published(
            "GPT-3.5-turbo",
            {"accuracy_3": 69.27, "f1_3": 50.41},
            "stored outputs of the repository, 999 pairs",
        ),
        Published(
            "PandaLM-7B",
            {"accuracy_3": 66.77, "f1_3": 57.43},
            "stored outputs of the repository, 999 pairs",
        ),
    ),
    notes="105 of the 999 pairs are human ties: they count in the three-class numbers only.",
)
