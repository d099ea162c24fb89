"""The sampler's jitted programs, built from shapes alone: the engine runs them, and the same ones compile for a slice that is not there.

On a TPU the rings keep rows inside length in memory (logically they stand outside): one step's write is then a whole tile, and XLA, which would
choose that layout for the loop anyway, needs no copy of the rings on the way in and out.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from grm_jax.models.config import TransformerConfig
from grm_jax.sampling import cache, decode
from grm_jax.sharding import spec

RING_LAYOUT = Layout(major_to_minor=(0, 1, 2, 4, 3, 5))


@dataclasses.dataclass(frozen=True)
class Shape:
    """P prompt slots, R rows each, prompts of at most S tokens, rings of T."""

    P: int
    R: int
    S: int
    T: int


@dataclasses.dataclass(frozen=True)
class Programs:
    """empty() -> state;  insert(state, prefix, last, slots, per_prompt) -> state;  admit(params, state, new, sample) and
    segment(params, state, steps, fewest) -> (state, emitted). All but `empty` take over the state that they are given."""

    empty: Callable
    insert: Callable
    admit: Callable
    segment: Callable


@functools.lru_cache(maxsize=256)
def build(
    graphdef, cfg: TransformerConfig, shape: Shape, segment: int, mesh=None, platform: str = "cpu"
) -> Programs:
    """Programs for one shape; cached, so that engines of the same structure share what is compiled.

    A decode segment is compiled for each (S, T), an insertion for each S and number of prompts, an admission once: it sees no caches.
    """
    formats = state_formats(cfg, shape, mesh, platform)
    both = formats and (formats, _everywhere(mesh))

    def run_segment(params, state, steps, fewest):
        return decode.decode_segment(nnx.merge(graphdef, params), state, steps, fewest, segment)

    def insert(state, prefix, last, slots, per_prompt):
        rest = dataclasses.replace(state, suffix=[])
        rest = _insert_program(cfg, shape.P, shape.R, shape.S, mesh, platform)(
            rest, prefix, last, slots, per_prompt
        )
        return dataclasses.replace(rest, suffix=state.suffix)

    def admit(params, state, new, sample):
        program = _admit_program(graphdef, cfg, shape.P, shape.R, mesh, platform)
        small, emitted = program(params, cache.without_caches(state), new, sample)
        return dataclasses.replace(small, prefix=state.prefix, suffix=state.suffix), emitted

    return Programs(
        empty=jax.jit(
            lambda: cache.empty_state(cfg, shape.P, shape.R, shape.S, shape.T),
            out_shardings=formats,
        ),
        insert=insert,
        admit=admit,
        segment=jax.jit(run_segment, donate_argnums=1, out_shardings=both),
    )


@functools.lru_cache(maxsize=256)
def _insert_program(
    cfg: TransformerConfig, P: int, R: int, S: int, mesh, platform: str
) -> Callable:
    formats = state_formats(cfg, Shape(P, R, S, 1), mesh, platform)
    formats = formats and dataclasses.replace(formats, suffix=[])
    return jax.jit(decode.insert, donate_argnums=0, out_shardings=formats)


@functools.lru_cache(maxsize=64)
def _admit_program(
    graphdef, cfg: TransformerConfig, P: int, R: int, mesh, platform: str
) -> Callable:
    formats = state_formats(cfg, Shape(P, R, 1, 1), mesh, platform)

    def admit(params, state, new, sample):
        return decode.admit(nnx.merge(graphdef, params), state, new, sample)

    return jax.jit(
        admit,
        donate_argnums=1,
        out_shardings=formats and (cache.without_caches(formats), _everywhere(mesh)),
    )


def _everywhere(mesh) -> NamedSharding | None:
    """What the host reads stands whole on every device, so that each host of a pod can read it."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


@functools.lru_cache(maxsize=64)
def prefill_program(graphdef) -> Callable:
    """prefill(params, tokens_BxS, lengths_B) -> (prefix, last_BxD)"""
    return jax.jit(
        lambda params, tokens, lengths: decode.prefill(nnx.merge(graphdef, params), tokens, lengths)
    )


