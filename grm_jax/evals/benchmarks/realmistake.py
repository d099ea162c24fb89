"""ReaLMistake: does one response hold a mistake? (arXiv 2404.03602; psunlpgroup/ReaLMistake).

The data are read from the password-protected zip in memory and are never written out, as their authors ask.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    Benchmark,
    Categories,
    Grades,
    Metrics,
    Published,
    column,
    nan_mean,
)
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

THRESHOLD = 5.5  # on the scale of one critique (1 to 10): below is "error"; the benchmark's detectors answer yes or no


def read(source: Source) -> list[Comparison]:
    """Single responses labelled 1 (no error) or 0; subset is "task, model". The password comes from the README beside the zip."""
    path = source.require("data.zip")[0]
    with zipfile.ZipFile(path) as archive:
        archive.setpassword(_password(path).encode())
        found = []
        for name in sorted(archive.namelist()):
            if not name.endswith(".jsonl") or name.endswith("example.jsonl"):
                continue
            task, model = name.split("/")[-2], name.split("/")[-1].removesuffix(".jsonl")
            for number, line in enumerate(archive.read(name).decode().splitlines()):
                record = json.loads(line)
                label = record.get("error_label", record.get("label"))
                if label not in ("error", "no_error"):
                    raise ValueError(
                        f"{path}: {name}, line {number + 1}: label {label!r} is neither error nor no_error"
                    )
                id = f"realmistake-{task}-{model}-{number}"
                meta = {"subset": f"{task}, {model}", "group": id}
                found.append(
                    Comparison(
                        record["input"],
                        (record["llm_response"],),
                        None,
                        (float(label == "no_error"),),
                        id,
                        meta,
                    )
                )
    return found


def _password(path) -> str:
    readme = path.with_name("README.md")
    found = (
        re.search(r"[Pp]assword[^`]{0,60}`([^`]+)`", readme.read_text())
        if readme.is_file()
        else None
    )
    if not found:
        raise ValueError(
            f"{path}: the password of the zip is read from {readme}, which does not name one: put the README there"
        )
    return found[1]


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Score, truth (1: no error), and the detector's answer (1: error) where it could be read."""
    # On the scale of one critique: a sum is smaller where a critique could not be read.
    scores = [j.scores[0] / j.num_votes if j.scores else math.nan for j in judged]
    known = [s for s in scores if not math.isnan(s)]
    # An unreadable judgement says nothing: it stands in the middle of what was read.
    middle = float(np.median(known)) if known else 0.0
    read_I = column(not math.isnan(s) for s in scores)
    return {
        "score": column(middle if math.isnan(s) else s for s in scores),
        "right": np.array([j.comparison.label[0] > 0.5 for j in judged]),
        "says_error": column(s < THRESHOLD if not math.isnan(s) else 0.0 for s in scores),
        "read": read_I,
        "on_scale": any(
            j.critiques for j in judged
        ),  # the threshold means nothing for other judges
        "subset": Categories.of(j.subset for j in judged),
    }


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """ROC-AUC pooled, mean of the six subsets, each subset; accuracy, precision, recall and F1 of "error" at the threshold."""
    score, right, subset = grades["score"], grades["right"], grades["subset"]
    aucs = {}
    for code, name in enumerate(subset.names):
        at = subset.codes_I == code
        aucs[f"subset/{name}"] = roc_auc(score[at], right[at], weights_I[at])
    found = {
        "auc": roc_auc(score, right, weights_I),
        "auc_mean_of_subsets": nan_mean(aucs.values()),
    }
    if grades["on_scale"]:
        found |= detection(~right, grades["says_error"] > 0.5, grades["read"] > 0.5, weights_I)
    return found | aucs


def detection(error_I, says_error_I, read_I, weights_I) -> Metrics:
    """Accuracy (unread is wrong), precision, recall and F1 of "error" (unread counts as "no error"), as the benchmark's scorer."""
    w = weights_I
    says = says_error_I & read_I
    true_positive, said, errors = w[says & error_I].sum(), w[says].sum(), w[error_I].sum()
    precision = float(true_positive / said) if said else 0.0
    recall = float(true_positive / errors) if errors else 0.0
    both = precision + recall
    return {
        "accuracy": float(w[read_I & (says == error_I)].sum() / w.sum()) if w.sum() else math.nan,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
    }


def _auc(model: str, value: float) -> Published:
    return Published(model, {"auc": value}, "SPCT, table 13 (pooled or mean of subsets: not said)")


REALMISTAKE = Benchmark(
    name="realmistake",
    title="ReaLMistake",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={
        "official": f"AUC: ties count half, unreadable stands at the median; detection: error below {THRESHOLD} per critique, "
        "unreadable is wrong in the accuracy and 'no error' in precision and recall"
    },
    files="data.zip and README.md of github.com/psunlpgroup/ReaLMistake, as realmistake/",
    chance="AUC 0.5",
    bars=("subset/",),
    aliases=("ReaLMistake",),
    published=(
        _auc("DeepSeek-GRM-27B, greedy", 72.2),
        _auc("DeepSeek-GRM-27B, Voting@8", 74.4),
        _auc("GPT-4o-2024-08-06", 74.3),
        _auc("Gemma-2-27B-it", 65.8),
    ),
    private=True,
    notes="The AUC is the paper's choice; the benchmark itself reports F1 and accuracy of yes-or-no detectors.",
)
