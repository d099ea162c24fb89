"""Prefill, admission of rows, and decode segments: the three programs of the sampler.

Axes as in `cache.py`; G query heads per KV head, C steps of a segment, B = P * R rows in the trunk.
"""

import dataclasses

import jax
import jax.numpy as jnp

from grm_jax.models import cpu
from grm_jax.models.attention import MASKED, self_attention
from grm_jax.models.transformer import Transformer
from grm_jax.sampling.cache import (
    EMPTY,
    LENGTH,
    NONFINITE,
    RUNNING,
    STOP,
    Emitted,
    State,
    batch_axes,
    constrain_state,
    prefix_length,
)  # fmt: skip
from grm_jax.sampling.choose import Choice, choose
from grm_jax.sharding import constrain


def prefill(model: Transformer, tokens_BxS, lengths_B):
    """Runs left-padded prompts once.

    Returns (prefix, last_BxD): a (k, v) of (U, B, K, S, H) per place and tail layer, local layers cut to what their window can still see, and
    the final-normed activation of each prompt's last token.
    """
    cfg = model.cfg
    B, S = tokens_BxS.shape
    slots_S = jnp.arange(S)
    pad_B = S - lengths_B
    segments_BxS = (slots_S >= pad_B[:, None]).astype(jnp.int32)
    positions_BxS = jnp.maximum(slots_S - pad_B[:, None], 0)

    def attend(layer, q, k, v, state):
        if cfg.attention == "splash":
            from grm_jax.models.splash import splash_attention

            o = splash_attention(q, k, v, segments_BxS, layer.spec.window, cfg.attn_cap)
        else:
            o, _ = self_attention(
                q,
                k,
                v,
                positions_BxS,
                segments_BxS,
                layer.spec.window,
                cfg.attn_cap,
                cfg.query_chunk,
            )
        keep = prefix_length(S, layer.spec.window)
        return o, state, tuple(a[:, S - keep :].swapaxes(1, 2) for a in (k, v))

    x, _, (units, tail) = model.trunk(model.embedder.encode(tokens_BxS), positions_BxS, attend)
    prefix = list(units) + [tuple(a[None] for a in kv) for kv in tail]
    prompts, _ = batch_axes(B, 1)
    prefix = [
        tuple(constrain(a, "layers", prompts, "kv_heads", "cache_length", "head_dim") for a in kv)
        for kv in prefix
    ]
    return prefix, model.final_norm(x[:, -1:])[:, 0]


def insert(state: State, prefix, last_BxD, slots_B, per_prompt: dict[str, jax.Array]) -> State:
    """Puts prefilled prompts into prompt slots; their old rows are gone. per_prompt: new values of the `_P` fields, (B,) or (B, E)."""

    def put(old, new):
        return old.at[:, slots_B].set(new)

    return constrain_state(
        dataclasses.replace(
            state,
            prefix=[
                (put(k, nk), put(v, nv))
                for (k, v), (nk, nv) in zip(state.prefix, prefix, strict=True)
            ],
            last_PxD=state.last_PxD.at[slots_B].set(last_BxD),
            finish_PxR=state.finish_PxR.at[slots_B].set(EMPTY),
            **{
                name: getattr(state, name).at[slots_B].set(value)
                for name, value in per_prompt.items()
            },
        )
    )


def admit(model: Transformer, state: State, new_PxR, sample_PxR) -> tuple[State, Emitted]:
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
    shape = (1, P, R)
    return state, Emitted(
        choice.token.reshape(shape),
        choice.logp.reshape(shape),
        choice.logp_1.reshape(shape),
        jnp.int32(1),
    )


