"""ReaLMistake: does one response contain a mistake? (arXiv 2404.03602; psunlpgroup/ReaLMistake).

The data are read from the password-protected zip in memory and never written to disk, as their
authors ask.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from grm_jax import strict_json
from grm_jax.evals import benchmark as bm
from grm_jax.evals.classification import precision_recall_f1, roc_auc
from grm_jax.evals.files import Source
from grm_jax.types import Comparison

# On the scale of one critique (1 to 10): a lower score predicts "error". The benchmark's own
# detectors answer yes or no.
THRESHOLD = 5.5


def read(source: Source) -> Iterator[Comparison]:
    """Reads single responses labelled 1 (no error) or 0; the subset is "task, model".

    The README beside the zip contains the password.
    """
    path = source.require("data.zip")[0]
    with zipfile.ZipFile(path) as archive:
        archive.setpassword(_password(path).encode())
        for name in sorted(archive.namelist()):
            if name.endswith(".jsonl") and not name.endswith("example.jsonl"):
                yield from _read_member(archive.read(name).decode(), name, path)


def _read_member(text: str, name: str, path: Path) -> Iterator[Comparison]:
    task, model = name.split("/")[-2], name.split("/")[-1].removesuffix(".jsonl")
    for number, line in enumerate(text.splitlines()):
        record = strict_json.loads(line)
        label = record.get("error_label", record.get("label"))
        if label not in ("error", "no_error"):
            raise ValueError(
                f"{path}: {name}, line {number + 1}: label is {label!r}; use 'error' or 'no_error'"
            )
        id = f"realmistake-{task}-{model}-{number}"
        meta = {"subset": f"{task}, {model}"}
        responses, rewards = (record["llm_response"],), (float(label == "no_error"),)
        yield Comparison(record["input"], responses, None, rewards, id, meta)


def _password(path: Path) -> str:
    readme = path.with_name("README.md")
    text = readme.read_text() if readme.is_file() else ""
    match = re.search(r"[Pp]assword[^`]{0,60}`([^`]+)`", text)
    if not match:
        raise ValueError(
            f"{path}: {readme} does not contain the zip's password: put the dataset's README there"
        )
    return match[1]


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns score, label (True: no error), predicted error, and whether the score was parsed."""
    scores_I = bm.scores_per_critique(judged)
    return {
        # An unparseable judgement predicts nothing: it gets the median of the parsed scores.
        "score": bm.fill_with_median(scores_I),
        "right": bm.single_labels(judged),
        "predicted_error": scores_I < THRESHOLD,
        "parsed": ~np.isnan(scores_I),
        # The threshold means nothing for judges that write no critiques.
        "on_scale": any(j.critiques for j in judged),
        "subset": bm.Categories.of(j.subset for j in judged),
    }


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes ROC-AUC (pooled, mean over subsets, each) and error detection at the threshold."""
    score, right, subset = grades["score"], grades["right"], grades["subset"]
    aucs = {}
    for code, name in enumerate(subset.names):
        at = subset.codes_I == code
        aucs[f"subset/{name}"] = roc_auc(score[at], right[at], weights_I[at])
    metrics = {
        "auc": roc_auc(score, right, weights_I),
        "auc_mean_of_subsets": bm.nan_mean(aucs.values()),
    }
    if grades["on_scale"]:
        metrics |= detection(~right, grades["predicted_error"], grades["parsed"], weights_I)
    return metrics | aucs


def detection(
    error_I: np.ndarray, predicted_error_I: np.ndarray, parsed_I: np.ndarray, weights_I: np.ndarray
) -> bm.Metrics:
    """Computes accuracy, precision, recall and F1 of "error", as the benchmark's scorer does.

    An unparseable judgement is wrong in the accuracy and "no error" in precision and recall.
    """
    precision, recall, f1 = precision_recall_f1(error_I, predicted_error_I & parsed_I, weights_I)
    correct_I = parsed_I & (predicted_error_I == error_I)
    return {
        "accuracy": bm.weighted_mean(correct_I, weights_I),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


REALMISTAKE = bm.Benchmark(
    name="realmistake",
    title="ReaLMistake",
    order=80,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline=f"pooled ROC-AUC; detection at {THRESHOLD} beside it",
    rules={
        "official": "AUC: ties count 1/2, unparseable takes the median score; detection: error "
        f"below {THRESHOLD} per critique, unparseable is wrong in the accuracy and 'no error' in "
        "precision and recall"
    },
    files="data.zip and README.md of github.com/psunlpgroup/ReaLMistake, as realmistake/",
    chance="AUC 0.5",
    bars=("subset/",),
    aliases=("ReaLMistake",),
    published=tuple(
        bm.Published(model, {"auc": auc}, "SPCT, table 13 (pooled or mean of subsets: not stated)")
        for model, auc in (
            ("DeepSeek-GRM-27B, greedy", 72.2),
            ("DeepSeek-GRM-27B, Voting@8", 74.4),
            ("GPT-4o-2024-08-06", 74.3),
            ("Gemma-2-27B-it", 65.8),
        )
    ),
    private=True,
    notes="The AUC is the paper's choice; the benchmark itself reports F1 and accuracy of "
    "yes-or-no detectors.",
)
