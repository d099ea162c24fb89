"""LLaMA-Factory's demo sets: AI-labelled pairs, and single ratings. Samples, not a benchmark."""

from collections.abc import Iterator

import numpy as np

from grm_jax.data.comparisons import placed, simplified
from grm_jax.data.layouts import LAYOUTS
from grm_jax.evals import benchmark as bm
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison

_ORIGIN = (
    "of github.com/hiyouga/LLaMA-Factory (or github.com/NiuTrans/GRAM), as llamafactory_dpo_demo/"
)


def read_pairs(source: Source) -> Iterator[Comparison]:
    """Reads pairs from `conversations`, `chosen` and `rejected`."""
    for number, record in enumerate(records(source.require("dpo_en_demo.json")[0])):
        turns = {key: [record[key]] for key in ("chosen", "rejected")}
        pair = LAYOUTS["trl"].read({"prompt": record["conversations"], **turns}, f"dpo-{number}")
        yield from map(placed, map(simplified, pair))


def read_singles(source: Source) -> Iterator[Comparison]:
    """Reads conversations (`messages`) whose last turn has a boolean `label`."""
    for number, record in enumerate(records(source.require("kto_en_demo.json")[0])):
        *turns, answer = record["messages"]
        label = (float(record["label"]),)
        yield simplified(Comparison(turns, (answer["content"],), None, label, f"kto-{number}"))


def grade_singles(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns each response's score per critique and its label."""
    return {
        "score": bm.fill_with_median(bm.scores_per_critique(judged)),
        "right": bm.single_labels(judged),
    }


def aggregate_singles(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes the ROC-AUC."""
    return {"auc": roc_auc(grades["score"], grades["right"], weights_I)}


PAIRS = bm.Benchmark(
    name="llamafactory_dpo_demo",
    title="LLaMA-Factory DPO demo",
    order=170,
    read=read_pairs,
    grade=bm.grade_credit,
    aggregate=bm.accuracy_by_subset,
    headline="accuracy",
    rules=bm.CREDIT_RULES,
    files=f"data/dpo_en_demo.json {_ORIGIN}",
    chance="0.5",
)
SINGLES = bm.Benchmark(
    name="llamafactory_kto_demo",
    title="LLaMA-Factory KTO demo",
    order=180,
    read=read_singles,
    grade=grade_singles,
    aggregate=aggregate_singles,
    headline="ROC-AUC",
    rules={
        "official": "no scorer is published; ties count 1/2, unparseable takes the median score"
    },
    files=f"data/kto_en_demo.json {_ORIGIN}",
    chance="AUC 0.5",
    aliases=("llamafactory_dpo_demo",),
)
