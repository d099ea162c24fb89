"""How a layer attends: the function that `Transformer.trunk` calls in every layer.

Axes as in `transformer.py`; S slots of a prompt, G completions of it, T tokens of each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grm_jax.models.attention import merge_parts, prefix_attention, self_attention
from grm_jax.models.config import LayerSpec, TransformerConfig
from grm_jax.sharding import platform


class LayerRef(NamedTuple):
    """The calling layer: spec, place in the pattern or tail, unit (None in the tail)."""

    spec: LayerSpec
    place: int
    unit: jax.Array | None


# attend(layer, q_BxLxNxH scaled and rotated, k_BxLxKxH rotated, v_BxLxKxH, state) -> (o_BxLxNxH,
# state, y) state is carried from layer to layer; trunk returns the y of each place, stacked over U.
Attend = Callable[[LayerRef, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any, Any]]


def uses_splash(cfg: TransformerConfig, length: int) -> bool:
    """Returns whether rows of this length attend by the TPU kernel that the config asks for.

    Other lengths, such as short prompts', and other devices use XLA.
    """
    return cfg.attention == "splash" and length % 128 == 0 and platform() == "tpu"


def full_attention(
    cfg: TransformerConfig, positions_BxL: jax.Array, segment_ids_BxL: jax.Array
) -> Attend:
    """Returns causal self-attention over the batch, in the implementation that the config names."""

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
        if uses_splash(cfg, q.shape[1]):
            from grm_jax.models.splash import splash_attention

            o = splash_attention(q, k, v, segment_ids_BxL, layer.spec.window, cfg.attn_cap)
        else:
            mask = positions_BxL, segment_ids_BxL, layer.spec.window
            o, _ = self_attention(q, k, v, *mask, cfg.attn_cap, cfg.query_chunk)
        return o, state, None

    return attend


def grouped_attention(
    cfg: TransformerConfig, prompt_lengths_B: jax.Array, S: int, G: int, T: int
) -> tuple[jax.Array, Attend]:
    """Returns (positions_BxL, attend) of rows of a left-padded prompt and G completions of it.

    L = S + G * T. Each completion sees the prompt and itself:

        one row:    . p0 p1 p2 | a0 a1 a2 | b0 b1 b2          (S = 4, G = 2, T = 3)
        positions:  0  0  1  2    3  4  5    3  4  5
        b1 sees:       p0 p1 p2              b0 b1            (inside the window, on local layers)
    """
    B = prompt_lengths_B.shape[0]
    pad_B = S - prompt_lengths_B
    slots_S = jnp.arange(S)
    valid_BxS = slots_S >= pad_B[:, None]
    prompt_BxS = jnp.maximum(slots_S - pad_B[:, None], 0)
    own_BxGxT = jnp.broadcast_to(prompt_lengths_B[:, None, None] + jnp.arange(T), (B, G, T))
    positions_BxL = jnp.concatenate([prompt_BxS, own_BxGxT.reshape(B, G * T)], axis=1)
    segments_BxS = valid_BxS.astype(jnp.int32)

    def kernel(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
        from grm_jax.models.splash import Group, splash_attention

        segments_BxL = jnp.pad(segments_BxS, ((0, 0), (0, G * T)), constant_values=1)
        mask = segments_BxL, layer.spec.window
        return splash_attention(q, k, v, *mask, cfg.attn_cap, Group(S, T)), state, None

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
        window, cap, chunk = layer.spec.window, cfg.attn_cap, cfg.query_chunk
        o_prompt, _ = self_attention(
            q[:, :S], k[:, :S], v[:, :S], prompt_BxS, segments_BxS, window, cap, chunk
        )
        q_own, k_own, v_own = (a[:, S:].reshape(B * G, T, *a.shape[2:]) for a in (q, k, v))
        own_positions = own_BxGxT.reshape(B * G, T)
        ones = jnp.ones_like(own_positions)
        own = self_attention(q_own, k_own, v_own, own_positions, ones, window, cap, chunk)
        o_own, lse_own = (a.reshape(B, G * T, *a.shape[2:]) for a in own)
        # A completion can see at most the last window - 1 slots of the left-padded prompt.
        first = 0 if window is None else max(0, S - window + 1)
        if first < S:
            seen = slice(first, S)
            prefix = prefix_attention(
                q[:, S:],
                k[:, seen],
                v[:, seen],
                positions_BxL[:, S:],
                prompt_BxS[:, seen],
                valid_BxS[:, seen],
                window,
                cap,
                chunk,
            )
            o_own = merge_parts([prefix, (o_own, lse_own)])
        return jnp.concatenate([o_prompt, o_own], axis=1), state, None

    return positions_BxL, kernel if uses_splash(cfg, S + G * T) else attend


def full_attention_parts(
    cfg: TransformerConfig,
    positions_BxL: jax.Array,
    segment_ids_BxL: jax.Array,
    branches: bool = False,
) -> Callable[[LayerRef, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the XLA attention of `full_attention` as a function to (o_BxLxNxH, lse_BxLxN).

    `merge_parts` merges them with other parts.

    branches: see `self_attention`.
    """

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        mask = positions_BxL, segment_ids_BxL, layer.spec.window
        return self_attention(q, k, v, *mask, cfg.attn_cap, cfg.query_chunk, branches)

    return attend
