"""Compares logits and gradients with goldens of transformers (eager attention; make_goldens.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_cases import CASES, CONFIGS, PEERS, SCALARS, batch
from parity_ours import (
    LOGITS,
    by_path,
    compare_gradients,
    folder,
    golden,
    gradients_of,
    logits_of,
    model_of,
    parity,
)

from grm_jax.checkpoints import load


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
    original = CONFIGS["llama3"]["rope_scaling"]["original_max_position_embeddings"]
    assert mask.sum(axis=1).min() > original


@pytest.mark.parametrize("chunk", [5, 8])
def test_query_chunks_leave_the_logits_unchanged(chunk):
    assert parity("gemma2_left", model_of("gemma2_left", query_chunk=chunk)) <= LOGITS


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.gradients])
def test_gradients_of_the_mean_log_prob(name):
    model = model_of(name)
    compare_gradients(gradients_of(model, name), model.cfg, golden("transformers"), name)


@pytest.mark.parametrize("family", CONFIGS)
def test_rewards_of_sequence_classifiers(family):
    """Row 1 is padded left or right: its reward belongs to its last real token."""
    graphdef, state = nnx.split(load(folder(SCALARS[f"{family}_left"]), dtype="float32"))
    run = jax.jit(lambda state, *batch: nnx.merge(graphdef, state).rewards(*batch))
    for name in (f"{family}_left", f"{family}_right"):
        ours = run(state, *map(jnp.asarray, batch(SCALARS[name])))
        theirs = golden("rewards")[f"{name}/rewards"]
        assert np.abs(ours - theirs).max() <= LOGITS * np.abs(theirs).max()
        assert abs(theirs[0] - theirs[1]) > 0.01 * np.abs(theirs).max()


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in CONFIGS if family != "qwen3"]


@pytest.mark.parametrize("family", ["qwen3", *SLOW])
def test_gradients_of_the_rewards(family):
    """Of the sum of both rows' rewards, the second of which is padded left or right."""
    model = load(folder(SCALARS[f"{family}_left"]), dtype="float32")
    graphdef, state = nnx.split(model)
    run = jax.jit(jax.grad(lambda state, *batch: nnx.merge(graphdef, state).rewards(*batch).sum()))
    for name in (f"{family}_left", f"{family}_right"):
        gradients = by_path(run(state, *map(jnp.asarray, batch(SCALARS[name]))))
        compare_gradients(gradients, model.cfg, golden("rewards"), name)


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
