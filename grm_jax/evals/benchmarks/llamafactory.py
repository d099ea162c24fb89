"""LLaMA-Factory's demo sets: AI-labelled pairs, and single ratings. Samples, not a benchmark."""

from __future__ import annotations

import numpy as np

from grm_jax.evals import benchmark as bm
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison, Turn

_ROLES = {"human": "user", "gpt": "assistant"}
_ORIGIN = (
    "of github.com/hiyouga/LLaMA-Factory (or github.com/NiuTrans/GRAM), as llamafactory_dpo_demo/"
)


def _turns(records_T: list[dict]) -> list[Turn]:
    turns = [(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in records_T]
    return [{"role": _ROLES.get(role, role), "content": content} for role, content in turns]


def _query(turns: list[Turn]) -> str | list[Turn]:
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


def read_pairs(source: Source) -> list[Comparison]:
    """Reads pairs from `conversations`, `chosen` and `rejected`."""
    comparisons = []
    for number, record in enumerate(records(source.require("dpo_en_demo.json")[0])):
        query = _query(_turns(record["conversations"]))
        pair = (record["chosen"]["value"], record["rejected"]["value"])
        comparisons.append(bm.shuffled_comparison(query, pair, (1, 0), f"dpo-{number}"))
    return comparisons


def read_singles(source: Source) -> list[Comparison]:
    """Reads conversations (`messages`) whose last turn has a boolean `label`."""
    comparisons = []
    for number, record in enumerate(records(source.require("kto_en_demo.json")[0])):
        *turns, answer = _turns(record["messages"])
        responses, label, name = (answer["content"],), (float(record["label"]),), f"kto-{number}"
        comparisons.append(Comparison(_query(turns), responses, None, label, name, {"group": name}))
    return comparisons


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
