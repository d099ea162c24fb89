"""Golden numbers of the `rewardbench` package, from seeded scores with ties.

python -m venv V && V/bin/pip install torch==2.13.0 rewardbench==0.1.4
V/bin/python tests/evals/golden/make_rewardbench.py > tests/evals/golden/rewardbench_0_1_4.json
"""

import json
import sys

import numpy as np
from datasets import Dataset
from rewardbench.constants import EXAMPLE_COUNTS, SUBSET_MAPPING
from rewardbench.utils import (
    calculate_scores_per_section,
    process_single_model,
    reroll_and_score_dataset,
)

SEEDS = range(4)


def sections(seed):
    rng = np.random.default_rng(seed)
    accuracies = {subset: float(rng.random()) for subset in EXAMPLE_COUNTS}
    return {
        "accuracies": accuracies,
        "sections": calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, accuracies),
    }


def best_of_four(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, 6, (40, 4)).astype(float)
    flat = {
        "text": ["x"] * scores.size,
        "scores": scores.ravel().tolist(),
        "id": np.repeat(np.arange(40), 4).tolist(),
    }
    return {
        "scores": scores.tolist(),
        "results": reroll_and_score_dataset(Dataset.from_dict(flat), [4] * 40)["results"][:],
    }


def ties(seed, integers):
    """Scores with a spread in every prompt, so that package and formula agree (see the test)."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(12):
        for kind, right in (("ref", 1), ("tied", int(rng.integers(2, 6)))):
            wrong = int(rng.integers(2, 5))
            above = rng.random() < 0.7
            scores = rng.normal(size=right + wrong) + np.array(
                [2.0 * above] * right + [0.0] * wrong
            )
            scores = np.clip(np.round(scores * 2 + 5), 1, 10) if integers else scores
            rows.append({"id": f"{kind}:{number}", "scores": scores.tolist(), "num_correct": right})
    return {"rows": rows, "score": float(process_single_model(Dataset.from_list(rows))[1])}


json.dump(
    {
        "package": "rewardbench 0.1.4",
        "sections": [sections(seed) for seed in SEEDS],
        "best_of_four": [best_of_four(seed) for seed in SEEDS],
        "ties": [ties(seed, False) for seed in SEEDS],
        "ties_integers": [ties(seed, True) for seed in SEEDS],
    },
    sys.stdout,
)
