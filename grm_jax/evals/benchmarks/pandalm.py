"""PandaLM test set: pairs judged by three people, with ties (arXiv 2306.05087; WeOpenML)."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from grm_jax.evals import benchmark as bm
from grm_jax.evals.classification import precision_recall_f1
from grm_jax.evals.files import Source, records
from grm_jax.judging.votes import winner
from grm_jax.types import Comparison

CLASSES = (0, 1, 2)  # tie, first, second


def read(source: Source) -> Iterator[Comparison]:
    """Reads `instruction`, `input`, `response1`, `response2`, `annotator1..3`, in published order.

    The label is the annotators' majority; (0.5, 0.5) for a tie. Responses that are JSON booleans
    (records 157 to 164) become the words True and False.
    """
    for record in records(source.require("testset-v1.json")[0]):
        votes = Counter(int(record[f"annotator{i}"]) for i in (1, 2, 3)).most_common()
        majority = votes[0][0] if votes[0][1] >= 2 else 0
        context = str(record.get("input") or "").strip() and f"\n\n{record['input']}"
        responses = (str(record["response1"]), str(record["response2"]))
        name = f"pandalm-{record['idx']}"
        label = majority - 1 if majority else (0.5, 0.5)
        meta = {"subset": "decided" if majority else "tie", "class": majority}
        yield Comparison(record["instruction"] + context, responses, None, label, name, meta)


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns credit on the decided pairs, and the predicted class (equal or unparseable: tie)."""
    winners = [winner(j.scores) for j in judged]
    truth = np.array([j.comparison.meta["class"] for j in judged])
    credit = bm.strict if rule == "strict" else bm.credit
    return {
        "value": bm.column(credit(j) if t else 0.0 for j, t in zip(judged, truth)),
        "decided": bm.column(truth > 0),
        "truth": truth,
        "predicted": np.array([0 if i is None else i + 1 for i in winners]),
        "subset": bm.Categories.of(j.subset for j in judged),
    }


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes accuracy on the decided pairs, and three-class accuracy and macro scores."""
    correct = (grades["truth"] == grades["predicted"]).astype(float)
    return {
        "accuracy": bm.weighted_mean(grades["value"], weights_I * grades["decided"]),
        "accuracy_3": bm.weighted_mean(correct, weights_I),
    } | macro(grades["truth"], grades["predicted"], weights_I)


def macro(truth_I: np.ndarray, predicted_I: np.ndarray, weights_I: np.ndarray) -> bm.Metrics:
    """Computes macro precision, recall and F1; a class that is never predicted has precision 0."""
    scores = [precision_recall_f1(truth_I == c, predicted_I == c, weights_I) for c in CLASSES]
    names = ("precision_3", "recall_3", "f1_3")
    return {name: math.fsum(s[i] for s in scores) / len(CLASSES) for i, name in enumerate(names)}


_STORED = "stored outputs of the repository, 999 pairs"
PANDALM = bm.Benchmark(
    name="pandalm",
    title="PandaLM",
    order=120,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline="accuracy on 894 pairs with a human winner; three-class metrics beside it",
    rules={
        "official": "accuracy on pairs with a human winner, ties 1/2; over three classes equal "
        "scores predict a tie, unparseable judgements too",
        "strict": "on pairs with a human winner a tie or an unparseable judgement is wrong",
        "paper": bm.PAPER_RULE,
    },
    files="data/testset-v1.json of github.com/WeOpenML/PandaLM, as pandalm/",
    chance="0.5 on decided pairs",
    bars=("accuracy", "recall_3", "f1_3"),
    aliases=("PandaLM",),
    published=(
        bm.Published("GPT-3.5-turbo", {"accuracy_3": 69.27, "f1_3": 50.41}, _STORED),
        bm.Published("PandaLM-7B", {"accuracy_3": 66.77, "f1_3": 57.43}, _STORED),
    ),
    notes="105 of the 999 pairs are human ties: they count in the three-class metrics only.",
)
