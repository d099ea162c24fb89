"""Tests the products that XLA's CPU backend gets in another form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grm_jax.models import Transformer, cpu, get_config, token_logps
from grm_jax.models.weights import TO_HEADS


def bfloat16_factors(shape, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(keys[0], shape, jnp.bfloat16)
    return x, jax.random.normal(keys[1], (shape[-1], 3, 8), jnp.bfloat16)


@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 1, 64), (1, 5, 64)])
def test_bfloat16_products_on_a_cpu_accumulate_at_least_two_rows_in_float32(shape):
    x, w = bfloat16_factors(shape)
    text = jax.jit(functools.partial(cpu.project, TO_HEADS)).lower(x, w).as_text()
    (dot,) = [line for line in text.splitlines() if "dot_general" in line]
    rows = (2, 1) if shape[:2] == (1, 1) else shape[:2]
    assert dot.endswith(f"-> tensor<{rows[0]}x{rows[1]}x3x8xf32>")
    exact = np.einsum("bld,dnh->blnh", *(np.asarray(a, np.float64) for a in (x, w)))
    out = cpu.matmul(TO_HEADS, x, w)
    assert out.dtype == jnp.float32 and out.shape == exact.shape
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_bfloat16_product_on_a_cpu_are_those_of_the_plain_product():
    x, w = bfloat16_factors((2, 5, 64))
    ours, plain = (
        jax.grad(lambda x, w, f=f: jnp.sum(f(x, w).astype(jnp.float32) ** 2), (0, 1))(x, w)
        for f in (functools.partial(cpu.project, TO_HEADS), TO_HEADS)
    )
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = (np.asarray(g, np.float32) for g in (a, b))
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.5)


def test_every_product_of_a_compiled_bfloat16_model_with_one_token_has_two_float32_rows():
    cfg = get_config("tiny_qwen2", dtype="bfloat16", param_dtype="bfloat16")
    graphdef, state = nnx.split(Transformer(cfg, nnx.Rngs(0)))
    run = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens))
    text = run.lower(state, jnp.zeros((1, 1), jnp.int32)).compile().as_text()
    products = re.findall(r"= (\w+\[\d+,\d+\])\S* dot\(", text)  # those of attention have 3 axes
    widths = [32] * 4 + [64] * 3 + [cfg.vocab_size]  # k, v, o, down; q, gate, up; logits
    assert sorted(products) == sorted(f"f32[2,{width}]" for width in widths), products


def update_of(cfg):
    """Returns (loss and gradients, its arguments) of a mean log-probability over packed rows."""
    graphdef, state = nnx.split(Transformer(cfg, nnx.Rngs(0)))
    tokens = jax.random.randint(jax.random.key(1), (2, 48), 1, cfg.vocab_size)
    segments = jnp.repeat(jnp.array([[1] * 20 + [2] * 24 + [0] * 4]), 2, axis=0)

    def loss(state):
        return token_logps(nnx.merge(graphdef, state), tokens, segment_ids_BxL=segments).logps.sum()

    return jax.value_and_grad(loss), state


def transposed_shapes(jaxpr):
    """Returns the shapes of all transposed arrays of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "transpose":
            yield equation.invars[0].aval.shape
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from transposed_shapes(inner)


@pytest.mark.parametrize("name", ["tiny_gemma2", "tiny_qwen2"])
def test_float32_forms_of_a_cpu_give_the_gradients_of_the_plain_forms(name):
    losses, gradients = [], []
    for products in (True, False):
        cfg = get_config(name, cpu_products=products, query_chunk=32, logits_chunk=32)
        function, state = update_of(cfg)
        loss, gradient = jax.jit(function)(state)
        losses.append(loss)
        gradients.append(gradient)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, plain = map(jax.tree.leaves, gradients)
    assert all(np.abs(g).max() > 0 for g in plain)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_float32_forms_of_a_cpu_transpose_no_logits():
    def wide(products):
        cfg = get_config("tiny_gemma2", cpu_products=products, query_chunk=64, logits_chunk=64)
        function, state = update_of(cfg)
        shapes = list(transposed_shapes(jax.make_jaxpr(function)(state).jaxpr))
        L, V = 48, cfg.vocab_size
        return [s for s in shapes if s.count(L) > 1 or (V in s and np.prod(s) > V * cfg.d_model)]

    assert wide(False)
    assert not wide(True)
