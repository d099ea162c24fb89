"""Tests the TPU attention kernel: interpreted against the XLA path, and compiled for a slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax import sharding
from grm_jax.models import LayerSpec, get_config
from grm_jax.models.attend import LayerRef, grouped_attention, uses_splash
from grm_jax.models.attention import default_positions, self_attention
from grm_jax.models.splash import Group, splash_attention
from launch.compile.slices import slice_devices


@pytest.mark.parametrize("window", [None, 50])
def test_the_kernel_equals_the_xla_path(window):
    """Left padding, two packed sequences in one row, an active cap, a window inside a block."""
    L, N, K, H = 128, 2, 1, 128
    q, k, v = (jax.random.normal(jax.random.key(i), (1, L, n, H)) for i, n in enumerate((N, K, K)))
    segments = jnp.array([[0] * 10 + [1] * 70 + [2] * 48])
    expected, _ = self_attention(q, k, v, default_positions(segments), segments, window, 5.0, 64)
    ours = splash_attention(q, k, v, segments, window, 5.0, interpret=True)
    np.testing.assert_allclose(ours[:, 10:], expected[:, 10:], atol=2e-5)


@pytest.mark.parametrize("window", [50, pytest.param(None, marks=pytest.mark.slow)])
def test_a_group_equals_the_xla_path_with_its_gradients(window):
    """A prompt with left padding and two completions, whose parts no block boundary meets."""
    P, G, T, N, K, H = 96, 2, 80, 2, 1, 128
    L, pad = P + G * T, 10
    q, k, v = (jax.random.normal(jax.random.key(i), (1, L, n, H)) for i, n in enumerate((N, K, K)))
    weights = jax.random.normal(jax.random.key(3), (1, L, N, H)).at[:, :pad].set(0)
    cfg = get_config("tiny_gemma2", attn_cap=5.0, query_chunk=64)
    _, attend = grouped_attention(cfg, jnp.array([P - pad]), P, G, T)
    layer = LayerRef(LayerSpec(window), 0, None)
    segments = (jnp.arange(L) >= pad).astype(jnp.int32)[None]

    def xla(q, k, v):
        return (attend(layer, q, k, v, None)[0] * weights).sum()

    def kernel(q, k, v):
        o = splash_attention(q, k, v, segments, window, 5.0, Group(P, T), interpret=True)
        return (o * weights).sum()

    expected, ours = (jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v) for f in (xla, kernel))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_length_that_blocks_do_not_divide_is_an_error():
    x = jnp.zeros((1, 100, 1, 128))
    message = "multiple of 128, not 100: pad the batch, or set attention='xla'"
    with pytest.raises(ValueError, match=message):
        splash_attention(x, x, x, jnp.ones((1, 100)), None, None, interpret=True)
    with pytest.raises(ValueError, match=r"not 100 \(20 \+ completions of 40\)"):
        splash_attention(x, x, x, jnp.ones((1, 100)), None, None, Group(20, 40), interpret=True)


def test_other_devices_and_lengths_use_xla():
    x = jnp.zeros((1, 128, 1, 128))
    with pytest.raises(ValueError, match="needs a TPU, not cpu: set attention='xla'"):
        splash_attention(x, x, x, jnp.ones((1, 128)), None, None)
    cfg = get_config("tiny_gemma2", attention="splash")
    assert not uses_splash(cfg, 256)
    with jax.set_mesh(sharding.make_mesh(1, 2, 2, slice_devices("v5litepod-4"))):
        assert uses_splash(cfg, 256) and not uses_splash(cfg, 200)
        assert not uses_splash(cfg.replace(attention="xla"), 256)


def test_forward_and_backward_compile_for_a_slice():
    """Sharded over heads and batch, in bfloat16, with the cap and the window."""
    mesh = sharding.make_mesh(1, 2, 2, slice_devices("v5litepod-4"))

    def loss(q, k, v, segments):
        return splash_attention(q, k, v, segments, 200, 50.0).astype(jnp.float32).sum()

    def argument(*shape, dtype=jnp.bfloat16):
        axes = ("batch", "length", "heads", "head_dim")[: len(shape)]
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(mesh, *axes))

    q, k = argument(2, 256, 4, 128), argument(2, 256, 2, 128)
    # The kernel's bfloat16 products do not support the suite's float32 precision.
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(
            q, k, k, argument(2, 256, dtype=jnp.int32)
        )
        program = lowered.compile().as_text()
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program
