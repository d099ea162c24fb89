"""Gemma 3 270M, real weights: our logits, greedy text and perplexity are those of transformers on the same file.

GRM_PEERS=PYTHON pytest --run weights tests/models/test_real_weights.py       (PYTHON: an interpreter with the `bench` extra)
"""

import os

import pytest
from parity_ours import LOGITS

from benchmarks import real_weights


@pytest.mark.weights
def test_the_same_model_as_transformers():
    if "GRM_PEERS" not in os.environ:
        pytest.skip(
            "GRM_PEERS is not set: give the interpreter of an environment with the `bench` extra"
        )
    try:
        result = real_weights.run(os.environ["GRM_PEERS"])
    except real_weights.Unavailable as reason:
        pytest.skip(str(reason))
    assert result["logits_largest_difference_over_largest_logit"] <= LOGITS
    assert result["greedy_tokens_identical"] == [real_weights.NEW_TOKENS] * len(
        real_weights.PROMPTS
    )
    assert result["perplexity_relative_difference"] <= 1e-3
