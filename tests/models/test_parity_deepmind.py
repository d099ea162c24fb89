"""Our logits and gradients are those of DeepMind's `gemma` package (float32), from goldens that make_goldens.py writes."""

import numpy as np
import pytest
from parity_cases import CASES, sample
from parity_ours import GRADIENTS, LOGITS, distance, golden, gradients_of, model_of, parity

from grm_jax.checkpoints.tensor_map import tensor_map


@pytest.mark.parametrize("name", CASES)
def test_logits(name):
    assert parity(name, peer="deepmind") <= LOGITS


def test_the_two_peers_agree_with_each_other():
    """Where they did not, parity with both could not be asked for."""
    for name in ("gemma2", "gemma2_caps", "gemma3"):
        assert (
            distance(golden("deepmind")[f"{name}/logits"], golden("transformers")[f"{name}/logits"])
            <= LOGITS
        )


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.gradients])
def test_gradients_of_the_mean_log_prob(name):
    """Every gradient, taken to DeepMind's name and axes by the table of names."""
    model, values = model_of(name), golden("deepmind")
    flat, seen = gradients_of(model, name), 0
    for path, source in tensor_map(model.cfg, "dm").items():
        for tensor in source.tensors:
            letters = tensor.axes.replace(",", "")
            value = np.asarray(flat[path] if tensor.unit is None else flat[path][tensor.unit])
            ours = sample(
                value.transpose([source.axes.index(a) for a in letters if not a.isdigit()])
            )
            theirs = values[
                f"{name}/grad/{tensor.name}" + (f"#{letters[0]}" if letters[0].isdigit() else "")
            ]
            assert np.abs(ours - theirs).max() <= GRADIENTS * np.abs(theirs).max(), tensor
            seen += 1
    assert seen == sum(key.startswith(f"{name}/grad/") for key in values)
