"""The sampler's state: prefixes shared by rows, a ring of recent tokens per row, and what each row is doing.

Axes: U stacked units, P prompt slots, R rows per prompt, K KV heads, S prefix length, T ring length, H head width, N query heads, D model width.

A prompt is LEFT-padded to S, and its keys and values are kept once for its R rows. What rows write goes to rings: all rows write the same slot at a
step (the clock modulo the ring's length), so a write is one slice and never a scatter, whenever a row began. With a ring of 4 at clock 6:

    slot         0    1    2    3
    written at   4    5   (6)   3      the token being fed goes to slot 2
    age          2    1    0    3      a row that has fed n tokens sees ages < n

Local layers keep S = window - 1 of the prefix and a ring of at most the window. Heads stand before length so that a TPU tiles (length, H).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.models.config import TransformerConfig
from grm_jax.sampling.request import MAX_STOP_TOKENS
from grm_jax.sharding import constrain

RUNNING, STOP, LENGTH, NONFINITE, EMPTY = range(5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything a decode segment reads and writes; donated from call to call.

    prefix, suffix: one (k, v) per place of the layer pattern and then per tail layer: k, v (U, P, K, S, H) and (U, P, K, R, T, H); U = 1 in the tail.
    """

    prefix: list[tuple[jax.Array, jax.Array]]
    suffix: list[tuple[jax.Array, jax.Array]]
    last_PxD: jax.Array  # final-normed activation of the prompt's last token: the first token of a row is drawn from it
    prompt_length_P: jax.Array
    temperature_P: jax.Array
    top_p_P: jax.Array
    top_k_P: jax.Array
    limit_P: jax.Array  # tokens that a row may have
    item_P: jax.Array  # together with the seed and the sample number: the row's random key
    seed_P: jax.Array
    stop_PxE: jax.Array  # stop tokens, -1 where there are fewer than E
    sample_PxR: jax.Array
    token_PxR: jax.Array  # chosen last, not fed yet
    length_PxR: jax.Array  # tokens chosen so far
    finish_PxR: jax.Array  # RUNNING, STOP, LENGTH, NONFINITE or EMPTY
    clock: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Emitted:
    """What a segment of C steps chose, step-major; the host reads row (p, r) up to its new length."""

    token_CxPxR: jax.Array
    logp_CxPxR: jax.Array
    logp_1_CxPxR: jax.Array
    steps: jax.Array


def layer_windows(cfg: TransformerConfig) -> list[tuple[int, int | None]]:
    """(units, window) for each cache: places of the pattern first, then the tail."""
    return [(cfg.num_units, s.window) for s in cfg.pattern] + [(1, s.window) for s in cfg.tail]


def prefix_length(S: int, window: int | None) -> int:
    """Prefix slots that any later token can still see."""
    return S if window is None else max(1, min(S, window - 1))


def ring_length(T: int, window: int | None) -> int:
    return T if window is None else min(T, window)


def empty_state(cfg: TransformerConfig, P: int, R: int, S: int, T: int) -> State:
    """A state without rows, for P prompts of at most S tokens, R rows each, rings of T tokens."""
    K, H, dtype = cfg.num_kv_heads, cfg.head_dim, jnp.dtype(cfg.dtype)

    def pair(*shape):
        return (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def full(shape, value, dtype: Any = jnp.int32):
        return jnp.full(shape, value, dtype)

    return constrain_state(
        State(
            prefix=[pair(U, P, K, prefix_length(S, w), H) for U, w in layer_windows(cfg)],
            suffix=[pair(U, P, K, R, ring_length(T, w), H) for U, w in layer_windows(cfg)],
            last_PxD=jnp.zeros((P, cfg.d_model), dtype),
            prompt_length_P=full(P, 1),
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
    )


def cache_axes(P: int, R: int) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Logical axes of (prefix, suffix): prompts over the batch axes (rows, where prompts do not divide), heads over `tensor`."""
    prompts, rows = batch_axes(P, R)
    return ("layers", prompts, "kv_heads", "cache_length", "head_dim"), (
        "layers",
        prompts,
        "kv_heads",
        rows,
        "cache_length",
        "head_dim",
    )


def constrain_state(state: State) -> State:
    """Pins the caches to the sharding table."""
    prefix_axes, suffix_axes = cache_axes(*state.token_PxR.shape)
    return dataclasses.replace(
        state,
        prefix=[tuple(constrain(a, *prefix_axes) for a in kv) for kv in state.prefix],
        suffix=[tuple(constrain(a, *suffix_axes) for a in kv) for kv in state.suffix],
    )


def batch_axes(P: int, R: int) -> tuple[str | None, str | None]:
    """Logical axes for (prompts, rows): the batch axes of the mesh go to prompts if they divide them, else to rows, else to none."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else int(np.prod([mesh.shape[a] for a in ("data", "fsdp")]))
    if P % devices == 0:
        return "batch", None
    return (None, "batch") if R % devices == 0 else (None, None)


def longer_ring(ring, clock, top, length: int):
    """The same tokens in a ring of `length`, as of a clock that stands at `top`, the longest old ring of the state.

    A ring that is shorter than its window is unrolled, oldest token first, and gets room at the end; one that is as long as its window keeps
    turning, and only its phase follows the new clock.
    """
    old = ring.shape[4]
    if length == old:
        return jnp.roll(ring, top - clock, axis=4)
    return jnp.pad(jnp.roll(ring, -clock, axis=4), [(0, 0)] * 4 + [(0, length - old), (0, 0)])


def longer_prefix(prefix, length: int):
    """The same prompts, left-padded to `length`."""
    return jnp.pad(prefix, [(0, 0)] * 3 + [(length - prefix.shape[3], 0), (0, 0)])


def without_caches(state: State) -> State:
    """What the programs that choose tokens need: no keys, no values, so that no compilation depends on their lengths."""
    return dataclasses.replace(state, prefix=[], suffix=[])
