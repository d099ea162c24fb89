"""The sampler's device programs after the prefill: insertion, admission and decode segments.

Axes as in `cache.py`; G query heads per KV head, C steps of a segment, B = P * R rows of a decode
step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models import Transformer
from grm_jax.models.attend import LayerRef
from grm_jax.models.quantize import Int8Array, hadamard, quantize_tokens
from grm_jax.sampling import products
from grm_jax.sampling.cache import (
    EMPTY,
    LENGTH,
    NONFINITE,
    RUNNING,
    STOP,
    Emitted,
    Pairs,
    State,
    batch_axes,
    cache_of,
    constrain_state,
    extend_prefix,
    keep_ring_layout,
    of_unit,
    sees_common,
)
from grm_jax.sampling.choose import Choice, choose
from grm_jax.sampling.products import KV
from grm_jax.sharding import constrain


def insert(
    state: State,
    prefix: Pairs,
    last_BxD: jax.Array,
    slots_B: jax.Array,
    per_prompt: dict[str, jax.Array],
) -> State:
    """Puts prefilled prompts into prompt slots and empties the slots' rows.

    prefix: of prompts in the state's bucket or a shorter one; those are left-padded.
    per_prompt: new values of the state's `_P` and `_PxE` fields, (B,) or (B, E).
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[:, slots_B].set(extend_prefix(new, old.shape[3]))

    return constrain_state(
        dataclasses.replace(
            state,
            prefix=jax.tree.map(put, state.prefix, prefix),
            last_PxD=state.last_PxD.at[slots_B].set(last_BxD),
            finish_PxR=state.finish_PxR.at[slots_B].set(EMPTY),
            **{
                name: getattr(state, name).at[slots_B].set(value)
                for name, value in per_prompt.items()
            },
        )
    )


def admit(
    model: Transformer, state: State, new_PxR: jax.Array, sample_PxR: jax.Array
) -> tuple[State, Emitted]:
    """Starts rows: draws each new row's first token from its prompt's last activation."""
    logits_PxV = model.embedder.decode(state.last_PxD)
    P, R = new_PxR.shape
    logits_BxV = jnp.repeat(logits_PxV, R, axis=0)
    state = dataclasses.replace(
        state,
        sample_PxR=jnp.where(new_PxR, sample_PxR, state.sample_PxR),
        length_PxR=jnp.where(new_PxR, 0, state.length_PxR),
        finish_PxR=jnp.where(new_PxR, RUNNING, state.finish_PxR),
    )
    choice = _draw(state, logits_BxV)
    state = _advance(state, choice, new_PxR)
    token, logprob, logprob_1 = (a.reshape(1, P, R) for a in choice[:3])
    return state, Emitted(token, logprob, logprob_1, jnp.int32(1))


