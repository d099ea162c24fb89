"""The sampler's prefill: runs prompts once, alone or in groups that begin with the same tokens.

Axes as in `cache.py`; B rows of the prefill, F parts of a row (what its prompts share, then one per
prompt), L slots of a prompt in the result, M of several prompts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models import Transformer, cpu
from grm_jax.models.attend import Attend, LayerRef, full_attention, full_attention_parts
from grm_jax.models.attention import common_attention, merge_parts
from grm_jax.models.config import TransformerConfig
from grm_jax.models.quantize import dequantize_tokens, hadamard, quantize_tokens
from grm_jax.sampling.cache import (
    Pairs,
    cache_axes,
    cache_of,
    constrain_caches,
    of_unit,
    prefix_length,
    sees_common,
)


def prefill(
    model: Transformer,
    tokens_BxS: jax.Array,
    lengths_B: jax.Array,
    common: Pairs | None = None,
    common_lengths_B: jax.Array | None = None,
) -> tuple[Pairs, jax.Array]:
    """Runs left-padded prompts once.

    Args:
      common: keys and values (U, K, Z, H) per cache of the common prefix; the prompts are then the
        tokens after it, and None runs whole prompts.
      common_lengths_B: with `common`, the tokens of it that precede each prompt: all or 0.

    Returns:
      (prefix, last_BxD): keys and values (U, B, K, S, H) per cache, local layers cut to the slots
      that a later token can attend to, and the final-normed activation of each prompt's last token.
    """
    S = tokens_BxS.shape[1]
    slots_S = jnp.arange(S)
    pad_B = S - lengths_B
    segments_BxS = (slots_S >= pad_B[:, None]).astype(jnp.int32)
    positions_BxS = jnp.maximum(slots_S - pad_B[:, None], 0)
    if common_lengths_B is not None:
        positions_BxS += common_lengths_B[:, None]
    attention = _attention(model.cfg, positions_BxS, segments_BxS, common, common_lengths_B)
    prefix, x_BxSxD = _run(
        model, tokens_BxS, positions_BxS, attention, S, lambda a, keep: a[:, S - keep :]
    )
    return prefix, model.final_norm(x_BxSxD[:, -1:])[:, 0]


def prefill_groups(
    model: Transformer,
    tokens_BxS: jax.Array,
    lengths_BxF: jax.Array,
    length: int,
    common: Pairs | None = None,
    common_lengths_B: jax.Array | None = None,
) -> tuple[Pairs, jax.Array]:
    """Runs groups of prompts that begin with the same tokens, one left-padded row per group.

    A row has the tokens that the group shares once, then what each prompt adds. With two prompts:

        tokens       .  s0 s1 s2 | a0 a1 | b0 b1 b2
        positions    0  0  1  2  | 3  4  | 3  4  5
        b1 sees         s0 s1 s2           b0 b1         (inside the window, on local layers)

    Args:
      lengths_BxF: of the shared tokens, then of what each of the F - 1 prompts adds.
      length: slots of each prompt in the result, as if it had been prefilled alone.
      common, common_lengths_B: as in `prefill`.

    Returns:
      (prefix, last) of B * (F - 1) prompts as in `prefill`, those of a group side by side.
    """
    B, S = tokens_BxS.shape
    ends_BxF = S - lengths_BxF.sum(axis=1, keepdims=True) + jnp.cumsum(lengths_BxF, axis=1)
    starts_BxF = ends_BxF - lengths_BxF
    slots_S = jnp.arange(S)
    segments_BxS = jnp.sum(slots_S[:, None] >= starts_BxF[:, None], axis=-1)
    shared_B, begin_B = lengths_BxF[:, 0], starts_BxF[:, 0]
    # Slots of a prompt and of the shared tokens before it, as if they were side by side.
    gaps_BxF = starts_BxF - (begin_B + shared_B)[:, None]
    gaps_BxF = jnp.concatenate([jnp.zeros((B, 2), gaps_BxF.dtype), gaps_BxF[:, 1:]], axis=1)
    gap_BxS = jnp.take_along_axis(gaps_BxF, segments_BxS, axis=1)
    positions_BxS = jnp.maximum(slots_S - gap_BxS - begin_B[:, None], 0)
    if common_lengths_B is not None:
        positions_BxS += common_lengths_B[:, None]
    attention = _attention(model.cfg, positions_BxS, segments_BxS, common, common_lengths_B, True)
    # The row's slot of each slot of each prompt; padding takes any.
    ends_BxPx1 = ends_BxF[:, 1:, None]
    slots_BxPxL = ends_BxPx1 - length + jnp.arange(length)
    slots_BxPxL -= jnp.where(slots_BxPxL < starts_BxF[:, 1:, None], gaps_BxF[:, 2:, None], 0)
    slots_BxPxL = jnp.clip(slots_BxPxL, 0, S - 1)

    def take(a: jax.Array, keep: int) -> jax.Array:
        slots_BxM = slots_BxPxL[..., length - keep :].reshape(B, -1)
        taken = jnp.take_along_axis(a, slots_BxM[..., None, None], axis=1)
        return taken.reshape(-1, keep, *a.shape[2:])

    prefix, x_BxSxD = _run(model, tokens_BxS, positions_BxS, attention, length, take)
    last_BxPxD = jnp.take_along_axis(x_BxSxD, ends_BxF[:, 1:, None] - 1, axis=1)
    return prefix, model.final_norm(last_BxPxD).reshape(-1, last_BxPxD.shape[-1])


def _run(
    model: Transformer,
    tokens_BxS: jax.Array,
    positions_BxS: jax.Array,
    attention: Attend,
    length: int,
    take: Callable[[jax.Array, int], jax.Array],
) -> tuple[Pairs, jax.Array]:
    """Runs the layers; returns the prefix of prompts of `length` slots, and the activations.

    take(a_BxSxKxH, keep): the last `keep` slots of each prompt.
    """
    cfg = model.cfg

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
        o, state, _ = attention(layer, q, k, v, state)
        keep = prefix_length(length, layer.spec.window)
        if cfg.kv_cache_dtype:
            k = hadamard(k)
        kv = (take(a, keep).swapaxes(1, 2) for a in (k, v))
        return o, state, tuple(quantize_tokens(a) if cfg.kv_cache_dtype else a for a in kv)

    x_BxSxD, _, (units, tail) = model.trunk(
        model.embedder.encode(tokens_BxS), positions_BxS, attend
    )
    prefix = list(units) + jax.tree.map(lambda a: a[None], list(tail))
    prompts = jax.tree.leaves(prefix)[0].shape[1]
    axes, _ = cache_axes(prompts, 1)
    return constrain_caches(prefix, axes), x_BxSxD


def _attention(
    cfg: TransformerConfig,
    positions_BxS: jax.Array,
    segments_BxS: jax.Array,
    common: Pairs | None,
    common_lengths_B: jax.Array | None,
    branches: bool = False,
) -> Attend:
    """Returns causal self-attention of prompts that also attend to the common prefix.

    branches: see `self_attention`.
    """
    cfg = cfg.replace(query_chunk=cpu.query_chunk(cfg.query_chunk, positions_BxS.shape[1]))
    if common is None and not branches:
        return full_attention(cfg, positions_BxS, segments_BxS)
    part = full_attention_parts(cfg, positions_BxS, segments_BxS, branches)

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
        own = part(layer, q, k, v)
        if common is None:
            return own[0], state, None
        assert common_lengths_B is not None
        place, unit = cache_of(cfg, layer)
        common_k, common_v = (dequantize_tokens(a, q.dtype) for a in of_unit(common[place], unit))
        Z = max(k.shape[2] for k, _ in common)
        seen_BxSxZ = sees_common(
            positions_BxS, common_lengths_B, Z, common_k.shape[1], layer.spec.window
        )
        rotated = hadamard(q) if cfg.kv_cache_dtype else q
        shared = common_attention(
            rotated, common_k, common_v, seen_BxSxZ, cfg.attn_cap, cfg.query_chunk
        )
        return merge_parts([own, shared]), state, None

    return attend
