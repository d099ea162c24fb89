"""Compares logits and gradients with goldens of transformers (eager attention; make_goldens.py)."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, CONFIGS, PEERS, batch, sample
from parity_ours import GRADIENTS, LOGITS, golden, gradients_of, logits_of, model_of, parity

from grm_jax.checkpoints.saving import disk_array
from grm_jax.checkpoints.tensor_map import axis_sizes, tensor_map


@pytest.mark.parametrize("name", PEERS["transformers"])
def test_logits(name):
    assert parity(name) <= LOGITS


def test_the_cases_activate_caps_and_span_windows():
    """Inactive caps or a sequence within one window would make the goldens useless."""
    capped = golden("transformers")["gemma2_caps/logits"]
    assert 29.5 < np.abs(capped).max() <= 30.0
    tokens, mask = batch(CASES["gemma2_left"])
    assert tokens.shape[1] > 4 * CONFIGS["gemma2"]["sliding_window"]
    assert mask[1].sum() < mask.shape[1] - 8


@pytest.mark.parametrize("chunk", [5, 8])
def test_query_chunks_leave_the_logits_unchanged(chunk):
    assert parity("gemma2_left", model_of("gemma2_left", query_chunk=chunk)) <= LOGITS


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.gradients])
def test_gradients_of_the_mean_log_prob(name):
    """The tensor map converts every gradient to its Hugging Face name and shape."""
    model, values = model_of(name), golden("transformers")
    flat, sizes = gradients_of(model, name), axis_sizes(model.cfg)
    compared = 0
    for path, source in tensor_map(model.cfg, "hf").items():
        for tensor in source.tensors:
            ours = sample(disk_array(flat[path], tensor, source.axes, sizes, np.dtype(np.float32)))
            theirs = values[f"{name}/grad/{tensor.name}"]
            assert np.abs(ours - theirs).max() <= GRADIENTS * np.abs(theirs).max(), tensor.name
            compared += 1
    assert compared == sum(key.startswith(f"{name}/grad/") for key in values)


# bfloat16 has 8 significant bits, and both sides round in different orders. Bounds: root mean
# square difference from transformers as a share of the largest logit; our error against float32 as
# a multiple of transformers' error.
BF16_RMS, BF16_ERROR_RATIO = 0.02, 1.2


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.bf16])
def test_bfloat16(name):
    tokens, mask = batch(CASES[name])
    values = golden("transformers")
    theirs, exact = values[f"{name}/logits_bf16"], values[f"{name}/logits"]
    ours = logits_of(model_of(name, "bfloat16"), tokens, mask)
    assert _rms(ours - theirs) <= BF16_RMS * np.abs(exact).max()
    assert _rms(ours - exact) <= BF16_ERROR_RATIO * _rms(theirs - exact)


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.bf16])
def test_bfloat16_embeddings_are_bit_identical(name):
    """The embedding scale is rounded to bfloat16: sqrt(44) = 6.633 becomes 6.625."""
    model = model_of(name, "bfloat16")
    ours = np.asarray(model.embedder.encode(jnp.asarray(batch(CASES[name])[0])), np.float32)
    np.testing.assert_array_equal(ours, golden("transformers")[f"{name}/embedded_bf16"])
