"""How a layer attends: the function that `Transformer.trunk` calls in every layer.

Axes as in `transformer.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from grm_jax.models.attention import self_attention
from grm_jax.models.config import LayerSpec, TransformerConfig


class LayerRef(NamedTuple):
    """The calling layer: spec, place in the pattern or tail, unit (None in the tail)."""

    spec: LayerSpec
    place: int
    unit: jax.Array | None


# attend(layer, q_BxLxNxH scaled and rotated, k_BxLxKxH rotated, v_BxLxKxH, state) -> (o_BxLxNxH,
# state, y) state is carried from layer to layer; trunk returns the y of each place, stacked over U.
Attend = Callable[[LayerRef, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any, Any]]


def full_attention(
    cfg: TransformerConfig, positions_BxL: jax.Array, segment_ids_BxL: jax.Array
) -> Attend:
    """Returns causal self-attention over the batch, in the implementation that the config names."""

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
        if cfg.attention == "splash":
            from grm_jax.models.splash import splash_attention

            o = splash_attention(q, k, v, segment_ids_BxL, layer.spec.window, cfg.attn_cap)
        else:
            mask = positions_BxL, segment_ids_BxL, layer.spec.window
            o, _ = self_attention(q, k, v, *mask, cfg.attn_cap, cfg.query_chunk)
        return o, state, None

    return attend


def full_attention_parts(
    cfg: TransformerConfig,
    positions_BxL: jax.Array,
    segment_ids_BxL: jax.Array,
    branches: bool = False,
) -> Callable[[LayerRef, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the same attention as a function to (o_BxLxNxH, lse_BxLxN), for `merge_parts`.

    branches: see `self_attention`.
    """

    def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        mask = positions_BxL, segment_ids_BxL, layer.spec.window
        return self_attention(q, k, v, *mask, cfg.attn_cap, cfg.query_chunk, branches)

    return attend
