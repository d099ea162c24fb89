"""Compares released models with transformers on the same weights: logits, greedy text, perplexity.

    GRM_PEERS=PYTHON pytest --run weights tests/models/test_real_weights.py

PYTHON is an interpreter with the `bench` extra.
"""

import os

import pytest
from parity_ours import LOGITS

from benchmarks import real_weights


@pytest.mark.weights
@pytest.mark.parametrize("model", real_weights.MODELS)
def test_results_equal_those_of_transformers(model):
    if "GRM_PEERS" not in os.environ:
        pytest.skip("GRM_PEERS is not set: set it to an interpreter with the `bench` extra")
    try:
        result = real_weights.run(os.environ["GRM_PEERS"], model)
    except real_weights.Unavailable as reason:
        pytest.skip(str(reason))
    assert result["prompt_ids_identical"]
    assert result["logits_largest_difference_over_largest_logit"] <= LOGITS
    expected = [real_weights.NEW_TOKENS] * len(real_weights.PROMPTS)
    assert result["greedy_tokens_identical"] == expected
    assert result["perplexity_relative_difference"] <= 1e-3
