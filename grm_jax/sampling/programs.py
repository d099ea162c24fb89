"""The sampler's jitted programs, built from shapes alone.

The engine runs them; the same programs compile for a slice that this machine does not have.

On a TPU the rings have one memory layout in all programs (`cache.ring_layout`). In another layout
than inside the loop, a decode segment would copy all rings on the way in and on the way out, and
hold both copies.
"""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from grm_jax import sharding
from grm_jax.models.config import TransformerConfig
from grm_jax.sampling import cache, decode, prefill
from grm_jax.sampling.products import KV

PROGRAMS = 5  # of a first call: empty state, prefill, insertion, admission, decode segment


@dataclasses.dataclass(frozen=True)
class Shape:
    """P prompt slots, R rows each, prompts of at most S tokens, rings of T.

    Z: bucket of the common prefix, and S is then the tokens after it; 0 for programs without one.
    """

    P: int
    R: int
    S: int
    T: int
    Z: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """The model and devices that programs are compiled for. mesh: None for a single device."""

    cfg: TransformerConfig
    mesh: Mesh | None
    platform: str


def current_target(cfg: TransformerConfig) -> Target:
    """Returns the target of the mesh in context."""
    return Target(cfg, sharding.device_mesh(), sharding.platform())


class Segment:
    """A jitted decode segment that can be compiled in a thread while other programs are."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self._compiled = False  # or being compiled
        self._thread: threading.Thread | None = None

    def compile_ahead(self, mesh: Mesh | None, params: Any, state: cache.State) -> None:
        """Starts to compile for arguments like these, unless it was called before.

        The first call waits for it. Errors are suppressed here: the first call raises them.
        """
        if self._compiled:
            return
        self._compiled = True
        args = *jax.tree.map(_abstract, (params, state)), 1, 1

        def compile_program() -> None:
            with sharding.use_mesh(mesh), contextlib.suppress(Exception):
                self.program.lower(*args).compile()

        self._thread = threading.Thread(target=compile_program, name="compile a decode segment")
        self._thread.start()

    def __call__(self, *args: Any) -> Any:
        if self._thread:
            self._thread.join()
            self._thread = None
        self._compiled = True
        return self.program(*args)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Returns an array's shape, for which a program compiles as for the array itself."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.format if x.committed else None)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Programs of one shape; all but `empty` donate the state.

    empty() -> state, without the common prefix's arrays
    insert(state, prefix, last, slots, per_prompt) -> state
    admit(params, state, new, sample) -> (state, emitted)
    segment(params, state, steps, min_running) -> (state, emitted)
    """

    empty: Callable[..., Any]
    insert: Callable[..., Any]
    admit: Callable[..., Any]
    segment: Segment


@functools.lru_cache(maxsize=256)
def build(graphdef: nnx.GraphDef, target: Target, shape: Shape, segment: int) -> Programs:
    """Builds the programs of one shape; engines of the same structure share compilations.

    A decode segment is compiled per (S, T, Z), an insertion per S and number of prompts, an
    admission once, because it takes no caches.
    """
    formats = state_formats(target, shape)
    insert_program = _insert_program(target, shape.P, shape.R, shape.S)
    admit_program = _admit_program(graphdef, target, shape.P, shape.R)

    def run_segment(params: Any, state: cache.State, steps: Any, min_running: Any) -> Any:
        model = nnx.merge(graphdef, params)
        return decode.decode_segment(model, state, steps, min_running, segment)

    def insert(
        state: cache.State, prefix: Any, last: Any, slots: Any, per_prompt: Any
    ) -> cache.State:
        rest = dataclasses.replace(state, common=[], suffix=[])
        rest = insert_program(rest, prefix, last, slots, per_prompt)
        return dataclasses.replace(rest, common=state.common, suffix=state.suffix)

    def admit(params: Any, state: cache.State, new: Any, sample: Any) -> Any:
        rest, emitted = admit_program(params, cache.without_caches(state), new, sample)
        caches = {name: getattr(state, name) for name in ("common", "prefix", "suffix")}
        return dataclasses.replace(rest, **caches), emitted

    def empty() -> cache.State:
        return cache.empty_state(target.cfg, shape.P, shape.R, shape.S, shape.T)

    return Programs(
        empty=jax.jit(empty, out_shardings=formats and dataclasses.replace(formats, common=[])),
        insert=insert,
        admit=admit,
        segment=Segment(
            jax.jit(
                run_segment,
                donate_argnums=1,
                out_shardings=formats and (formats, _replicated(target)),
            )
        ),
    )


@functools.lru_cache(maxsize=256)
def _insert_program(target: Target, P: int, R: int, S: int) -> Callable[..., Any]:
    formats = state_formats(target, Shape(P, R, S, 1))
    formats = formats and dataclasses.replace(formats, suffix=[])
    return jax.jit(decode.insert, donate_argnums=0, out_shardings=formats)


