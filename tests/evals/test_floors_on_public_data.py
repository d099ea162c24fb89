"""The length rule on the published files gives the floors that are known for them; the random rule gives chance."""

import numpy as np
import pytest

from grm_jax.evals import content_blind
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.bootstrap import Resampler

# Accuracy of "more characters is better", to three digits, a tie counting a half (RM-Bench: strict). AUC for single responses.
LONGEST = {
    "gsm8k": {"accuracy": 0.540},
    "pandalm": {"accuracy": 0.674},
    "humanevalpack": {"accuracy": 0.542},
    "hh_rlhf": {"accuracy": 0.445},
    "prometheus_hhh": {"accuracy": 0.633},
    "llamafactory_dpo_demo": {"accuracy": 0.438},
    "rm_bench": {"level/hard": 0.127, "level/normal": 0.394, "level/easy": 0.837},
    "realmistake": {"auc": 1 - 0.713},
}
COUNTS = {
    "gsm8k": 731,
    "pandalm": 999,
    "humanevalpack": 984,
    "hh_rlhf": 2312,
    "prometheus_hhh": 221,
    "llamafactory_dpo_demo": 300,
    "rm_bench": 7182,
    "realmistake": 900,
}


@pytest.fixture(scope="module")
def loaded(shared_data):
    return {
        name: BENCHMARKS[name].load(shared_data)
        for name in LONGEST
        if (shared_data / name).is_dir()
    }


@pytest.mark.parametrize("name", LONGEST)
def test_length_rule(loaded, name):
    if name not in loaded:
        pytest.skip(f"no folder {name}")
    benchmark, comparisons = BENCHMARKS[name], loaded[name]
    assert len(comparisons) == COUNTS[name]
    judged = [content_blind.judge("longest", c) for c in comparisons]
    metrics = benchmark.aggregate(
        benchmark.grade(judged, next(iter(benchmark.rules))), np.ones(len(judged))
    )
    assert {key: round(metrics[key], 3) for key in LONGEST[name]} == pytest.approx(LONGEST[name])


@pytest.mark.parametrize("name", LONGEST)
def test_random_rule_is_chance(loaded, name):
    if name not in loaded:
        pytest.skip(f"no folder {name}")
    benchmark = BENCHMARKS[name]
    judged = [content_blind.judge("random", c, seed=1) for c in loaded[name]]
    grades = benchmark.grade(judged, next(iter(benchmark.rules)))
    estimates = Resampler.of(judged, 200).estimate(lambda w: benchmark.aggregate(grades, w))
    headline = next(iter(estimates.values()))
    # A little wider than the 95% interval: eight sets are looked at.
    margin = 0.25 * (headline.high - headline.low)
    assert headline.low - margin < 0.5 < headline.high + margin


@pytest.mark.parametrize("name", sorted(set(LONGEST) - {"pandalm"}))
def test_the_place_of_the_best_response_tells_nothing(loaded, name):
    if name not in loaded:
        pytest.skip(f"no folder {name}")
    firsts = [c.rewards[0] / max(1e-9, sum(c.rewards)) - 1 / c.n for c in loaded[name] if c.n > 1]
    if firsts:
        # The right response of each of a prompt's pairs is placed by itself.
        assert abs(np.mean(firsts)) < 4 * 0.5 / np.sqrt(len(firsts))


def test_pandalm_reads_boolean_responses_as_words(loaded):
    if "pandalm" not in loaded:
        pytest.skip("no folder pandalm")
    by_id = {c.id: c for c in loaded["pandalm"]}
    assert by_id["pandalm-157"].responses == ("True", "True.")
    assert sum(c.meta["class"] == 0 for c in loaded["pandalm"]) == 105


def test_realmistake_stays_zipped(loaded, tmp_path):
    """Rows of a private benchmark hold scores, no text of the data and no critique that may quote it."""
    from grm_jax.evals import run

    if "realmistake" not in loaded:
        pytest.skip("no folder realmistake")
    assert BENCHMARKS["realmistake"].private
    row = {
        "id": "a",
        "query": "secret",
        "responses": ["secret"],
        "reference": None,
        "meta": {},
        "critiques": [{"text": "secret", "scores": [1]}],
    }
    assert "secret" not in str(run._without_text(row))