def decode_segment(
    model: Transformer, state: State, steps, fewest, capacity: int
) -> tuple[State, Emitted]:
    """Decode steps until `steps` (at most `capacity`) are made or fewer than `fewest` (at least 1) rows still run; both traced."""
    P, R = state.token_PxR.shape
    shape = (capacity, P, R)
    emitted = Emitted(
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.int32(0),
    )

    def more(carry):
        state, emitted = carry
        return (emitted.steps < steps) & (jnp.sum(state.finish_PxR == RUNNING) >= fewest)

    def step(carry):
        state, emitted = carry
        logits_BxV, suffix = _feed(model, state)
        state = dataclasses.replace(state, suffix=suffix, clock=state.clock + 1)
        choice = _draw(state, logits_BxV)
        state = _advance(state, choice, state.finish_PxR == RUNNING)

        def put(buffer, value):
            return jax.lax.dynamic_update_index_in_dim(
                buffer, value.reshape(P, R), emitted.steps, 0
            )

        return state, Emitted(
            put(emitted.token_CxPxR, choice.token),
            put(emitted.logp_CxPxR, choice.logp),
            put(emitted.logp_1_CxPxR, choice.logp_1),
            emitted.steps + 1,
        )

    return jax.lax.while_loop(more, step, (state, emitted))


def _feed(model: Transformer, state: State):
    """One token of every row through the layers. Returns (logits_BxV, suffix with the token's keys and values)."""
    cfg = model.cfg
    P, R = state.token_PxR.shape
    N, K, H = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    G = N // K
    fed_PxR = state.length_PxR  # tokens that each row sees of its own, the one being fed included
    position_PxR = state.prompt_length_P[:, None] + fed_PxR - 1
    S = max(k.shape[3] for k, _ in state.prefix)
    prompts, rows = batch_axes(P, R)

    def attend(layer, q, k, v, suffix):
        place = layer.place if layer.unit is not None else len(cfg.pattern) + layer.place
        unit = 0 if layer.unit is None else layer.unit
        window = layer.spec.window
        # --- write the token into the ring
        ring_k, ring_v = suffix[place]
        T = ring_k.shape[4]
        at = (unit, 0, 0, 0, state.clock % T, 0)

        def write(ring, new):
            new = new.reshape(P, R, K, 1, H).swapaxes(1, 2)[None]
            return jax.lax.dynamic_update_slice(ring, new.astype(ring.dtype), at)

        ring_k, ring_v = write(ring_k, k), write(ring_v, v)
        suffix = [*suffix[:place], (ring_k, ring_v), *suffix[place + 1 :]]
        own_k, own_v, pre_k, pre_v = (
            jax.lax.dynamic_index_in_dim(a, unit, keepdims=False)
            for a in (ring_k, ring_v, *state.prefix[place])
        )
        # --- what the row may see: ages below its own count, prompt slots inside the window
        age_T = (state.clock - jnp.arange(T)) % T
        own_PxRxT = age_T < (
            fed_PxR[..., None] if window is None else jnp.minimum(fed_PxR, window)[..., None]
        )
        slot_S = jnp.arange(S - pre_k.shape[2], S)
        pre_position_PxS = slot_S - (S - state.prompt_length_P[:, None])
        pre_PxRxS = jnp.broadcast_to((pre_position_PxS >= 0)[:, None], (P, R, slot_S.size))
        if window is not None:
            pre_PxRxS &= position_PxR[..., None] - pre_position_PxS[:, None] < window
        # --- one softmax over both parts; the rows of a prompt meet its prefix as one matrix
        q_PxKxRxGxH = q.reshape(P, R, K, G, H).swapaxes(1, 2)
        own = _logits(_rows_by_ring, q_PxKxRxGxH, own_k, own_PxRxT, cfg.attn_cap)
        pre = _logits(_rows_by_prefix, q_PxKxRxGxH, pre_k, pre_PxRxS, cfg.attn_cap)
        top = jnp.maximum(
            jnp.max(own, axis=-1, keepdims=True), jnp.max(pre, axis=-1, keepdims=True)
        )
        own, pre = jnp.exp(own - top), jnp.exp(pre - top)
        total_PxKxRxG = jnp.sum(own, axis=-1) + jnp.sum(pre, axis=-1)
        o_PxKxRxGxH = _ring_sum(own.astype(own_v.dtype), own_v) + _prefix_sum(
            pre.astype(pre_v.dtype), pre_v
        )
        o_PxRxKxGxH = (o_PxKxRxGxH / total_PxKxRxG[..., None]).swapaxes(1, 2)
        o_PxRxKxGxH = constrain(o_PxRxKxGxH, prompts, rows, "kv_heads", None, "head_dim")
        return o_PxRxKxGxH.reshape(P * R, 1, N, H), suffix, None

    tokens_Bx1 = state.token_PxR.reshape(-1, 1)
    positions_Bx1 = position_PxR.reshape(-1, 1)
    x, suffix, _ = model.trunk(
        model.embedder.encode(tokens_Bx1), positions_Bx1, attend, state.suffix
    )
    return model.embedder.decode(model.final_norm(x)[:, 0]), suffix


