"""Tests the TPU attention kernel: interpreted against the XLA path, and compiled for a slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax import sharding
from grm_jax.models.attention import default_positions, self_attention
from grm_jax.models.splash import splash_attention
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


def test_a_length_that_blocks_do_not_divide_is_an_error():
    x = jnp.zeros((1, 100, 1, 128))
    message = "multiple of 128, not 100: pad the batch, or set attention='xla'"
    with pytest.raises(ValueError, match=message):
        splash_attention(x, x, x, jnp.ones((1, 100)), None, None)


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