def resize(
    state: cache.State,
    cfg: TransformerConfig,
    old: Shape,
    new: Shape,
    mesh=None,
    platform: str = "cpu",
) -> cache.State:
    """The same rows with room for longer prompts (new.S) or more tokens (new.T). The old caches are freed.

    One array at a time, so that the peak is the new caches and one old array.
    """
    formats = state_formats(cfg, new, mesh, platform)
    windows = cache.layer_windows(cfg)
    prefix, suffix, clock = list(state.prefix), list(state.suffix), state.clock
    for i, (_, window) in enumerate(windows):
        if (
            new.S != old.S
            and (length := cache.prefix_length(new.S, window)) != prefix[i][0].shape[3]
        ):
            place = formats and formats.prefix[i][0]
            prefix[i] = tuple(_replace(_longer_prefix(length, place), a) for a in prefix[i])
    if new.T != old.T:
        top = max(k.shape[4] for k, _ in suffix)
        for i, (_, window) in enumerate(windows):
            grow = _longer_ring(cache.ring_length(new.T, window), formats and formats.suffix[i][0])
            suffix[i] = tuple(_replace(grow, a, state.clock, top) for a in suffix[i])
        clock = jax.device_put(np.int32(top), state.clock.sharding)
    return dataclasses.replace(state, prefix=prefix, suffix=suffix, clock=clock)


def _replace(program: Callable, array: jax.Array, *args) -> jax.Array:
    """program(array, ...), after which the array is gone."""
    result = jax.block_until_ready(program(array, *args))
    array.delete()
    return result


@functools.lru_cache(maxsize=256)
def _longer_prefix(length: int, place) -> Callable:
    return jax.jit(lambda a: cache.longer_prefix(a, length), out_shardings=place)


@functools.lru_cache(maxsize=256)
def _longer_ring(length: int, place) -> Callable:
    return jax.jit(
        lambda a, clock, top: cache.longer_ring(a, clock, top, length), out_shardings=place
    )


def scrub(
    state: cache.State, cfg: TransformerConfig, shape: Shape, mesh=None, platform: str = "cpu"
) -> cache.State:
    """Clears numbers that are not finite out of the rings: a masked slot weighs 0, but 0 times NaN is NaN for whoever takes the row next."""
    formats = state_formats(cfg, shape, mesh, platform)
    program = _scrub_program(formats and formats.suffix[0][0])
    return dataclasses.replace(state, suffix=[tuple(program(a) for a in kv) for kv in state.suffix])


@functools.lru_cache(maxsize=64)
def _scrub_program(place) -> Callable:
    return jax.jit(
        lambda a: jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a)),
        donate_argnums=0,
        out_shardings=place,
    )


def state_formats(
    cfg: TransformerConfig, shape: Shape, mesh=None, platform: str = "cpu"
) -> cache.State | None:
    """Sharding, and on a TPU memory layout, of every leaf of the state. None where the defaults serve: one device that is not a TPU."""
    if mesh is None and platform != "tpu":
        return None
    prefix_axes, suffix_axes = cache.cache_axes(shape.P, shape.R)

    def place(path, leaf):
        field = path[0].name
        axes = {"prefix": prefix_axes, "suffix": suffix_axes}.get(field, (None,) * leaf.ndim)
        sharding = (
            SingleDeviceSharding(jax.devices()[0])
            if mesh is None
            else NamedSharding(mesh, spec(axes))
        )
        return (
            Format(RING_LAYOUT, sharding) if field == "suffix" and platform == "tpu" else sharding
        )

    return jax.tree_util.tree_map_with_path(place, abstract_state(cfg, shape))


def abstract_state(cfg: TransformerConfig, shape: Shape) -> cache.State:
    return jax.eval_shape(lambda: cache.empty_state(cfg, shape.P, shape.R, shape.S, shape.T))


def abstract_programs(
    graphdef,
    params,
    cfg: TransformerConfig,
    shape: Shape,
    segment: int,
    mesh,
    platform: str = "tpu",
    prompts: int = 1,
):
    """(name, jitted, abstract arguments) of prefill and of a decode segment, for compiling without devices. Call under `jax.set_mesh(mesh)`.

    params: abstract, with shardings. prompts: prefilled at a time.
    """

    def like(tree, formats):
        return jax.tree.map(
            lambda x, f: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=f), tree, formats
        )

    state = like(abstract_state(cfg, shape), state_formats(cfg, shape, mesh, platform))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    tokens, lengths = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((prompts, shape.S), (prompts,)))
    built = build(graphdef, cfg, shape, segment, mesh, platform)
    return [
        ("prefill", prefill_program(graphdef), (params, tokens, lengths)),
        ("decode", built.segment, (params, state, count, count)),
    ]
