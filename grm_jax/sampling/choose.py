"""Chooses the next token: temperature, top-k and top-p, all traced, without sorting the vocabulary.

Axes: B rows of all prompts, V vocabulary. Everything is a reduction over V, so that a sharded
vocabulary stays sharded.

A filter is a threshold on the logits. A radix search over the bits of the floats finds the largest
threshold whose survivors reach a target (k of them, or a share of the probability) exactly: 8
passes of 16-way comparisons instead of a sort. The draw inverts the cumulative distribution with
one uniform number per row: block sums first, then inside one block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

RADIX_BITS = 4
# A lower one is raised to this. The compiler may round the logits differently for their maximum and
# for the difference from it; divided by a lower temperature, that error exceeds the exponent range.
MIN_TEMPERATURE = 1e-6
BLOCKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)


class Choice(NamedTuple):
    """The chosen tokens, int32 (B,), and their natural log-probabilities before top-k and top-p.

    logprob: float32 (B,), under the sampling temperature (under 1 for greedy rows).
    logprob_1: float32 (B,), under temperature 1.
    finite: bool (B,), False where the row's logits hold a NaN, +inf, or no finite number.
    """

    token: jax.Array
    logprob: jax.Array
    logprob_1: jax.Array
    finite: jax.Array


def choose(
    logits_BxV: jax.Array,
    uniform_B: jax.Array,
    temperature_B: jax.Array,
    top_p_B: jax.Array,
    top_k_B: jax.Array,
) -> Choice:
    """Chooses one token per row from float32 logits.

    Tokens that tie with the last survivor of a filter survive as well. With both filters, top_p is
    a share of the probability that top_k left.

    Args:
      uniform_B: random numbers in [0, 1).
      temperature_B: 0 is greedy.
      top_p_B: 1 or more disables the filter.
      top_k_B: 0 or less disables the filter.
    """
    top_B = jnp.max(logits_BxV, axis=-1)
    # Not argmax: its reduction over (value, index) pairs moves more bytes and is scalar on CPUs.
    V = logits_BxV.shape[-1]
    at_top_BxV = logits_BxV == top_B[:, None]
    greedy_B = jnp.min(jnp.where(at_top_BxV, jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1)
    scale_B = 1.0 / jnp.where(temperature_B > 0, jnp.maximum(temperature_B, MIN_TEMPERATURE), 1.0)
    shifted_BxV = logits_BxV - top_B[:, None]
    scaled_BxV = shifted_BxV * scale_B[:, None]

    weights_BxV = jnp.exp(scaled_BxV)
    lse_B = jnp.log(jnp.sum(weights_BxV, axis=-1))
    lse_1_B = jnp.log(jnp.sum(jnp.exp(shifted_BxV), axis=-1))
    filtered = jnp.any((temperature_B > 0) & ((top_p_B < 1) | (top_k_B > 0)))
    weights_BxV = jax.lax.cond(
        filtered, _filter, lambda w, *_: w, weights_BxV, scaled_BxV, top_p_B, top_k_B
    )

    token_B = jnp.where(temperature_B > 0, invert_cdf(weights_BxV, uniform_B), greedy_B)
    picked_B = jnp.take_along_axis(shifted_BxV, token_B[:, None], axis=-1)[:, 0]
    finite_B = jnp.isfinite(lse_1_B) & jnp.isfinite(top_B)
    return Choice(token_B, picked_B * scale_B - lse_B, picked_B - lse_1_B, finite_B)


def _filter(
    weights_BxV: jax.Array, scaled_BxV: jax.Array, top_p_B: jax.Array, top_k_B: jax.Array
) -> jax.Array:
    """Zeroes the weights outside top-k and top-p."""
    key_BxV = ordered_bits(scaled_BxV)
    V = weights_BxV.shape[-1]
    count_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V).astype(jnp.float32)
    keep_k = key_BxV >= threshold(key_BxV, jnp.ones_like(weights_BxV), count_B)[:, None]
    weights_BxV = jnp.where(keep_k | (top_k_B <= 0)[:, None], weights_BxV, 0.0)
    # At least one token: the smallest top_p times the sum is 0 in float32.
    mass_B = jnp.maximum(top_p_B * jnp.sum(weights_BxV, axis=-1), jnp.finfo(jnp.float32).tiny)
    keep_p = key_BxV >= threshold(key_BxV, weights_BxV, mass_B)[:, None]
    return jnp.where(keep_p | (top_p_B >= 1)[:, None], weights_BxV, 0.0)


def ordered_bits(x: jax.Array) -> jax.Array:
    """Returns uint32 keys in the order of the float32 values."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(0x80000000))


def threshold(key_BxV: jax.Array, weight_BxV: jax.Array, target_B: jax.Array) -> jax.Array:
    """Returns the largest uint32 t for which the weights of keys >= t reach the target."""

    def digit(i: jax.Array, low_B: jax.Array) -> jax.Array:
        shift = jnp.uint32(32 - RADIX_BITS) - jnp.uint32(RADIX_BITS) * i.astype(jnp.uint32)
        best_B = low_B
        # 15 sums in one pass over V; the sum falls as the candidate grows.
        for j in range(1, 2**RADIX_BITS):
            candidate_B = low_B + (jnp.uint32(j) << shift)
            total_B = jnp.sum(jnp.where(key_BxV >= candidate_B[:, None], weight_BxV, 0.0), axis=-1)
            best_B = jnp.where(total_B >= target_B, candidate_B, best_B)
        return best_B

    return jax.lax.fori_loop(0, 32 // RADIX_BITS, digit, jnp.zeros(key_BxV.shape[0], jnp.uint32))


def invert_cdf(weights_BxV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Returns the first index whose cumulative weight exceeds uniform * total.

    The draw is exact up to float32 rounding, and never a token of weight 0.
    """
    B, V = weights_BxV.shape
    size = next(b for b in BLOCKS if V % b == 0)
    blocks_BxNxC = weights_BxV.reshape(B, V // size, size)
    block_B, rest_B = _first_above(jnp.sum(blocks_BxNxC, axis=-1), uniform_B, None)
    inner_BxC = jnp.take_along_axis(blocks_BxNxC, block_B[:, None, None], axis=1)[:, 0]
    inside_B, _ = _first_above(inner_BxC, None, rest_B)
    return block_B * size + inside_B


def _first_above(weights_BxN: jax.Array, uniform_B: Any, target_B: Any) -> Any:
    """Returns the first index whose cumulative weight exceeds the target, and the rest inside it.

    target_B: None for uniform_B times the total.
    """
    cumulative_BxN = jnp.cumsum(weights_BxN, axis=-1)
    if target_B is None:
        target_B = uniform_B * cumulative_BxN[:, -1]
    # Sums of many blocks are not monotone: one may rise by rounding where the weight is 0.
    above_BxN = (cumulative_BxN > target_B[:, None]) & (weights_BxN > 0)
    # Rounding may push the target to the very end: fall back to the last index with any weight.
    last_B = weights_BxN.shape[-1] - 1 - jnp.argmax(weights_BxN[:, ::-1] > 0, axis=-1)
    first_B = jnp.argmax(above_BxN, axis=-1)
    index_B = jnp.where(jnp.any(above_BxN, axis=-1), first_B, last_B).astype(jnp.int32)
    before_B = jnp.take_along_axis(cumulative_BxN - weights_BxN, index_B[:, None], axis=-1)[:, 0]
    return index_B, jnp.maximum(target_B - before_B, 0.0)