def decode_segment(
    model: Transformer, state: State, steps: jax.Array, min_running: jax.Array, capacity: int
) -> tuple[State, Emitted]:
    """Decodes until `steps` steps are done or fewer than `min_running` rows are running.

    steps (at most `capacity`) and min_running (at least 1) may be traced.
    """
    P, R = state.token_PxR.shape
    shape = (capacity, P, R)
    emitted = Emitted(
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.int32(0),
    )

    def unfinished(carry: tuple[State, Emitted]) -> jax.Array:
        state, emitted = carry
        return (emitted.steps < steps) & (jnp.sum(state.finish_PxR == RUNNING) >= min_running)

    def step(carry: tuple[State, Emitted]) -> tuple[State, Emitted]:
        state, emitted = carry
        logits_BxV, suffix = _feed(model, state)
        state = dataclasses.replace(state, suffix=suffix, clock=state.clock + 1)
        choice = _draw(state, logits_BxV)
        state = _advance(state, choice, state.finish_PxR == RUNNING)

        def put(buffer: jax.Array, value: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(
                buffer, value.reshape(P, R), emitted.steps, 0
            )

        return state, Emitted(
            put(emitted.token_CxPxR, choice.token),
            put(emitted.logprob_CxPxR, choice.logprob),
            put(emitted.logprob_1_CxPxR, choice.logprob_1),
            emitted.steps + 1,
        )

    return jax.lax.while_loop(unfinished, step, (state, emitted))


def _feed(model: Transformer, state: State) -> tuple[jax.Array, Pairs]:
    """Runs one token of every row through the layers.

    Returns:
      (logits_BxV, suffix): the suffix includes the token's keys and values.
    """
    cfg = model.cfg
    P, R = state.token_PxR.shape
    K, H = cfg.num_kv_heads, cfg.head_dim

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, suffix: Pairs) -> Any:
        place, unit = cache_of(cfg, layer)
        if cfg.kv_cache_dtype:
            q, k = hadamard(q), hadamard(k)
        ring_k, ring_v = suffix[place]
        ring = _write(state, ring_k, k, unit), _write(state, ring_v, v, unit)
        suffix = [*suffix[:place], ring, *suffix[place + 1 :]]
        caches = of_unit((*ring, *state.prefix[place]), unit)
        if state.common:
            caches = (*caches, *of_unit(state.common[place], unit))
        q_PxKxRxGxH = q.reshape(P, R, K, -1, H).swapaxes(1, 2)
        o_PxRxKxGxH = _attend_caches(state, q_PxKxRxGxH, caches, layer.spec.window, cfg.attn_cap)
        return o_PxRxKxGxH.reshape(P * R, 1, -1, H), suffix, None

    x_Bx1xD = model.embedder.encode(state.token_PxR.reshape(-1, 1))
    position_PxR = _positions(state)
    x_Bx1xD, suffix, _ = model.trunk(x_Bx1xD, position_PxR.reshape(-1, 1), attend, state.suffix)
    return model.embedder.decode(model.final_norm(x_Bx1xD)[:, 0]), suffix


def _positions(state: State) -> jax.Array:
    """Returns the position of the token that each row feeds; `length_PxR` includes it."""
    return state.prompt_length_P[:, None] + state.length_PxR - 1


def _write(state: State, ring: KV, new_Bx1xKxH: jax.Array, unit: jax.Array) -> KV:
    """Writes the fed token's keys or values into a ring, at the slot of the clock."""
    (P, R), (T, H) = state.token_PxR.shape, ring.shape[4:]
    new = new_Bx1xKxH.reshape(P, R, -1, 1, H).swapaxes(1, 2)[None]
    start = (unit, 0, 0, 0, state.clock % T, 0)
    ring = jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice(a, b.astype(a.dtype), start[: a.ndim]),
        ring,
        quantize_tokens(new) if isinstance(ring, Int8Array) else new,
    )
    return keep_ring_layout(ring, P, R)


def _attend_caches(
    state: State,
    q_PxKxRxGxH: jax.Array,
    caches: Sequence[KV],
    window: int | None,
    cap: float | None,
) -> jax.Array:
    """Computes attention (P, R, K, G, H) in one softmax over ring, prefix and common prefix.

    caches: keys and values of the ring, the prefix, and the common prefix if there is one.
    """
    ring_k, ring_v, prefix_k, prefix_v, *common = caches
    ring_PxRxT, prefix_PxRxS = _visible(state, ring_k.shape[3], prefix_k.shape[2], window)
    ring = products.cap_and_mask(products.ring_logits(q_PxKxRxGxH, ring_k), ring_PxRxT, cap)
    prefix = products.prefix_logits(q_PxKxRxGxH, prefix_k)
    prefix = products.cap_and_mask(prefix, prefix_PxRxS, cap)
    top = jnp.maximum(*(jnp.max(logits, axis=-1, keepdims=True) for logits in (ring, prefix)))
    if common:
        common_k, common_v = common
        Z = max(k.shape[2] for k, _ in state.common)
        args = state.common_length_P, Z, common_k.shape[1], window
        seen_PxRxZ = sees_common(_positions(state), *args)
        shared = products.common_logits(q_PxKxRxGxH, common_k, seen_PxRxZ, cap)
        top = jnp.maximum(top, jnp.max(shared, axis=-1, keepdims=True).swapaxes(0, 1))
    ring, prefix = jnp.exp(ring - top), jnp.exp(prefix - top)
    total_PxKxRxG = jnp.sum(ring, axis=-1) + jnp.sum(prefix, axis=-1)
    o_PxKxRxGxH = products.ring_values(ring, ring_v, q_PxKxRxGxH.dtype)
    o_PxKxRxGxH += products.prefix_values(prefix, prefix_v, q_PxKxRxGxH.dtype)
    if common:
        shared = jnp.exp(shared - top.swapaxes(0, 1))
        total_PxKxRxG += jnp.sum(shared, axis=-1).swapaxes(0, 1)
        o_PxKxRxGxH += products.common_values(shared, common_v, q_PxKxRxGxH.dtype)
    o_PxRxKxGxH = (o_PxKxRxGxH / total_PxKxRxG[..., None]).swapaxes(1, 2)
    prompts, rows = batch_axes(*state.token_PxR.shape)
    return constrain(o_PxRxKxGxH, prompts, rows, "kv_heads", None, "head_dim")


