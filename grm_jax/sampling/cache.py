"""The sampler's state: prefixes, a ring of recent tokens per row, and each row's progress.

Axes: U stacked units, P prompt slots, R rows per prompt, K KV heads, S prefix length, T ring
length, Z length of the common prefix, H width of an attention head, N query heads, D model width, E
stop tokens.

Common prefix (`prefixes.py`). The keys and values of the tokens with which many prompts begin are
stored once, left-padded to Z. A prompt that uses them has only its other tokens in its own prefix.
Z = 0 is a state without a common prefix.

Prefix. A prompt's keys and values are computed once and stored once, left-padded to S. All R rows
of the prompt attend to them:

    prompt slot 0     .  .  p0 p1 p2 p3     one prefix  <- rows (0, 0), (0, 1), (0, 2), (0, 3)

Ring. Each row stores the keys and values of its own tokens in a ring of T slots. At a step all rows
write the same slot, clock % T, whenever they started, so that the write is one slice and not a
scatter. A ring of 4 at clock 6:

    slot              0   1   2   3
    written at clock  4   5   6   3     the token being fed is written to slot 6 % 4 = 2
    age               2   1   0   3     a row that has fed n tokens attends to ages < n

A row that starts at clock 5 has fed 2 tokens at clock 6 and attends to slots 1 and 2; older slots
hold the tokens of the row's predecessor, which the age masks.

Local layers store the last window - 1 tokens of the common prefix and of each prefix, and a ring of
at most `window`. KV heads precede length, so that a TPU tiles (length, H).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from grm_jax.models.attend import LayerRef
from grm_jax.models.config import TransformerConfig
from grm_jax.models.quantize import Int8Array
from grm_jax.sampling.products import KV
from grm_jax.sampling.request import MAX_STOP_TOKENS
from grm_jax.sharding import batch_shards, constrain, current_mesh, platform, spec

RUNNING, STOP, LENGTH, NONFINITE, EMPTY = range(5)
Axes = tuple[str | None, ...]
Pairs = list[tuple[KV, KV]]  # (keys, values) per layer of the pattern and tail layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The input and output of a decode segment; donated from call to call.

    common, prefix, suffix: one (k, v) per layer of the pattern, then per tail layer. Common arrays
    are (U, K, Z, H), prefix arrays (U, P, K, S, H), suffix arrays (rings) (U, P, K, R, T, H); U = 1
    in the tail. common is empty if Z = 0. With `kv_cache_dtype` each is an `Int8Array`, whose
    scales have the same axes but H, and keys are rotated by `quantize.hadamard`.
    """

    common: list[tuple[KV, KV]]
    prefix: list[tuple[KV, KV]]
    suffix: list[tuple[KV, KV]]
    last_PxD: jax.Array  # final-normed activation of the prompt's last token
    prompt_length_P: jax.Array  # of the whole prompt, the common prefix included
    common_length_P: jax.Array  # tokens of the common prefix that the prompt uses: all or 0
    temperature_P: jax.Array
    top_p_P: jax.Array
    top_k_P: jax.Array
    limit_P: jax.Array  # most tokens of a row
    item_P: jax.Array  # with seed and sample index: the row's random key
    seed_P: jax.Array
    stop_PxE: jax.Array  # stop tokens, padded with -1
    sample_PxR: jax.Array
    token_PxR: jax.Array  # chosen last, not fed yet
    length_PxR: jax.Array  # tokens chosen so far
    finish_PxR: jax.Array  # RUNNING, STOP, LENGTH, NONFINITE or EMPTY
    clock: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Emitted:
    """The tokens of a segment of C steps; row (p, r) is valid up to its new length."""

    token_CxPxR: jax.Array
    logprob_CxPxR: jax.Array
    logprob_1_CxPxR: jax.Array
    steps: jax.Array


def layer_windows(cfg: TransformerConfig) -> list[tuple[int, int | None]]:
    """Returns (units, window) of each cache: the layers of the pattern, then the tail."""
    return [(cfg.num_units, s.window) for s in cfg.pattern] + [(1, s.window) for s in cfg.tail]