def _logits(product, q_PxKxRxGxH, k, visible_PxRxS, cap: float | None):
    logits_PxKxRxGxS = product(q_PxKxRxGxH, k)
    if cap is not None:
        logits_PxKxRxGxS = cap * jnp.tanh(logits_PxKxRxGxS / cap)
    return jnp.where(visible_PxRxS[:, None, :, None], logits_PxKxRxGxS, MASKED)


def _rows_by_prefix(q_PxKxRxGxH, k_PxKxSxH):
    P, K, R, G, H = q_PxKxRxGxH.shape
    out = jnp.einsum(
        "pkmh,pksh->pkms",
        q_PxKxRxGxH.reshape(P, K, R * G, H),
        k_PxKxSxH,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(P, K, R, G, -1)


def _prefix_sum(p_PxKxRxGxS, v_PxKxSxH):
    P, K, R, G, S = p_PxKxRxGxS.shape
    out = jnp.einsum(
        "pkms,pksh->pkmh",
        p_PxKxRxGxS.reshape(P, K, R * G, S),
        v_PxKxSxH,
        preferred_element_type=jnp.float32,
    )
    return out.reshape(P, K, R, G, -1)


def _rows_by_ring(q_PxKxRxGxH, k_PxKxRxTxH):
    if cpu.on_cpu():
        return cpu.ring_logits(q_PxKxRxGxH, k_PxKxRxTxH)
    return jnp.einsum(
        "pkrgh,pkrth->pkrgt", q_PxKxRxGxH, k_PxKxRxTxH, preferred_element_type=jnp.float32
    )


def _ring_sum(p_PxKxRxGxT, v_PxKxRxTxH):
    if cpu.on_cpu():
        return cpu.ring_values(p_PxKxRxGxT, v_PxKxRxTxH)
    return jnp.einsum(
        "pkrgt,pkrth->pkrgh", p_PxKxRxGxT, v_PxKxRxTxH, preferred_element_type=jnp.float32
    )


def _draw(state: State, logits_BxV) -> Choice:
    """The next token of every row. A row's randomness depends on its seed, item, sample number and length alone."""
    R = state.token_PxR.shape[1]

    def uniform(seed, item, sample, length):
        key = jax.random.key(seed)
        for data in (item, sample, length):
            key = jax.random.fold_in(key, data)
        return jax.random.uniform(key)

    def rows(a_P):
        return jnp.repeat(a_P, R)

    uniform_B = jax.vmap(uniform)(
        rows(state.seed_P),
        rows(state.item_P),
        state.sample_PxR.reshape(-1),
        state.length_PxR.reshape(-1),
    )
    return choose(
        logits_BxV, uniform_B, rows(state.temperature_P), rows(state.top_p_P), rows(state.top_k_P)
    )


def _advance(state: State, choice: Choice, live_PxR) -> State:
    """Counts the chosen tokens in and ends rows that hit a stop token, their limit, or numbers that are not numbers."""
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