@functools.lru_cache(maxsize=64)
def _admit_program(graphdef: nnx.GraphDef, target: Target, P: int, R: int) -> Callable[..., Any]:
    formats = state_formats(target, Shape(P, R, 1, 1))
    formats = formats and (cache.without_caches(formats), _replicated(target))

    def admit(params: Any, state: cache.State, new: Any, sample: Any) -> Any:
        return decode.admit(nnx.merge(graphdef, params), state, new, sample)

    return jax.jit(admit, donate_argnums=1, out_shardings=formats)


def _replicated(target: Target) -> jax.sharding.NamedSharding | None:
    """Returns the sharding of arrays that every host of a pod reads."""
    return None if target.mesh is None else sharding.named(target.mesh)


@functools.lru_cache(maxsize=64)
def prefill_program(graphdef: nnx.GraphDef) -> Callable[..., Any]:
    """Returns prefill(params, tokens_BxS, lengths_B) -> (prefix, last_BxD)."""
    return jax.jit(lambda params, *prompts: prefill.prefill(nnx.merge(graphdef, params), *prompts))


@functools.lru_cache(maxsize=64)
def prefill_after_common_program(graphdef: nnx.GraphDef) -> Callable[..., Any]:
    """Returns prefill(params, common, tokens_BxS, lengths_B, common_lengths_B) -> (prefix, last).

    The tokens are the prompts' own, after the common prefix (`prefill.prefill`).
    """
    return jax.jit(
        lambda params, common, tokens, lengths, common_lengths: prefill.prefill(
            nnx.merge(graphdef, params), tokens, lengths, common, common_lengths
        )
    )


@functools.lru_cache(maxsize=64)
def prefill_groups_program(graphdef: nnx.GraphDef, length: int) -> Callable[..., Any]:
    """Returns prefill(params, tokens_BxS, lengths_BxF, *common) -> (prefix, last).

    length: of `prefill.prefill_groups`. common: its last two arguments; none without a common
    prefix.
    """
    return jax.jit(
        lambda params, tokens, lengths, *common: prefill.prefill_groups(
            nnx.merge(graphdef, params), tokens, lengths, length, *common
        )
    )


def common_of(prefix: Any, target: Target, shape: Shape) -> tuple[Any, bool]:
    """Returns the prefix of one prompt as a state's common prefix, and whether it is finite."""
    formats = state_formats(target, shape)
    program = _common_program(formats and tuple(formats.common), _replicated(target))
    common, finite = program(prefix)
    return common, bool(jax.device_get(finite))


@functools.lru_cache(maxsize=64)
def _common_program(formats: Any, replicated: Any) -> Callable[..., Any]:
    def common(prefix: Any) -> Any:
        pairs = jax.tree.map(lambda a: a[:, 0], prefix)
        finite = [jnp.isfinite(a).all() for a in jax.tree.leaves(pairs)]
        return pairs, jnp.stack(finite).all()

    return jax.jit(common, out_shardings=formats and (list(formats), replicated))


def resize(state: cache.State, target: Target, old: Shape, new: Shape) -> cache.State:
    """Returns the same rows with room for longer prompts (new.S) or more tokens (new.T).

    Frees the old caches. Replaces one array at a time, so that the peak is the new caches and one
    old array.
    """
    formats = state_formats(target, new)
    prefix, suffix, clock = list(state.prefix), list(state.suffix), state.clock
    top = max(k.shape[4] for k, _ in suffix)
    for i, (_, window) in enumerate(cache.layer_windows(target.cfg)):
        length = cache.prefix_length(new.S, window)
        if length != prefix[i][0].shape[3]:
            grow = _extend_prefix(length, formats and formats.prefix[i][0])
            keys, values = prefix[i]
            prefix[i] = _replace(grow, keys), _replace(grow, values)
        if new.T != old.T:
            length = cache.ring_length(new.T, window)
            grow = _extend_ring(length, formats and formats.suffix[i][0])
            keys, values = suffix[i]
            suffix[i] = (
                _replace(grow, keys, state.clock, top),
                _replace(grow, values, state.clock, top),
            )
    if new.T != old.T:
        clock = jax.device_put(np.int32(top), state.clock.sharding)
    return dataclasses.replace(state, prefix=prefix, suffix=suffix, clock=clock)


def _replace(program: Callable[..., Any], array: KV, *args: Any) -> KV:
    """Returns program(array, ...) and frees the array."""
    result = jax.block_until_ready(program(array, *args))
    for leaf in jax.tree.leaves(array):
        leaf.delete()
    return result


@functools.lru_cache(maxsize=256)
def _extend_prefix(length: int, out_sharding: Any) -> Callable[..., Any]:
    return jax.jit(lambda a: cache.extend_prefix(a, length), out_shardings=out_sharding)