def prefix_length(S: int, window: int | None) -> int:
    """Returns how many prefix slots a later token can attend to."""
    return S if window is None else max(1, min(S, window - 1))


def ring_length(T: int, window: int | None) -> int:
    return T if window is None else min(T, window)


def token_bytes(cfg: TransformerConfig) -> int:
    """Returns the bytes of one token's keys and values in one layer, scales included."""
    size = cfg.head_dim + 4 if cfg.kv_cache_dtype else cfg.head_dim * jnp.dtype(cfg.dtype).itemsize
    return 2 * cfg.num_kv_heads * size


def empty_state(cfg: TransformerConfig, P: int, R: int, S: int, T: int, Z: int = 0) -> State:
    """Returns a state without rows, for P prompts of at most S tokens, R rows each, rings of T.

    Z: length of the common prefix, whose arrays are zeros; 0 for none.
    """
    K, H, dtype = cfg.num_kv_heads, cfg.head_dim, jnp.dtype(cfg.dtype)

    def zeros(shape: tuple[int, ...]) -> KV:
        if cfg.kv_cache_dtype:
            return Int8Array(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
        return jnp.zeros(shape, dtype)

    def pair(*shape: int) -> tuple[KV, KV]:
        return zeros(shape), zeros(shape)

    def full(shape: Any, value: Any, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.full(shape, value, dtype)

    state = State(
        common=[pair(U, K, prefix_length(Z, w), H) for U, w in layer_windows(cfg)] if Z else [],
        prefix=[pair(U, P, K, prefix_length(S, w), H) for U, w in layer_windows(cfg)],
        suffix=[pair(U, P, K, R, ring_length(T, w), H) for U, w in layer_windows(cfg)],
        last_PxD=jnp.zeros((P, cfg.d_model), dtype),
        prompt_length_P=full(P, 1),
        common_length_P=full(P, 0),
        temperature_P=full(P, 1, jnp.float32),
        top_p_P=full(P, 1, jnp.float32),
        top_k_P=full(P, 0),
        limit_P=full(P, 1),
        item_P=full(P, 0),
        seed_P=full(P, 0),
        stop_PxE=full((P, MAX_STOP_TOKENS), -1),
        sample_PxR=full((P, R), 0),
        token_PxR=full((P, R), 0),
        length_PxR=full((P, R), 0),
        finish_PxR=full((P, R), EMPTY),
        clock=full((), 0),
    )
    return constrain_state(state)


def batch_axes(P: int, R: int) -> tuple[str | None, str | None]:
    """Returns the logical axes of (prompts, rows).

    The mesh's batch axes split the prompts if they divide them, else the rows, else neither.
    """
    shards = batch_shards(current_mesh())
    if P % shards == 0:
        return "batch", None
    return (None, "batch") if R % shards == 0 else (None, None)


def cache_axes(P: int, R: int) -> tuple[Axes, Axes]:
    """Returns the logical axes of prefix and suffix arrays."""
    prompts, rows = batch_axes(P, R)
    prefix = ("layers", prompts, "kv_heads", "cache_length", "head_dim")
    return prefix, (*prefix[:3], rows, *prefix[3:])


def ring_layout(P: int, ndim: int = 6) -> Layout:
    """Returns the memory layout of rings on a TPU: the one that XLA would choose for the loop.

    With one prompt slot per device, the rows of all KV heads form one batch of matrices, and the
    length is stored before them: the write of a step is one contiguous block. With several prompt
    slots, the keys of each row are stored together.

    Args:
      ndim: 5 for the scales of int8 rings.
    """
    if ndim == 6 and _one_slot(P):
        return Layout(major_to_minor=(0, 1, 4, 2, 3, 5))
    return Layout(major_to_minor=tuple(range(ndim)))


def keep_ring_layout(ring: KV, P: int, R: int) -> KV:
    """Makes XLA keep a ring's layout inside the decode loop on a TPU.

    Without it, XLA chooses another one for some models: for the values of Gemma 2 9B on one chip.
    """
    if platform() != "tpu" or _one_slot(P):
        return ring
    mesh, axes = current_mesh(), cache_axes(P, R)[1]

    def keep(a: jax.Array) -> jax.Array:
        constrained = lambda a: with_layout_constraint(a, ring_layout(P, a.ndim))
        if mesh is None:
            return constrained(a)
        # By device: XLA's partitioner would gather the whole ring for the constraint.
        specs = spec(axes[: a.ndim])
        return jax.shard_map(constrained, in_specs=specs, out_specs=specs, check_vma=False)(a)

    return jax.tree.map(keep, ring)


def _one_slot(P: int) -> bool:
    return P in (1, batch_shards(current_mesh()))


COMMON_AXES: Axes = ("layers", "kv_heads", "cache_length", "head_dim")


def constrain_state(state: State) -> State:
    """Constrains the caches to the sharding table."""
    prefix_axes, suffix_axes = cache_axes(*state.token_PxR.shape)
    return dataclasses.replace(
        state,
        common=constrain_caches(state.common, COMMON_AXES),
        prefix=constrain_caches(state.prefix, prefix_axes),
        suffix=constrain_caches(state.suffix, suffix_axes),
    )


def constrain_caches(caches: Any, axes: Axes) -> Any:
    """Constrains keys and values, and their scales, which have all axes but the last."""
    return jax.tree.map(lambda a: constrain(a, *axes[: a.ndim]), caches)


def extend_ring(ring: KV, clock: jax.Array, top: int, length: int) -> KV:
    """Returns the same tokens in a ring of `length`, for a state whose clock becomes `top`.

    A ring that grows is unrolled, oldest token first, with room at the end. A ring that already has
    the length of its window is only rotated to the new clock. top: longest old ring of the state.
    """
    new = length - ring.shape[4]
    shift = -clock if new else top - clock
    return jax.tree.map(lambda a: _pad(jnp.roll(a, shift, axis=4), 4, (0, new)), ring)


def extend_prefix(prefix: KV, length: int) -> KV:
    """Returns the same prompts, left-padded to `length`."""
    new = length - prefix.shape[3]
    return jax.tree.map(lambda a: _pad(a, 3, (new, 0)), prefix)


def _pad(a: jax.Array, axis: int, widths: tuple[int, int]) -> jax.Array:
    if widths == (0, 0):
        return a
    return jnp.pad(a, [widths if i == axis else (0, 0) for i in range(a.ndim)])


def without_caches(state: State) -> State:
    """Returns the state without keys and values, for programs that do not use them."""
    return dataclasses.replace(state, common=[], prefix=[], suffix=[])


def cache_of(cfg: TransformerConfig, layer: LayerRef) -> tuple[int, Any]:
    """Returns (index of the layer's cache, unit in it)."""
    if layer.unit is None:
        return len(cfg.pattern) + layer.place, 0
    return layer.place, layer.unit


def of_unit(caches: Any, unit: Any) -> Any:
    """Returns the keys and values of one unit."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, unit, keepdims=False), caches)


def sees_common(
    positions_PxL: jax.Array, common_length_P: jax.Array, Z: int, stored: int, window: int | None
) -> jax.Array:
    """Returns (P, L, stored): whether tokens attend to the last `stored` of Z common slots.

    A prompt that uses none of the common prefix sees none: no slot has a position of at least 0.
    """
    common_position_PxZ = jnp.arange(Z - stored, Z) - (Z - common_length_P[:, None])
    seen_PxLxZ = jnp.broadcast_to(
        (common_position_PxZ >= 0)[:, None], (*positions_PxL.shape, stored)
    )
    if window is not None:
        seen_PxLxZ &= positions_PxL[..., None] - common_position_PxZ[:, None] < window
    return seen_PxLxZ
