"""The sampler's device programs after the prefill: insertion, admission and decode segments.

Axes as in `cache.py`; G query heads per KV head, C steps of a segment, B = P * R rows of a decode
step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models import Transformer
from grm_jax.models.attend import LayerRef
from grm_jax.models.quantize import hadamard, quantize_tokens
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
    N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    G = N // K
    fed_PxR = state.length_PxR  # own tokens that a row attends to, the one being fed included
    position_PxR = state.prompt_length_P[:, None] + fed_PxR - 1
    S = max(k.shape[3] for k, _ in state.prefix)
    Z = max((k.shape[2] for k, _ in state.common), default=0)
    # of the prompt's tokens after the common prefix
    own_length_P = state.prompt_length_P - state.common_length_P if Z else state.prompt_length_P
    prompts, rows = batch_axes(P, R)

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, suffix: Pairs) -> Any:
        place, unit = cache_of(cfg, layer)
        window = layer.spec.window
        if cfg.kv_cache_dtype:
            q, k = hadamard(q), hadamard(k)
        # --- write the token into the ring
        ring_k, ring_v = suffix[place]
        T = ring_k.shape[4]
        start = (unit, 0, 0, 0, state.clock % T, 0)

        def write(ring: KV, new: jax.Array) -> KV:
            new = new.reshape(P, R, K, 1, H).swapaxes(1, 2)[None]
            ring = jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice(a, b.astype(a.dtype), start[: a.ndim]),
                ring,
                quantize_tokens(new) if cfg.kv_cache_dtype else new,
            )
            return keep_ring_layout(ring, P, R)

        ring_k, ring_v = write(ring_k, k), write(ring_v, v)
        suffix = [*suffix[:place], (ring_k, ring_v), *suffix[place + 1 :]]
        own_k, own_v, pre_k, pre_v = of_unit((ring_k, ring_v, *state.prefix[place]), unit)
        # --- masks: ages below the row's own count, prompt slots inside the window
        age_T = (state.clock - jnp.arange(T)) % T
        own_PxRxT = age_T < (
            fed_PxR[..., None] if window is None else jnp.minimum(fed_PxR, window)[..., None]
        )
        slot_S = jnp.arange(S - pre_k.shape[2], S)
        pre_position_PxS = slot_S - (S - own_length_P[:, None])
        pre_PxRxS = jnp.broadcast_to((pre_position_PxS >= 0)[:, None], (P, R, slot_S.size))
        if state.common:
            pre_position_PxS += state.common_length_P[:, None]
        if window is not None:
            pre_PxRxS &= position_PxR[..., None] - pre_position_PxS[:, None] < window
        # --- one softmax over ring, prefix and common prefix
        q_PxKxRxGxH = q.reshape(P, R, K, G, H).swapaxes(1, 2)
        own = products.ring_logits(q_PxKxRxGxH, own_k)
        own = products.cap_and_mask(own, own_PxRxT, cfg.attn_cap)
        pre = products.prefix_logits(q_PxKxRxGxH, pre_k)
        pre = products.cap_and_mask(pre, pre_PxRxS, cfg.attn_cap)
        top = jnp.maximum(
            jnp.max(own, axis=-1, keepdims=True), jnp.max(pre, axis=-1, keepdims=True)
        )
        if state.common:
            common_k, common_v = of_unit(state.common[place], unit)
            seen = sees_common(position_PxR, state.common_length_P, Z, common_k.shape[1], window)
            shared = products.common_logits(q_PxKxRxGxH, common_k, seen, cfg.attn_cap)
            top = jnp.maximum(top, jnp.max(shared, axis=-1, keepdims=True).swapaxes(0, 1))
        own, pre = jnp.exp(own - top), jnp.exp(pre - top)
        total_PxKxRxG = jnp.sum(own, axis=-1) + jnp.sum(pre, axis=-1)
        o_PxKxRxGxH = products.ring_values(own, own_v, q.dtype)
        o_PxKxRxGxH += products.prefix_values(pre, pre_v, q.dtype)
        if state.common:
            shared = jnp.exp(shared - top.swapaxes(0, 1))
            total_PxKxRxG += jnp.sum(shared, axis=-1).swapaxes(0, 1)
            o_PxKxRxGxH += products.common_values(shared, common_v, q.dtype)
        o_PxRxKxGxH = (o_PxKxRxGxH / total_PxKxRxG[..., None]).swapaxes(1, 2)
        o_PxRxKxGxH = constrain(o_PxRxKxGxH, prompts, rows, "kv_heads", None, "head_dim")
        return o_PxRxKxGxH.reshape(P * R, 1, N, H), suffix, None

    x_Bx1xD = model.embedder.encode(state.token_PxR.reshape(-1, 1))
    x_Bx1xD, suffix, _ = model.trunk(x_Bx1xD, position_PxR.reshape(-1, 1), attend, state.suffix)
    return model.embedder.decode(model.final_norm(x_Bx1xD)[:, 0]), suffix


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
