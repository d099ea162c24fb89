"""Softmax attention in plain XLA: both window kinds, logit cap, grouped heads, and parts that merge by their log-sum-exp.

Axes: B batch, L queries, S keys, N query heads, K KV heads, G query heads per KV head, H head width.

One rule decides what a query may see, by segment and by position (never by slot):

    same segment,  kv_position <= q_position,  q_position - kv_position < window

so left padding, right padding and packing are one case:

    tokens       pad pad  a   b   c  |  d   e  pad        (one row)
    segment_ids   0   0   1   1   1  |  2   2   0
    positions     0   0   0   1   2  |  0   1   0

Positions must grow by at least one from slot to slot inside a segment: then the keys that a chunk of queries can see lie in a slice known at
compile time, and no work is spent beyond the causal triangle and the window.
"""

import jax
import jax.numpy as jnp

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def attend_part(q_BxLxNxH, k_BxSxKxH, v_BxSxKxH, mask_BxLxS, cap: float | None):
    """Attention over one part of the keys. Queries come scaled.

    Returns (o_BxLxNxH float32, lse_BxLxN float32). A query that sees nothing gets a finite o and an lse near MASKED, which
    weighs nothing once merged with a part that sees something.
    """
    B, L, N, H = q_BxLxNxH.shape
    K = k_BxSxKxH.shape[2]
    q = q_BxLxNxH.reshape(B, L, K, N // K, H)
    logits_BxKxGxLxS = jnp.einsum(
        "blkgh,bskh->bkgls", q, k_BxSxKxH, preferred_element_type=jnp.float32
    )
    if cap is not None:  # before the mask: a capped mask value would let masked keys in
        logits_BxKxGxLxS = cap * jnp.tanh(logits_BxKxGxLxS / cap)
    logits_BxKxGxLxS = jnp.where(mask_BxLxS[:, None, None], logits_BxKxGxLxS, MASKED)
    top = jax.lax.stop_gradient(jnp.max(logits_BxKxGxLxS, axis=-1, keepdims=True))
    p_BxKxGxLxS = jnp.exp(logits_BxKxGxLxS - top)
    total_BxKxGxLx1 = jnp.sum(p_BxKxGxLxS, axis=-1, keepdims=True)
    p_BxKxGxLxS = (p_BxKxGxLxS / total_BxKxGxLx1).astype(v_BxSxKxH.dtype)
    o = jnp.einsum("bkgls,bskh->blkgh", p_BxKxGxLxS, v_BxSxKxH, preferred_element_type=jnp.float32)
    lse_BxKxGxL = (jnp.log(total_BxKxGxLx1) + top)[..., 0]
    return o.reshape(B, L, N, H), lse_BxKxGxL.transpose(0, 3, 1, 2).reshape(B, L, N)


def merge_parts(parts):
    """Softmax over the union of disjoint parts of the keys, from each part's (o_BxLxNxH, lse_BxLxN). Returns o_BxLxNxH."""
    top = jax.lax.stop_gradient(jnp.max(jnp.stack([lse for _, lse in parts]), axis=0))
    weights = [jnp.exp(lse - top) for _, lse in parts]
    total = sum(weights)
    return sum(o * (w / total)[..., None] for (o, _), w in zip(parts, weights, strict=True))


def visible(q_position_BxL, kv_position_BxS, window: int | None):
    """mask_BxLxS: causal by position, and inside the window where there is one."""
    distance = q_position_BxL[:, :, None] - kv_position_BxS[:, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def self_attention(
    q_BxLxNxH,
    k_BxLxKxH,
    v_BxLxKxH,
    positions_BxL,
    segment_ids_BxL,
    window: int | None,
    cap: float | None,
    chunk: int,
):
    """Causal attention inside segments, `chunk` queries at a time against only the keys that they can see.

    Returns (o_BxLxNxH float32, lse_BxLxN float32). Each chunk is rematerialised: the backward pass holds one chunk's logits, not all.
    """
    L = q_BxLxNxH.shape[1]

    def one(start: int, stop: int):
        first = 0 if window is None else max(0, start - window + 1)

        @jax.checkpoint
        def run(q, k, v, positions, segment_ids):
            mask = visible(positions[:, start:stop], positions[:, first:stop], window)
            mask &= segment_ids[:, start:stop, None] == segment_ids[:, None, first:stop]
            return attend_part(q[:, start:stop], k[:, first:stop], v[:, first:stop], mask, cap)

        return run(q_BxLxNxH, k_BxLxKxH, v_BxLxKxH, positions_BxL, segment_ids_BxL)

    return _join([one(i, min(i + chunk, L)) for i in range(0, L, chunk)])


def prefix_attention(
    q_BxLxNxH,
    k_BxSxKxH,
    v_BxSxKxH,
    q_positions_BxL,
    kv_positions_BxS,
    kv_valid_BxS,
    window,
    cap,
    chunk: int,
):
    """Attention of later queries to an earlier prefix of keys (all of which precede them), chunked over queries.

    Returns (o_BxLxNxH float32, lse_BxLxN float32), to be merged with the queries' attention to themselves.
    """
    L = q_BxLxNxH.shape[1]

    @jax.checkpoint
    def run(q, k, v, q_positions):
        mask = visible(q_positions, kv_positions_BxS, window) & kv_valid_BxS[:, None, :]
        return attend_part(q, k, v, mask, cap)

    parts = [(slice(i, i + chunk)) for i in range(0, L, chunk)]
    return _join([run(q_BxLxNxH[:, s], k_BxSxKxH, v_BxSxKxH, q_positions_BxL[:, s]) for s in parts])


def _join(chunks):
    if len(chunks) == 1:
        return chunks[0]
    return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))


def default_positions(segment_ids_BxL):
    """Position of each slot inside its own run of equal segment ids, from 0."""
    slots = jnp.arange(segment_ids_BxL.shape[1])
    starts = (
        segment_ids_BxL != jnp.pad(segment_ids_BxL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    )
    return slots - jax.lax.cummax(jnp.where(starts, slots, 0), axis=1)
