"""Tests int8 keys and values: what they change, and that nothing else changes with them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grm_jax.models import get_config
from grm_jax.models.attention import self_attention
from grm_jax.models.quantize import dequantize_tokens, hadamard, quantize_tokens
from grm_jax.sampling import Engine, Request, cache, plan, weights
from grm_jax.sharding import make_mesh

LENGTH = 256
# Natural logs of the sampled tokens' probabilities against the float cache: 0.0008 to 0.004
# measured as the mean absolute difference.
BOUND = 0.01
OTHERS = ("tiny_gemma3", "tiny_llama3", "tiny_qwen2", "tiny_qwen3")


def int8(model):
    """Returns the model with an int8 cache."""
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, state)
    model.cfg = model.cfg.replace(kv_cache_dtype="int8")
    return model


@functools.cache
def engine_of(lab, name):
    return Engine(int8(lab.model(name)), 4, 2, segment=32)


def requests_of(prompts):
    """Requests that fill windows, refill rows and let the rings grow."""
    return [
        Request(prompts[0], 3, 60, temperature=0.8, seed=7, item=0),
        Request(prompts[3], 2, 100, seed=7, item=1),
        Request(prompts[2], 3, 40, temperature=1.3, top_p=0.9, seed=7, item=2),
    ]


@functools.cache
def forward(lab, name, prompt_length):
    """Returns a full forward pass in which tokens after the prompt see int8 keys and values."""
    model = lab.model(name)
    graphdef, state = nnx.split(model)
    cfg = model.cfg

    def run(state, tokens_1xL):
        model = nnx.merge(graphdef, state)
        positions = jnp.arange(tokens_1xL.shape[1])[None]
        segments = jnp.ones_like(tokens_1xL)

        def attend(layer, q, k, v, state):
            mask = positions, segments, layer.spec.window, cfg.attn_cap, cfg.query_chunk
            of_prompt, _ = self_attention(q, k, v, *mask)
            k, v = (dequantize_tokens(quantize_tokens(a), a.dtype) for a in (hadamard(k), v))
            sampled, _ = self_attention(hadamard(q), k, v, *mask)
            is_prompt = (positions < prompt_length)[..., None, None]
            return jnp.where(is_prompt, of_prompt, sampled), state, None

        x, _, _ = model.trunk(model.embedder.encode(tokens_1xL), positions, attend)
        return model.embedder.decode(model.final_norm(x))

    return functools.partial(jax.jit(run), state)


def log_probs(logits, tokens):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize(
    "name", ["tiny_gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_log_probs_are_those_of_int8_keys_and_values_and_close_to_the_float_ones(
    lab, prompts, name
):
    requests, errors, differences = requests_of(prompts), [], []
    for c in engine_of(lab, name).run(requests):
        prompt = list(requests[c.request_index].prompt)
        n, tokens = len(prompt), [*prompt, *c.tokens]
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = forward(lab, name, n)(padded)[0, n - 1 : len(tokens) - 1, :128]
        errors.append(np.abs(log_probs(logits, c.tokens) - c.logprobs_1))
        float_logits = lab.logits(name, tokens)[n - 1 : -1]
        differences.append(np.abs(log_probs(float_logits, c.tokens) - c.logprobs_1))
    errors, differences = np.concatenate(errors), np.concatenate(differences)
    print(f"{name}: {np.median(errors):.1e} {errors.mean():.1e} {differences.mean():.1e}")
    # A number within rounding of a boundary may be one step of its scale apart.
    assert np.median(errors) < 1e-4 and errors.mean() < 0.2 * differences.mean()
    assert len(differences) == 500 and differences.mean() < BOUND


def test_rotated_keys_have_the_same_products_and_smaller_outliers():
    q, k = jax.random.normal(jax.random.key(0), (2, 5, 64))
    k = k.at[:, 7].add(50.0)
    np.testing.assert_allclose(hadamard(q) @ hadamard(k).T, q @ k.T, atol=1e-4)
    errors = [
        np.abs(rotate(q) @ dequantize_tokens(quantize_tokens(rotate(k)), k.dtype).T - q @ k.T)
        for rotate in (lambda a: a, hadamard)
    ]
    assert errors[1].mean() < 0.3 * errors[0].mean()
    odd = jnp.ones((2, 12))
    assert hadamard(odd) is odd


def tokens_by_index(completions, request_index=0):
    return {
        c.sample_index: c.tokens.tolist() for c in completions if c.request_index == request_index
    }


@pytest.fixture(scope="module")
def alone(lab, prompts):
    """(a request, its tokens in a batch of its own, requests of other prompts)."""
    request = Request(prompts[3], 2, 40, temperature=0.9, seed=11, item=9)
    others = [Request(p, 8, 30, seed=5, item=20 + i) for i, p in enumerate(prompts)]
    return request, tokens_by_index(engine_of(lab, "tiny_gemma2").run([request])), others


def test_tokens_do_not_depend_on_the_batch(lab, alone):
    request, tokens, others = alone
    assert tokens_by_index(engine_of(lab, "tiny_gemma2").run([*others, request]), 4) == tokens


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 2, 2), (8, 1, 1)])
def test_tokens_do_not_depend_on_the_mesh(lab, alone, shape):
    request, tokens, others = alone
    mesh = make_mesh(*shape)
    graphdef, state = nnx.split(int8(lab.model("tiny_gemma2")))
    with jax.set_mesh(mesh):
        model = nnx.merge(graphdef, weights.for_sampling(state, mesh, "float32"))
        sharded = Engine(model, 4, 2, segment=32)
        assert tokens_by_index(sharded.run([*others[2:], request]), 2) == tokens


def test_keys_and_scales_are_split_over_kv_heads():
    cfg = get_config("tiny_gemma2", kv_cache_dtype="int8")
    with jax.set_mesh(make_mesh(1, 2, 4)):
        keys = cache.empty_state(cfg, 4, 2, 48, 32).suffix[0][0]
    assert "tensor" in str(keys.values.sharding.spec) and "tensor" in str(keys.scale.sharding.spec)


def test_a_common_prefix_is_stored_in_int8(lab):
    rng = np.random.default_rng(1)
    prefix = rng.integers(4, 128, 30).tolist()
    requests = [
        Request(
            [*prefix, *rng.integers(4, 128, 6).tolist()], 2, 20, seed=3, item=i, common_prefix=30
        )
        for i in range(3)
    ]
    engine = engine_of(lab, "tiny_gemma2")
    together = list(engine.run(requests))
    assert {
        leaf.dtype for pair in engine._kept[tuple(prefix)] for leaf in jax.tree.leaves(pair)
    } == {np.dtype(np.int8), np.dtype(np.float32)}
    for i, request in enumerate(requests):
        assert tokens_by_index(engine.run([request])) == tokens_by_index(together, i)
    for c in together:
        tokens = [*requests[c.request_index].prompt, *c.tokens]
        logits = lab.logits("tiny_gemma2", tokens)[35:-1]
        assert np.abs(log_probs(logits, c.tokens) - c.logprobs_1).mean() < BOUND


def test_the_memory_estimate_counts_values_and_scales():
    cfg, sizes = get_config("tiny_gemma2", kv_cache_dtype="int8"), (2, 4, 48, 32, 16)
    state = jax.eval_shape(lambda: cache.empty_state(cfg, *sizes))
    estimate = plan.state_bytes(cfg, *sizes)
    for name in ("common", "prefix", "suffix"):
        arrays = jax.tree.leaves(getattr(state, name))
        assert {a.dtype for a in arrays} == {np.dtype(np.int8), np.dtype(np.float32)}
        assert estimate[name] == sum(a.size * a.dtype.itemsize for a in arrays)
    judge = get_config("gemma2_9b", quantize="int8")
    requests = [Request([0] * 40, 8, 200)] * 64
    rows = [
        math.prod(plan.fit(c, requests, memory=15 << 30, taken=0, platform="tpu"))
        for c in (judge, judge.replace(kv_cache_dtype="int8"))
    ]
    assert rows == [32, 64]
