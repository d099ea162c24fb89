"""Content-blind baselines on the published files: `longest` as published, `random` at chance."""

import functools

import numpy as np
import pytest

from grm_jax.evals import content_blind
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.bootstrap import Resampler
from grm_jax.judging.codec import without_texts

# Accuracy of "more characters is better" to three digits; a tie counts a half (RM-Bench: strict).
# AUC for single responses.
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
def load(shared_data):
    """name -> comparisons, read once; skips a benchmark without a folder."""

    @functools.cache
    def load(name):
        if not (shared_data / name).is_dir():
            pytest.skip(f"no folder {name}")
        return BENCHMARKS[name].load(shared_data)

    return load


def grade(name, judged):
    """Grades under the benchmark's own rule."""
    benchmark = BENCHMARKS[name]
    return benchmark.grade(judged, next(iter(benchmark.rules)))


@pytest.mark.parametrize("name", LONGEST)
def test_longest_equals_the_known_values(load, name):
    comparisons = load(name)
    assert len(comparisons) == COUNTS[name]
    grades = grade(name, [content_blind.judge("longest", c) for c in comparisons])
    metrics = BENCHMARKS[name].aggregate(grades, np.ones(len(comparisons)))
    assert {key: round(metrics[key], 3) for key in LONGEST[name]} == pytest.approx(LONGEST[name])


@pytest.mark.parametrize("name", LONGEST)
def test_random_is_at_chance(load, name):
    judged = [content_blind.judge("random", c, seed=1) for c in load(name)]
    grades = grade(name, judged)
    estimates = Resampler.of(judged, 200).estimate(lambda w: BENCHMARKS[name].aggregate(grades, w))
    headline = next(iter(estimates.values()))
    # A little wider than the 95% CI, because eight sets are tested.
    margin = 0.25 * (headline.high - headline.low)
    assert headline.low - margin < 0.5 < headline.high + margin


@pytest.mark.parametrize("name", sorted(set(LONGEST) - {"pandalm"}))
def test_the_position_of_the_best_response_carries_no_information(load, name):
    firsts = [c.rewards[0] / max(1e-9, sum(c.rewards)) - 1 / c.n for c in load(name) if c.n > 1]
    if firsts:
        # The right response of each pair of a prompt is placed independently.
        assert abs(np.mean(firsts)) < 4 * 0.5 / np.sqrt(len(firsts))


def test_pandalm_reads_boolean_responses_as_words(load):
    by_id = {c.id: c for c in load("pandalm")}
    assert by_id["pandalm-157"].responses == ("True", "True.")
    assert sum(c.meta["class"] == 0 for c in load("pandalm")) == 105


def test_rows_of_a_private_benchmark_have_no_texts():
    """Neither the texts of the data nor the critiques, which may quote them."""
    assert BENCHMARKS["realmistake"].private
    row = {
        "id": "a",
        "query": "secret",
        "responses": ["secret"],
        "reference": None,
        "meta": {},
        "critiques": [{"text": "secret", "scores": [1]}],
    }
    assert "secret" not in str(without_texts(row))
