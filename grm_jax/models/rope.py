"""Rotary position embeddings (RoPE), arXiv 2104.09864.

Axes as in `transformer.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models.config import LayerSpec, Llama3Rope


def rope_angles(
    positions_BxL: jax.Array, spec: LayerSpec, head_dim: int
) -> tuple[jax.Array, jax.Array]:
    """Returns cos, sin of shape (B, L, 1, H/2), float32: bfloat16 is too coarse for positions."""
    frequency = rope_frequencies(spec, head_dim)
    angle = positions_BxL[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope_frequencies(spec: LayerSpec, head_dim: int) -> jax.Array:
    """Returns the angle that RoPE turns each pair by per token, float32 (H/2,)."""
    frequency = (
        spec.rope_theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        / spec.rope_scale
    )
    return _llama3_scaled(frequency, spec.llama3_rope) if spec.llama3_rope else frequency


def _llama3_scaled(frequency: jax.Array, rope: Llama3Rope) -> jax.Array:
    """Scales RoPE frequencies by their wavelengths, as `Llama3Rope` says."""
    turns = rope.original_length * frequency / (2 * jnp.pi)  # in the original context
    kept = jnp.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return kept * frequency + (1.0 - kept) * frequency / rope.factor


def rotate(x_BxLxNxH: jax.Array, angles: Any) -> jax.Array:
    """Applies rotary embeddings in the half-split layout of the released checkpoints."""
    cos, sin = angles
    a, b = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxLxNxH.dtype)
