"""Chooses the next token: temperature, top-k and top-p, all traced, without sorting the vocabulary.

Axes: R rows, V vocabulary. Everything is a reduction over V, so that a sharded vocabulary stays
sharded.

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
    """The chosen tokens, int32 (R,), and their natural log-probabilities before top-k and top-p.

    logprob: float32 (R,), under the sampling temperature (under 1 for greedy rows).
    logprob_1: float32 (R,), under temperature 1.
    finite: bool (R,), False where the row's logits hold a NaN, +inf, or no finite number.
    """

    token: jax.Array
    logprob: jax.Array
    logprob_1: jax.Array
    finite: jax.Array


def choose(
    logits_RxV: jax.Array,
    uniform_R: jax.Array,
    temperature_R: jax.Array,
    top_p_R: jax.Array,
    top_k_R: jax.Array,
) -> Choice:
    """Chooses one token per row from float32 logits.

    Tokens that tie with the last survivor of a filter survive as well. With both filters, top_p is
    a share of the probability that top_k left.

    Args:
      uniform_R: random numbers in [0, 1).
      temperature_R: 0 is greedy.
      top_p_R: 1 or more disables the filter.
      top_k_R: 0 or less disables the filter.
    """
    top_R = jnp.max(logits_RxV, axis=-1)
    # Not argmax: its reduction over (value, index) pairs moves more bytes and is scalar on CPUs.
    V = logits_RxV.shape[-1]
    at_top_RxV = logits_RxV == top_R[:, None]
    greedy_R = jnp.min(jnp.where(at_top_RxV, jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1)
    scale_R = 1.0 / jnp.where(temperature_R > 0, jnp.maximum(temperature_R, MIN_TEMPERATURE), 1.0)
    shifted_RxV = logits_RxV - top_R[:, None]
    scaled_RxV = shifted_RxV * scale_R[:, None]

    weights_RxV = jnp.exp(scaled_RxV)
    lse_R = jnp.log(jnp.sum(weights_RxV, axis=-1))
    lse_1_R = jnp.log(jnp.sum(jnp.exp(shifted_RxV), axis=-1))
    filtered = jnp.any((temperature_R > 0) & ((top_p_R < 1) | (top_k_R > 0)))
    weights_RxV = jax.lax.cond(
        filtered, _filter, lambda w, *_: w, weights_RxV, scaled_RxV, top_p_R, top_k_R
    )

    token_R = jnp.where(temperature_R > 0, invert_cdf(weights_RxV, uniform_R), greedy_R)
    picked_R = jnp.take_along_axis(shifted_RxV, token_R[:, None], axis=-1)[:, 0]
    finite_R = jnp.isfinite(lse_1_R) & jnp.isfinite(top_R)
    return Choice(token_R, picked_R * scale_R - lse_R, picked_R - lse_1_R, finite_R)


def _filter(
    weights_RxV: jax.Array, scaled_RxV: jax.Array, top_p_R: jax.Array, top_k_R: jax.Array
) -> jax.Array:
    """Zeroes the weights outside top-k and top-p."""
    key_RxV = ordered_bits(scaled_RxV)
    V = weights_RxV.shape[-1]
    count_R = jnp.where(top_k_R > 0, jnp.minimum(top_k_R, V), V).astype(jnp.float32)
    keep_k = key_RxV >= threshold(key_RxV, jnp.ones_like(weights_RxV), count_R)[:, None]
    weights_RxV = jnp.where(keep_k | (top_k_R <= 0)[:, None], weights_RxV, 0.0)
    # At least one token: the smallest top_p times the sum is 0 in float32.
    mass_R = jnp.maximum(top_p_R * jnp.sum(weights_RxV, axis=-1), jnp.finfo(jnp.float32).tiny)
    keep_p = key_RxV >= threshold(key_RxV, weights_RxV, mass_R)[:, None]
    return jnp.where(keep_p | (top_p_R >= 1)[:, None], weights_RxV, 0.0)


def ordered_bits(x: jax.Array) -> jax.Array:
    """Returns uint32 keys in the order of the float32 values."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(0x80000000))


def threshold(key_RxV: jax.Array, weight_RxV: jax.Array, target_R: jax.Array) -> jax.Array:
    """Returns the largest uint32 t for which the weights of keys >= t reach the target."""

    def digit(i: jax.Array, low_R: jax.Array) -> jax.Array:
        shift = jnp.uint32(32 - RADIX_BITS) - jnp.uint32(RADIX_BITS) * i.astype(jnp.uint32)
        best_R = low_R
        # 15 sums in one pass over V; the sum falls as the candidate grows.
        for j in range(1, 2**RADIX_BITS):
            candidate_R = low_R + (jnp.uint32(j) << shift)
            total_R = jnp.sum(jnp.where(key_RxV >= candidate_R[:, None], weight_RxV, 0.0), axis=-1)
            best_R = jnp.where(total_R >= target_R, candidate_R, best_R)
        return best_R

    return jax.lax.fori_loop(0, 32 // RADIX_BITS, digit, jnp.zeros(key_RxV.shape[0], jnp.uint32))


def invert_cdf(weights_RxV: jax.Array, uniform_R: jax.Array) -> jax.Array:
    """Returns the first index whose cumulative weight exceeds uniform * total.

    The draw is exact up to float32 rounding, and never a token of weight 0.
    """
    R, V = weights_RxV.shape
    size = next(b for b in BLOCKS if V % b == 0)
    blocks_RxNxC = weights_RxV.reshape(R, V // size, size)
    block_R, rest_R = _first_above(jnp.sum(blocks_RxNxC, axis=-1), uniform_R, None)
    inner_RxC = jnp.take_along_axis(blocks_RxNxC, block_R[:, None, None], axis=1)[:, 0]
    inside_R, _ = _first_above(inner_RxC, None, rest_R)
    return block_R * size + inside_R


def _first_above(weights_RxN: jax.Array, uniform_R: Any, target_R: Any) -> Any:
    """Returns the first index whose cumulative weight exceeds the target, and the rest inside it.

    target_R: None for uniform_R times the total.
    """
    cumulative_RxN = jnp.cumsum(weights_RxN, axis=-1)
    if target_R is None:
        target_R = uniform_R * cumulative_RxN[:, -1]
    # Sums of many blocks are not monotone: one may rise by rounding where the weight is 0.
    above_RxN = (cumulative_RxN > target_R[:, None]) & (weights_RxN > 0)
    # Rounding may push the target to the very end: fall back to the last index with any weight.
    last_R = weights_RxN.shape[-1] - 1 - jnp.argmax(weights_RxN[:, ::-1] > 0, axis=-1)
    first_R = jnp.argmax(above_RxN, axis=-1)
    index_R = jnp.where(jnp.any(above_RxN, axis=-1), first_R, last_R).astype(jnp.int32)
    before_R = jnp.take_along_axis(cumulative_RxN - weights_RxN, index_R[:, None], axis=-1)[:, 0]
    return index_R, jnp.maximum(target_R - before_R, 0.0)