def _visible(state: State, T: int, slots: int, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Returns the slots (P, R, T) of the rings and (P, R, slots) of the prefix that rows see.

    slots: of this layer's prefix, the last ones of the prompts' S.
    """
    P, R = state.token_PxR.shape
    S = max(k.shape[3] for k, _ in state.prefix)
    fed_PxR = state.length_PxR  # own tokens that a row attends to, the one being fed included
    age_T = (state.clock - jnp.arange(T)) % T
    most_PxR = fed_PxR if window is None else jnp.minimum(fed_PxR, window)
    ring_PxRxT = age_T < most_PxR[..., None]
    common_P = state.common_length_P if state.common else jnp.zeros_like(state.prompt_length_P)
    slot_S = jnp.arange(S - slots, S)
    own_PxS = slot_S - (S - (state.prompt_length_P - common_P)[:, None])  # 0 at the first own token
    prefix_PxRxS = jnp.broadcast_to((own_PxS >= 0)[:, None], (P, R, slots))
    if window is not None:
        position_PxS = own_PxS + common_P[:, None]
        prefix_PxRxS &= _positions(state)[..., None] - position_PxS[:, None] < window
    return ring_PxRxT, prefix_PxRxS


def _draw(state: State, logits_BxV: jax.Array) -> Choice:
    """Draws every row's next token, with a key from its seed, item, sample index and length."""
    R = state.token_PxR.shape[1]

    def uniform(
        seed: jax.Array, item: jax.Array, sample: jax.Array, length: jax.Array
    ) -> jax.Array:
        key = jax.random.key(seed)
        for data in (item, sample, length):
            key = jax.random.fold_in(key, data)
        return jax.random.uniform(key)

    def per_row(a_P: jax.Array) -> jax.Array:
        return jnp.repeat(a_P, R)

    uniform_B = jax.vmap(uniform)(
        per_row(state.seed_P),
        per_row(state.item_P),
        state.sample_PxR.reshape(-1),
        state.length_PxR.reshape(-1),
    )
    settings = (state.temperature_P, state.top_p_P, state.top_k_P)
    return choose(logits_BxV, uniform_B, *map(per_row, settings))


def _advance(state: State, choice: Choice, live_PxR: jax.Array) -> State:
    """Records the chosen tokens; ends rows at a stop token, their limit, or non-finite logits."""
    token_PxR = choice.token.reshape(live_PxR.shape)
    length_PxR = state.length_PxR + live_PxR
    stopped = jnp.any(token_PxR[..., None] == state.stop_PxE[:, None], axis=-1)
    finish_PxR = jnp.where(length_PxR >= state.limit_P[:, None], LENGTH, RUNNING)
    finish_PxR = jnp.where(stopped, STOP, finish_PxR)
    finish_PxR = jnp.where(choice.finite.reshape(live_PxR.shape), finish_PxR, NONFINITE)
    return dataclasses.replace(
        state,
        token_PxR=jnp.where(live_PxR, token_PxR, state.token_PxR),
        length_PxR=length_PxR,
        finish_PxR=jnp.where(live_PxR, finish_PxR, state.finish_PxR),
    )
