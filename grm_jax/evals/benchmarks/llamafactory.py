"""LLaMA-Factory's demo sets: AI-labelled pairs and single ratings, in ShareGPT form. Samples to try things on, not a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Grades,
    Metrics,
    accuracy_by_subset,
    column,
    shuffled_comparison,
)
from grm_jax.evals.benchmarks.humanevalpack import grade
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

_ROLES = {"human": "user", "gpt": "assistant"}
_PLACE = (
    "of github.com/hiyouga/LLaMA-Factory (or github.com/NiuTrans/GRAM), as llamafactory_dpo_demo/"
)


def _turns(turns) -> list[dict[str, str]]:
    said = [(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in turns]
    return [{"role": _ROLES.get(role, role), "content": text} for role, text in said]


def _query(turns: list[dict[str, str]]):
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


def read_pairs(source: Source) -> list[Comparison]:
    """Pairs of `conversations`, `chosen`, `rejected`."""
    found = []
    for number, record in enumerate(records(source.require("dpo_en_demo.json")[0])):
        pair = (record["chosen"]["value"], record["rejected"]["value"])
        found.append(
            shuffled_comparison(
                _query(_turns(record["conversations"])), pair, (1, 0), f"dpo-{number}"
            )
        )
    return found


def read_singles(source: Source) -> list[Comparison]:
    """Conversations (`messages`) whose last turn is rated `label` true or false."""
    found = []
    for number, record in enumerate(records(source.require("kto_en_demo.json")[0])):
        *query, answer = _turns(record["messages"])
        label, name = (float(record["label"]),), f"kto-{number}"
        found.append(
            Comparison(_query(query), (answer["content"],), None, label, name, {"group": name})
        )
    return found


def grade_singles(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Score per critique and truth of each response; an unreadable one stands at the median of what was read."""
    scores = [j.scores[0] / j.num_votes if j.scores else None for j in judged]
    known = [s for s in scores if s is not None]
    middle = float(np.median(known)) if known else 0.0
    return {
        "score": column(middle if s is None else s for s in scores),
        "right": np.array([j.comparison.label[0] > 0.5 for j in judged]),
    }


def aggregate_singles(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """ROC-AUC."""
    return {"auc": roc_auc(grades["score"], grades["right"], weights_I)}


PAIRS = Benchmark(
    name="llamafactory_dpo_demo",
    title="LLaMA-Factory DPO demo",
    read=read_pairs,
    grade=grade,
    aggregate=accuracy_by_subset,
    rules={
        "official": "no scorer is published; a tie or an unreadable judgement counts 1/2",
        "strict": "a tie or an unreadable judgement is wrong",
        "paper": PAPER,
    },
    files=f"data/dpo_en_demo.json {_PLACE}",
    chance="0.5",
)
SINGLES = Benchmark(
    name="llamafactory_kto_demo",
    title="LLaMA-Factory KTO demo",
    read=read_singles,
    grade=grade_singles,
    aggregate=aggregate_singles,
    rules={"official": "no scorer is published; ties count half, unreadable stands at the median"},
    files=f"data/kto_en_demo.json {_PLACE}",
    chance="AUC 0.5",
    aliases=("llamafactory_dpo_demo",),
)
