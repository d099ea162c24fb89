"""Choosing the next token: temperature, top-k and top-p, all traced, without sorting the vocabulary.

Axes: R rows, V vocabulary. Everything is a reduction over V, so a vocabulary split over the mesh stays split.

A filter is a threshold on the logits. The largest threshold whose survivors still reach a target (k of them, or a share of the probability) is
found exactly by a radix search over the bits of the floats: 8 passes of 16-way comparisons instead of a sort. The draw itself inverts the
cumulative distribution with one uniform number per row, block sums first and then inside one block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

RADIX_BITS = 4
COLDEST = 1e-30  # below it the inverse of a temperature is no float32


class Choice(NamedTuple):
    """token int32 (R,); natural log-probs float32 (R,) of the token, before any top-k or top-p filter; finite bool (R,)."""

    token: jax.Array
    logp: jax.Array  # under the sampling temperature (under 1 for greedy rows)
    logp_1: jax.Array  # under temperature 1
    finite: jax.Array  # False where the row's logits hold a NaN or only infinities


def choose(logits_RxV, uniform_R, temperature_R, top_p_R, top_k_R) -> Choice:
    """One token per row from float32 logits.

    uniform_R: in [0, 1). temperature 0 is greedy. top_p >= 1 and top_k <= 0 leave the distribution whole. Tokens that tie with the last
    survivor of a filter survive as well. With both filters, top_p is a share of what top_k left.
    """
    top_R = jnp.max(logits_RxV, axis=-1)
    # Not argmax: its reduction over pairs is a scalar loop on a CPU.
    V = logits_RxV.shape[-1]
    greedy_R = jnp.min(
        jnp.where(logits_RxV == top_R[:, None], jnp.arange(V, dtype=jnp.int32), V - 1), axis=-1
    )
    scale_R = 1.0 / jnp.where(temperature_R > 0, jnp.maximum(temperature_R, COLDEST), 1.0)
    shifted_RxV = logits_RxV - top_R[:, None]
    scaled_RxV = shifted_RxV * scale_R[:, None]

    weights_RxV = jnp.exp(scaled_RxV)
    lse_R = jnp.log(jnp.sum(weights_RxV, axis=-1))
    lse_1_R = jnp.log(jnp.sum(jnp.exp(shifted_RxV), axis=-1))
    filters = jnp.any((temperature_R > 0) & ((top_p_R < 1) | (top_k_R > 0)))
    weights_RxV = jax.lax.cond(
        filters, _filter, lambda w, *_: w, weights_RxV, scaled_RxV, top_p_R, top_k_R
    )

    token_R = jnp.where(temperature_R > 0, invert_cdf(weights_RxV, uniform_R), greedy_R)
    picked_R = jnp.take_along_axis(shifted_RxV, token_R[:, None], axis=-1)[:, 0]
    finite_R = jnp.isfinite(lse_1_R) & jnp.isfinite(top_R)
    return Choice(token_R, picked_R * scale_R - lse_R, picked_R - lse_1_R, finite_R)


def _filter(weights_RxV, scaled_RxV, top_p_R, top_k_R):
    """Zeroes the weights that top-k and top-p leave out."""
    key_RxV = ordered_bits(scaled_RxV)
    V = weights_RxV.shape[-1]
    count_R = jnp.where(top_k_R > 0, jnp.minimum(top_k_R, V), V).astype(jnp.float32)
    keep_k = key_RxV >= threshold(key_RxV, jnp.ones_like(weights_RxV), count_R)[:, None]
    weights_RxV = jnp.where(keep_k | (top_k_R <= 0)[:, None], weights_RxV, 0.0)
    mass_R = top_p_R * jnp.sum(weights_RxV, axis=-1)
    keep_p = key_RxV >= threshold(key_RxV, weights_RxV, mass_R)[:, None]
    return jnp.where(keep_p | (top_p_R >= 1)[:, None], weights_RxV, 0.0)


def ordered_bits(x):
    """uint32 keys in the same order as the float32 values."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(0x80000000))


def threshold(key_RxV, weight_RxV, target_R):
    """The largest uint32 key t, per row, for which the weights of {key >= t} sum to at least the target."""

    def digit(i, low_R):
        shift = jnp.uint32(32 - RADIX_BITS) - jnp.uint32(RADIX_BITS) * i.astype(jnp.uint32)
        found_R = low_R
        for j in range(
            1, 2**RADIX_BITS
        ):  # 15 sums in one pass over V; the sum falls as the candidate grows
            candidate_R = low_R + (jnp.uint32(j) << shift)
            total_R = jnp.sum(jnp.where(key_RxV >= candidate_R[:, None], weight_RxV, 0.0), axis=-1)
            found_R = jnp.where(total_R >= target_R, candidate_R, found_R)
        return found_R

    return jax.lax.fori_loop(0, 32 // RADIX_BITS, digit, jnp.zeros(key_RxV.shape[0], jnp.uint32))


def invert_cdf(weights_RxV, uniform_R):
    """The first index whose cumulative weight exceeds uniform * total: an exact draw up to float32 rounding, never a token of weight 0."""
    R, V = weights_RxV.shape
    block = next(b for b in (256, 128, 64, 32, 16, 8, 4, 2, 1) if V % b == 0)
    blocks_RxNxC = weights_RxV.reshape(R, V // block, block)
    at, rest_R = _first_above(jnp.sum(blocks_RxNxC, axis=-1), uniform_R, None)
    inner_RxC = jnp.take_along_axis(blocks_RxNxC, at[:, None, None], axis=1)[:, 0]
    inside, _ = _first_above(inner_RxC, None, rest_R)
    return at * block + inside


def _first_above(weights_RxN, uniform_R, target_R):
    """Index of the first cumulative weight above the target (uniform x total), and what the target has left inside it."""
    cumulative_RxN = jnp.cumsum(weights_RxN, axis=-1)
    if target_R is None:
        target_R = uniform_R * cumulative_RxN[:, -1]
    index_R = jnp.sum(cumulative_RxN <= target_R[:, None], axis=-1)
    # Rounding may push the target to the very end: fall back to the last index that has any weight.
    last_R = weights_RxN.shape[-1] - 1 - jnp.argmax(weights_RxN[:, ::-1] > 0, axis=-1)
    index_R = jnp.minimum(index_R, last_R).astype(jnp.int32)
    before_R = jnp.take_along_axis(cumulative_RxN - weights_RxN, index_R[:, None], axis=-1)[:, 0]
    return index_R, jnp.maximum(target_R - before_R, 0.0)
