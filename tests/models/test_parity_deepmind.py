"""Compares float32 logits and gradients with goldens of DeepMind's `gemma` (make_goldens.py)."""

import numpy as np
import pytest
from parity_cases import CASES, PEERS, sample
from parity_ours import GRADIENTS, LOGITS, distance, golden, gradients_of, model_of, parity

from grm_jax.checkpoints.tensor_map import tensor_map


@pytest.mark.parametrize("name", PEERS["deepmind"])
def test_logits(name):
    assert parity(name, peer="deepmind") <= LOGITS


def test_the_two_peers_agree_with_each_other():
    """Parity with both is possible only if they agree."""
    for name in ("gemma2", "gemma2_caps", "gemma3"):
        a, b = (golden(peer)[f"{name}/logits"] for peer in ("deepmind", "transformers"))
        assert distance(a, b) <= LOGITS


@pytest.mark.parametrize("name", [n for n in PEERS["deepmind"] if CASES[n].gradients])
def test_gradients_of_the_mean_log_prob(name):
    """The tensor map converts every gradient to DeepMind's name and axes."""
    model, values = model_of(name), golden("deepmind")
    flat, compared = gradients_of(model, name), 0
    for path, source in tensor_map(model.cfg, "dm").items():
        for tensor in source.tensors:
            letters = tensor.axes.replace(",", "")
            value = np.asarray(flat[path] if tensor.unit is None else flat[path][tensor.unit])
            order = [source.axes.index(axis) for axis in letters if not axis.isdigit()]
            ours = sample(value.transpose(order))
            suffix = f"#{letters[0]}" if letters[0].isdigit() else ""
            theirs = values[f"{name}/grad/{tensor.name}{suffix}"]
            assert np.abs(ours - theirs).max() <= GRADIENTS * np.abs(theirs).max(), tensor
            compared += 1
    assert compared == sum(key.startswith(f"{name}/grad/") for key in values)
