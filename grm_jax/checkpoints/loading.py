"""From a checkpoint on disk to a sharded model: each process reads the bytes of its own shards, into the memory where they stay."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from grm_jax.checkpoints.names import Part, Place, axis_sizes, disk_shape, places
from grm_jax.checkpoints.tensors import Reader, Tensor, aligned_empty
from grm_jax.models.build import abstract_model
from grm_jax.models.config import TransformerConfig
from grm_jax.models.transformer import Transformer

Bounds = tuple[tuple[int, int], ...]  # (start, stop) on every axis
Progress = Callable[[int, int], None]  # (bytes done, bytes in all) of this process

# One piece of work: long enough to transpose 256 rows at a time (shorter runs waste cache lines), small enough to stay in cache.
PIECE_ROWS, PIECE_BYTES = 256, 8 << 20
MAX_PIECE_BYTES = 32 << 20
READERS = 12  # threads, whatever the cores: most of them wait for the disk while one or two turn what has come


def flat_params(state) -> dict[str, nnx.Variable]:
    """{"units.0.attn.q_DxNxH": variable} of a model's state."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def load_model(
    reader: Reader,
    cfg: TransformerConfig,
    mesh=None,
    param_dtype: str | None = None,
    fresh: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Transformer:
    """Reads `cfg`'s parameters from an open checkpoint onto the mesh (None: the first device).

    param_dtype None keeps each tensor's dtype on disk. `fresh` names parameters that start at zero instead of being read.
    Raises ValueError with every missing, unexpected and misshapen tensor at once, before anything is read.
    """
    graphdef, state = abstract_model(cfg, mesh)
    where = {path: place for path, place in places(cfg, reader.form).items() if path not in fresh}
    check_names(reader, cfg, where)
    variables = flat_params(state)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding_of = {path: v.get_value().sharding or device for path, v in variables.items()}
    loaded = _read_all(reader, cfg, where, variables, sharding_of, param_dtype, progress)
    for path in fresh:
        zeros = np.zeros(variables[path].shape, np.dtype(param_dtype or cfg.param_dtype))
        loaded[path] = jax.make_array_from_callback(
            zeros.shape, sharding_of[path], zeros.__getitem__
        )
    flat = [
        (path, variable.replace(loaded[".".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def check_names(reader: Reader, cfg: TransformerConfig, where: dict[str, Place]) -> None:
    """Raises ValueError listing every missing, unexpected and misshapen tensor of a checkpoint, all in one message."""
    sizes = axis_sizes(cfg)
    wanted = {
        part.name: disk_shape(part, sizes) for place in where.values() for part in place.parts
    }
    missing = sorted(wanted.keys() - reader.tensors.keys())
    unexpected = sorted(reader.tensors.keys() - wanted.keys())
    wrong = [
        f"{name} is {reader.tensors[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in reader.tensors and tuple(reader.tensors[name].shape) != shape
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if wrong:
        problems.append("wrong shapes: " + "; ".join(wrong))
    if problems:
        raise ValueError(
            f"{reader.path} does not hold a {cfg.name} ({cfg.num_layers} layers of width {cfg.d_model}). "
            + ". ".join(problems)
        )


def _read_all(
    reader, cfg, where, variables, sharding_of, param_dtype, progress
) -> dict[str, jax.Array]:
    sizes, done = axis_sizes(cfg), 0
    out: dict[str, jax.Array] = {}
    dtypes = {
        path: np.dtype(param_dtype or reader.tensors[where[path].parts[0].name].dtype)
        for path in where
    }
    total = sum(
        dtypes[path].itemsize * int(np.prod(shard_shape)) * len(unique)
        for path in where
        for shard_shape, unique in [_shards(variables[path].shape, sharding_of[path])]
    )
    with ThreadPoolExecutor(max(READERS, os.cpu_count() or 1)) as pool:
        for path, place in where.items():
            shape, sharding = variables[path].shape, sharding_of[path]
            buffers: dict[Bounds, np.ndarray] = {}
            work: list[Callable[[], None]] = []
            for index in _shards(shape, sharding)[1]:
                bounds = tuple(slice(a, b) for a, b in index)
                buffers[index] = aligned_empty(tuple(b - a for a, b in index), dtypes[path])
                work += _pieces(reader, place, sizes, bounds, buffers[index])
            for task in [pool.submit(piece) for piece in work]:
                task.result()
            if out:
                jax.block_until_ready(
                    out[next(reversed(out))]
                )  # at most two arrays wait on the host for their transfer
            shard = functools.partial(_shard, shape, buffers)
            out[path] = jax.make_array_from_callback(shape, sharding, shard)
            done += sum(b.nbytes for b in buffers.values())
            if progress is not None:
                progress(done, total)
    return out


def _shard(shape, buffers: dict[Bounds, np.ndarray], index) -> np.ndarray:
    return buffers[_bounds(index, shape)]


def _bounds(index, shape) -> Bounds:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _shards(shape, sharding):
    """(shape of one shard, the bounds of this process's shards; replicas of one shard counted once)."""
    indices = sharding.addressable_devices_indices_map(tuple(shape)).values()
    return sharding.shard_shape(tuple(shape)), list(
        dict.fromkeys(_bounds(index, shape) for index in indices)
    )


def _pieces(reader: Reader, place: Place, sizes, bounds: tuple[slice, ...], out: np.ndarray):
    """Functions that together fill `out`, the shard of one of our arrays at `bounds`.

    A stacked array (U, D, N, H) is filled layer by layer: out[u] is looked at in the order of the axes on disk, say N, H, D, and each piece
    of that view is read into.
    """
    for part in place.parts:
        target, own = out, bounds
        if part.unit is not None:
            if not bounds[0].start <= part.unit < bounds[0].stop:
                continue
            target, own = out[part.unit - bounds[0].start], bounds[1:]
        yield from _part_pieces(reader.tensors[part.name], part, place.axes, sizes, own, target)


def _part_pieces(
    tensor: Tensor, part: Part, axes: str, sizes, bounds: tuple[slice, ...], out: np.ndarray
):
    letters = part.axes.replace(",", "")
    # A digit stands for a whole dimension of the tensor, so its size is found at the same place; the others may be flattened on disk.
    view = tuple(tensor.shape[i] if a.isdigit() else sizes[a] for i, a in enumerate(letters))
    index: list[Any] = [int(a) if a.isdigit() else bounds[axes.index(a)] for a in letters]
    out = out.transpose([axes.index(a) for a in letters if not a.isdigit()])
    rows, cut = out.shape[0], next(i for i, a in enumerate(letters) if not a.isdigit())
    first = index[cut].start
    row_bytes = max(1, out[:1].size * tensor.dtype.itemsize)
    step = max(1, min(max(PIECE_ROWS, PIECE_BYTES // row_bytes), MAX_PIECE_BYTES // row_bytes))
    for i in range(0, rows, step):
        index[cut] = slice(first + i, first + min(i + step, rows))
        yield functools.partial(tensor.read_into, view, tuple(index), out[i : i + step])


def parameter_bytes(model) -> int:
    """Bytes of a model's parameters on this process's devices."""
    return sum(
        s.data.nbytes
        for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
        for s in leaf.addressable_shards
    )
