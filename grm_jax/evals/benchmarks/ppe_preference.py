"""PPE human preference V1: arena votes between 20 models (arXiv 2410.14872; lmarena-ai)."""

from collections.abc import Iterator

import numpy as np

from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source
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


def read(source: Source) -> Iterator[Comparison]:
    """Reads `prompt`, `response_1`, `response_2`, `winner`; keeps the order, drops human ties."""
    for record in source.table("test", "train"):
        if record["winner"] not in ("model_a", "model_b"):
            continue
        name = f"ppe-preference-{record['question_id']}"
        meta = {
            "subset": record.get("language") or "unknown",
            "models": [record.get("model_a"), record.get("model_b")],
            "slices": [short for flag, short in SLICES.items() if record.get(flag)],
        }
        query, responses = record["prompt"], (record["response_1"], record["response_2"])
        if not isinstance(query, str):
            query = [{"role": turn["role"], "content": turn["content"]} for turn in query]
        label = int(record["winner"] == "model_b")
        yield Comparison(query, responses, None, label, name, meta)


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns value, language, slices, and both models with the judge's share for the first."""
    models = [tuple(map(str, j.comparison.meta["models"])) for j in judged]
    names = sorted({name for pair in models for name in pair})
    index = {name: i for i, name in enumerate(names)}
    first_I, second_I = np.array([[index[name] for name in pair] for pair in models]).T
    return bm.grade_strict(judged, rule) | {
        "slices": {
            s: bm.column(s in j.comparison.meta["slices"] for j in judged) for s in SLICES.values()
        },
        "first": first_I,
        "second": second_I,
        "models": len(names),
        "truth": bm.column(j.comparison.best == 0 for j in judged),
        "predicted": bm.column(bm.credit(j, 0) for j in judged),
        "language": bm.Categories.of(
            "English" if j.subset == "English" else "other" for j in judged
        ),
    }


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes accuracy, also by slice and language; agreement with the human model ranking."""
    value_I = grades["value"]
    languages = bm.mean_by_category(value_I, grades["language"], weights_I)
    metrics = (
        {"accuracy": bm.weighted_mean(value_I, weights_I)}
        | {
            f"slice/{name}": bm.weighted_mean(value_I, weights_I * members_I)
            for name, members_I in grades["slices"].items()
        }
        | {f"language/{name}": value for name, value in languages.items()}
    )
    if grades["models"] > 2:
        metrics |= model_agreement(
            grades["first"],
            grades["second"],
            grades["truth"],
            grades["predicted"],
            weights_I,
            grades["models"],
        )
    return metrics


PPE_PREFERENCE = bm.Benchmark(
    name="ppe_preference",
    title="PPE Preference",
    order=30,
    paper=True,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline="accuracy, human ties dropped",
    rules={"official": bm.STRICT_RULE, "paper": bm.PAPER_RULE},
    files="data/test-*.parquet of the Hugging Face dataset lmarena-ai/PPE-Human-Preference-V1, "
    "as ppe_preference/",
    chance="0.5",
    bars=("slice/", "language/"),
    aliases=("PPE-Human-Preference-V1", "ppe-human-preference-v1"),
    published=(
        bm.Published("DeepSeek-GRM-27B, greedy", {"accuracy": 64.7}, "SPCT, table 2"),
        bm.Published("DeepSeek-GRM-27B, MetaRM@32", {"accuracy": 67.2}, "SPCT, table 2"),
        bm.Published("GPT-4o", {"accuracy": 67.1}, "SPCT, table 2"),
    ),
    notes="Human ties are dropped. PPE's separability, confidence agreement and Brier score are "
    "not computed.",
)
