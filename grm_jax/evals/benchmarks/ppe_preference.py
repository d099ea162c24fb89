"""PPE human preference V1: arena votes between 20 models (arXiv 2410.14872; lmarena-ai/PPE-Human-Preference-V1)."""

from __future__ import annotations

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
    column,
    credit,
    credit_or_strict,
    mean_by_category,
    weighted_mean,
)
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.ranking import model_agreement
from grm_jax.types import Comparison

# flag column -> name of the slice
SLICES = {
    "hard_prompt": "hard",
    "easy_prompt": "easy",
    "if_prompt": "if",
    "math_prompt": "math",
    "is_code": "code",
}


def read(source: Source) -> list[Comparison]:
    """Pairs of `prompt`, `response_1`, `response_2`, `winner` (model_a or model_b; ties are dropped), in their order."""
    found = []
    for record in source.table("test", "train"):
        if record["winner"] not in ("model_a", "model_b"):
            continue
        name = f"ppe-preference-{record['question_id']}"
        models = [record.get("model_a"), record.get("model_b")]
        slices = [short for flag, short in SLICES.items() if record.get(flag)]
        meta = {
            "group": name,
            "subset": record.get("language") or "unknown",
            "models": models,
            "slices": slices,
        }
        label = int(record["winner"] == "model_b")
        found.append(
            Comparison(
                _query(record["prompt"]),
                (record["response_1"], record["response_2"]),
                None,
                label,
                name,
                meta,
            )
        )
    return found


def _query(prompt):
    return (
        prompt
        if isinstance(prompt, str)
        else [{"role": t["role"], "content": t["content"]} for t in prompt]
    )


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Value and language, slices, and the two models with the share of the win that the judge gives to the first."""
    models = [tuple(j.comparison.meta["models"]) for j in judged]
    names = sorted({str(m) for pair in models for m in pair})
    at = {name: i for i, name in enumerate(names)}
    return credit_or_strict(judged, rule) | {
        "slices": {
            s: column(s in j.comparison.meta["slices"] for j in judged) for s in SLICES.values()
        },
        "first": np.array([at[str(a)] for a, _ in models], dtype=np.int64),
        "second": np.array([at[str(b)] for _, b in models], dtype=np.int64),
        "models": len(names),
        "truth": column(j.comparison.best == 0 for j in judged),
        "given": column(credit(j, 0) for j in judged),
        "language": Categories.of("English" if j.subset == "English" else "other" for j in judged),
    }


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """Accuracy; by slice and language; agreement of the models' ranking and win rates with the humans'."""
    found = {"accuracy": weighted_mean(grades["value"], weights_I)}
    found |= {
        f"slice/{s}": weighted_mean(grades["value"], weights_I * there)
        for s, there in grades["slices"].items()
    }
    found |= {
        f"language/{s}": v
        for s, v in mean_by_category(grades["value"], grades["language"], weights_I).items()
    }
    if grades["models"] > 2:
        found |= model_agreement(
            grades["first"],
            grades["second"],
            grades["truth"],
            grades["given"],
            weights_I,
            grades["models"],
        )
    return found


PPE_PREFERENCE = Benchmark(
    name="ppe_preference",
    title="PPE Preference",
    read=read,
    grade=grade,
    aggregate=aggregate,
    rules={"official": STRICT, "paper": PAPER},
    files="data/test-*.parquet of the Hugging Face dataset lmarena-ai/PPE-Human-Preference-V1, as ppe_preference/",
    chance="0.5",
    bars=("slice/", "language/"),
    aliases=("PPE-Human-Preference-V1", "ppe-human-preference-v1"),
    published=(
        Published("DeepSeek-GRM-27B, greedy", {"accuracy": 64.7}, "SPCT, table 2"),
        Published("DeepSeek-GRM-27B, MetaRM@32", {"accuracy": 67.2}, "SPCT, table 2"),
        Published("GPT-4o", {"accuracy": 67.1}, "SPCT, table 2"),
    ),
    notes="Human ties are dropped. Separability, confidence agreement and the Brier score of PPE are not computed.",
)