@functools.lru_cache(maxsize=256)
def _extend_ring(length: int, out_sharding: Any) -> Callable[..., Any]:
    return jax.jit(
        lambda a, clock, top: cache.extend_ring(a, clock, top, length), out_shardings=out_sharding
    )


def empty_on(programs: Programs, params: Any, target: Target) -> cache.State:
    """Returns the empty state on the weights' device.

    Committed, as the programs' results are: a program compiles again for other arguments.
    """
    state, weights = programs.empty(), jax.tree.leaves(params)[0]
    one_device = isinstance(weights, jax.Array) and len(weights.devices()) == 1
    if target.mesh is not None or target.platform == "tpu" or not one_device:
        return state
    weights_sharding = weights.sharding
    if isinstance(weights_sharding, NamedSharding):  # a mesh of this device
        weights_sharding = NamedSharding(weights_sharding.mesh, PartitionSpec())
    return jax.device_put(state, weights_sharding)


def end_rows(state: cache.State, slots: Sequence[int]) -> cache.State:
    """Empties the rows of cancelled requests, which the device still counts as running."""
    finish_PxR = np.array(jax.device_get(state.finish_PxR))
    finish_PxR[list(slots)] = cache.EMPTY
    finish = jax.device_put(finish_PxR, state.finish_PxR.sharding)
    return dataclasses.replace(state, finish_PxR=finish)


def clear_nonfinite(state: cache.State, target: Target, shape: Shape) -> cache.State:
    """Sets non-finite ring values to 0.

    A masked slot has weight 0, but 0 times NaN would be NaN in the next sample of the row.
    """
    formats = state_formats(target, shape)
    program = _clear_program(formats and formats.suffix[0][0])
    return dataclasses.replace(state, suffix=[tuple(program(a) for a in kv) for kv in state.suffix])


@functools.lru_cache(maxsize=64)
def _clear_program(out_sharding: Any) -> Callable[..., Any]:
    def clear(ring: KV) -> KV:
        return jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a)), ring)

    return jax.jit(clear, donate_argnums=0, out_shardings=out_sharding)


def state_formats(target: Target, shape: Shape) -> Any:
    """Returns a state of the sharding, and on a TPU the memory layout, of every array.

    None if the defaults apply: one device that is not a TPU.
    """
    mesh, tpu = target.mesh, target.platform == "tpu"
    if mesh is None and not tpu:
        return None
    prefix_axes, suffix_axes = cache.cache_axes(shape.P, shape.R)

    def format(path: Any, leaf: Any) -> Any:
        field = path[0].name
        caches = {"common": cache.COMMON_AXES, "prefix": prefix_axes, "suffix": suffix_axes}
        axes = caches.get(field, (None,) * leaf.ndim)[: leaf.ndim]  # scales lack the last axis
        leaf_sharding: Any = SingleDeviceSharding(jax.devices()[0])
        if mesh is not None:
            leaf_sharding = sharding.named(mesh, *axes)
        if field == "suffix" and tpu:
            return Format(cache.ring_layout(shape.P, leaf.ndim), leaf_sharding)
        return leaf_sharding

    return jax.tree_util.tree_map_with_path(format, abstract_state(target.cfg, shape))


def abstract_state(cfg: TransformerConfig, shape: Shape) -> cache.State:
    """Returns the shapes and dtypes of a state, the common prefix included."""
    sizes = dataclasses.astuple(shape)
    return jax.eval_shape(lambda: cache.empty_state(cfg, *sizes))


def abstract_programs(
    graphdef: nnx.GraphDef,
    params: Any,
    cfg: TransformerConfig,
    shape: Shape,
    segment: int,
    mesh: Mesh,
    prompts: int = 1,
) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Returns (name, jitted function, abstract arguments) of prefill and of a decode segment.

    For compiling without devices; call it under `jax.set_mesh(mesh)`.

    Args:
      params: jax.ShapeDtypeStruct with shardings.
      prompts: number of prompts of a prefill.
    """
    target = Target(cfg, mesh, sharding.platform())
    state = jax.tree.map(
        lambda x, format: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=format),
        abstract_state(cfg, shape),
        state_formats(target, shape),
    )
    count = jax.ShapeDtypeStruct((), jnp.int32)
    tokens, lengths = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((prompts, shape.S), (prompts,)))
    programs = build(graphdef, target, shape, segment)
    prefill: Any = (prefill_program(graphdef), (params, tokens, lengths))
    if shape.Z:
        arguments = (params, state.common, tokens, lengths, lengths)
        prefill = prefill_after_common_program(graphdef), arguments
    return [
        ("prefill", *prefill),
        ("decode", programs.segment.program, (params, state, count, count)),
    ]
