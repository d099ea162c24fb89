"""Softmax attention in plain XLA: windows, logit cap, grouped heads, merging by log-sum-exp.

Axes: B batch, L queries, S keys, N query heads, K KV heads, G query heads per KV head, H head
width.

A query attends to keys by segment and position, never by slot:

    same segment,  kv_position <= q_position,  q_position - kv_position < window

so that left padding, right padding and packing are one case:

    tokens       pad pad  a   b   c  |  d   e  pad        (one row)
    segment_ids   0   0   1   1   1  |  2   2   0
    positions     0   0   0   1   2  |  0   1   0

Positions must grow by at least one per slot inside a segment. The keys of a chunk of queries are
then in a slice known at compile time, and nothing outside the causal triangle and the window is
computed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models import cpu

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def soft_cap(logits: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap * tanh(logits / cap), or the logits without a cap."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def attend_part(
    q_BxLxNxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    mask_BxLxS: jax.Array,
    cap: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Computes attention over a subset of the keys; queries are already scaled.

    Returns:
      (o_BxLxNxH float32, lse_BxLxN float32). A query without keys gets a finite o and an lse near
      MASKED, which has no weight after merging with a subset that has keys.
    """
    B, L, N, H = q_BxLxNxH.shape
    K = k_BxSxKxH.shape[2]
    q = q_BxLxNxH.reshape(B, L, K, N // K, H)
    if on_cpu := cpu.float32_products(q, k_BxSxKxH, v_BxSxKxH):
        q_BxKxMxH = q.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
        logits_BxKxMxS = cpu.attention_logits(q_BxKxMxH, k_BxSxKxH.swapaxes(1, 2))
        logits_BxKxGxLxS = logits_BxKxMxS.reshape(B, K, N // K, L, -1)
    else:
        logits_BxKxGxLxS = jnp.einsum(
            "blkgh,bskh->bkgls", q, k_BxSxKxH, preferred_element_type=jnp.float32
        )
    # Before the mask: a capped mask value would let masked keys in.
    logits_BxKxGxLxS = soft_cap(logits_BxKxGxLxS, cap)
    logits_BxKxGxLxS = jnp.where(mask_BxLxS[:, None, None], logits_BxKxGxLxS, MASKED)
    top = jax.lax.stop_gradient(jnp.max(logits_BxKxGxLxS, axis=-1, keepdims=True))
    p_BxKxGxLxS = jnp.exp(logits_BxKxGxLxS - top)
    total_BxKxGxLx1 = jnp.sum(p_BxKxGxLxS, axis=-1, keepdims=True)
    p_BxKxGxLxS = (p_BxKxGxLxS / total_BxKxGxLx1).astype(v_BxSxKxH.dtype)
    if on_cpu:
        p_BxKxMxS = p_BxKxGxLxS.reshape(B, K, -1, p_BxKxGxLxS.shape[-1])
        o_BxKxMxH = cpu.attention_values(p_BxKxMxS, v_BxSxKxH.swapaxes(1, 2))
        o = o_BxKxMxH.reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4)
    else:
        o = jnp.einsum(
            "bkgls,bskh->blkgh", p_BxKxGxLxS, v_BxSxKxH, preferred_element_type=jnp.float32
        )
    lse_BxKxGxL = (jnp.log(total_BxKxGxLx1) + top)[..., 0]
    return o.reshape(B, L, N, H), lse_BxKxGxL.transpose(0, 3, 1, 2).reshape(B, L, N)


def merge_parts(parts: Any) -> jax.Array:
    """Merges attention over disjoint subsets of the keys, (o_BxLxNxH, lse_BxLxN) each, into o."""
    top = jax.lax.stop_gradient(jnp.max(jnp.stack([lse for _, lse in parts]), axis=0))
    weights = [jnp.exp(lse - top) for _, lse in parts]
    total = sum(weights)
    return sum(o * (w / total)[..., None] for (o, _), w in zip(parts, weights, strict=True))


def visible(q_position_BxL: jax.Array, kv_position_BxS: jax.Array, window: int | None) -> jax.Array:
    """Returns mask_BxLxS: causal by position and, with a window, inside it."""
    distance = q_position_BxL[:, :, None] - kv_position_BxS[:, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def self_attention(
    q_BxLxNxH: jax.Array,
    k_BxLxKxH: jax.Array,
    v_BxLxKxH: jax.Array,
    positions_BxL: jax.Array,
    segment_ids_BxL: jax.Array,
    window: int | None,
    cap: float | None,
    chunk: int,
    branches: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes causal attention inside segments, `chunk` queries at a time.

    Chunks are rematerialised: the backward pass holds the logits of one chunk.

    Args:
      branches: the segments from 2 on continue segment 1 and see its keys as well. Their positions
        follow on from its last one.

    Returns:
      (o_BxLxNxH float32, lse_BxLxN float32).
    """
    L = q_BxLxNxH.shape[1]

    def one(start: int, stop: int) -> Any:
        # A branch may be many slots away from the keys that are inside its window.
        first = 0 if window is None or branches else max(0, start - window + 1)

        @jax.checkpoint
        def run(
            q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, segment_ids: jax.Array
        ) -> Any:
            mask = visible(positions[:, start:stop], positions[:, first:stop], window)
            own, others = segment_ids[:, start:stop, None], segment_ids[:, None, first:stop]
            mask &= (own == others) | ((others == 1) & (own > 1)) if branches else own == others
            return attend_part(q[:, start:stop], k[:, first:stop], v[:, first:stop], mask, cap)

        return run(q_BxLxNxH, k_BxLxKxH, v_BxLxKxH, positions_BxL, segment_ids_BxL)

    return _join([one(i, min(i + chunk, L)) for i in range(0, L, chunk)])


def prefix_attention(
    q_BxLxNxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    q_positions_BxL: jax.Array,
    kv_positions_BxS: jax.Array,
    kv_valid_BxS: jax.Array,
    window: int | None,
    cap: float | None,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Computes attention of queries to a prefix of keys that precede all of them, in chunks.

    Returns:
      (o_BxLxNxH float32, lse_BxLxN float32), to merge with the queries' attention to themselves.
    """
    L = q_BxLxNxH.shape[1]

    @jax.checkpoint
    def run(q: jax.Array, k: jax.Array, v: jax.Array, q_positions: jax.Array) -> Any:
        mask = visible(q_positions, kv_positions_BxS, window) & kv_valid_BxS[:, None, :]
        return attend_part(q, k, v, mask, cap)

    parts = [(slice(i, i + chunk)) for i in range(0, L, chunk)]
    return _join([run(q_BxLxNxH[:, s], k_BxSxKxH, v_BxSxKxH, q_positions_BxL[:, s]) for s in parts])


def common_attention(
    q_BxLxNxH: jax.Array,
    k_KxZxH: jax.Array,
    v_KxZxH: jax.Array,
    visible_BxLxZ: jax.Array,
    cap: float | None,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Computes attention of a batch to one prefix that all sequences share, in chunks.

    The keys have no batch axis: the queries of all sequences form one matrix per KV head.

    Returns:
      (o_BxLxNxH float32, lse_BxLxN float32), to merge with the queries' attention to themselves.
    """
    B, L, N, H = q_BxLxNxH.shape
    K = k_KxZxH.shape[0]

    def run(q: jax.Array, visible: jax.Array) -> Any:
        q_KxBxLxGxH = jnp.moveaxis(q.reshape(B, -1, K, N // K, H), 2, 0)
        logits_KxBxLxGxZ = jnp.einsum(
            "kblgh,kzh->kblgz", q_KxBxLxGxH, k_KxZxH, preferred_element_type=jnp.float32
        )
        logits_KxBxLxGxZ = soft_cap(logits_KxBxLxGxZ, cap)
        logits_KxBxLxGxZ = jnp.where(visible[None, :, :, None], logits_KxBxLxGxZ, MASKED)
        top = jnp.max(logits_KxBxLxGxZ, axis=-1, keepdims=True)
        p_KxBxLxGxZ = jnp.exp(logits_KxBxLxGxZ - top)
        total = jnp.sum(p_KxBxLxGxZ, axis=-1, keepdims=True)
        p_KxBxLxGxZ = (p_KxBxLxGxZ / total).astype(v_KxZxH.dtype)
        o_KxBxLxGxH = jnp.einsum(
            "kblgz,kzh->kblgh", p_KxBxLxGxZ, v_KxZxH, preferred_element_type=jnp.float32
        )
        o, lse = (jnp.moveaxis(a, 0, 2) for a in (o_KxBxLxGxH, jnp.log(total) + top))
        return o.reshape(B, -1, N, H), lse.reshape(B, -1, N)

    parts = [slice(i, i + chunk) for i in range(0, L, chunk)]
    return _join([run(q_BxLxNxH[:, s], visible_BxLxZ[:, s]) for s in parts])


def _join(chunks: Any) -> Any:
    if len(chunks) == 1:
        return chunks[0]
    return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))


def default_positions(segment_ids_BxL: jax.Array) -> jax.Array:
    """Returns the position of each slot inside its run of equal segment ids, from 0."""
    slots = jnp.arange(segment_ids_BxL.shape[1])
    starts = (
        segment_ids_BxL != jnp.pad(segment_ids_BxL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    )
    return slots - jax.lax.cummax(jnp.where(starts, slots, 0), axis=1)
