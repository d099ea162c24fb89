"""Loads a checkpoint into a sharded model; each process reads the bytes of its own shards."""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from grm_jax.checkpoints.tensor_map import ParamSource, axis_sizes, disk_shape, tensor_map
from grm_jax.checkpoints.tensors import Reader, aligned_empty
from grm_jax.model_files import damage_of, one_line
from grm_jax.models import Transformer, abstract_model, init_adapters, lora
from grm_jax.models.config import TransformerConfig
from grm_jax.models.quantize import is_quantized, quantizer
from grm_jax.sharding import check_fits

Bounds = tuple[tuple[int, int], ...]  # (start, stop) on every axis
Progress = Callable[[int, int], None]  # called with (bytes done, total bytes) of this process

# One unit of work for a thread: large enough to transpose 256 rows at a time (shorter runs waste
# cache lines), small enough to stay in cache.
PIECE_ROWS, PIECE_BYTES = 256, 8 << 20
MAX_PIECE_BYTES = 32 << 20
MOST_NAMES = 6  # tensors of one kind of fault in an error
READERS = 12  # threads; most of them wait for the disk while one or two transpose


class Target(NamedTuple):
    """How a parameter is placed.

    Attributes:
      quantize: (float array) -> (values, scales) of a weight that is quantised.
      cast: whether the parameter takes the model's dtype; else it keeps the one on disk.
    """

    shape: tuple[int, ...]
    sharding: Any
    quantize: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None
    cast: bool = True


def flat_params(state: Any) -> dict[str, nnx.Variable]:
    """Returns {"units.0.attn.q_DxNxH": variable} of a model's state."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def load_model(
    reader: Reader,
    cfg: TransformerConfig,
    mesh: jax.sharding.Mesh | None = None,
    param_dtype: str | None = None,
    zero_params: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Transformer:
    """Reads the parameters of `cfg` from an open checkpoint onto the mesh (None: the first device).

    With `cfg.lora` the weights are bases, and the adapters are new ones, without effect.

    Args:
      param_dtype: None keeps each tensor's dtype on disk.
      zero_params: parameters that are set to zero instead of read.

    Raises:
      ValueError: the missing, unexpected and misshapen tensors, before anything is read.
    """
    if mesh is not None:
        check_fits(cfg, mesh)
    sources = tensor_map(cfg, reader.format)
    sources = {path: source for path, source in sources.items() if path not in zero_params}
    with damage_of(reader.path):  # before anything of the model's size is computed
        check_names(reader, cfg, sources)
    graphdef, state = abstract_model(cfg, mesh)
    first_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = _targets(flat_params(state), first_device, reader.format == "hf_int8")
    loaded = _read_all(reader, axis_sizes(cfg), sources, targets, param_dtype, progress)
    for path in zero_params:
        shape, sharding = targets[path][:2]
        zeros = np.zeros(shape, np.dtype(param_dtype or cfg.param_dtype))
        loaded[path] = jax.make_array_from_callback(shape, sharding, zeros.__getitem__)
    if cfg.lora is not None:
        adapters = flat_params(init_adapters(cfg, mesh)).items()
        loaded |= {path: v[...] for path, v in adapters if path not in loaded}
    flat = [
        (path, variable.replace(loaded[lora.base_path(".".join(map(str, path)))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _targets(
    params: dict[str, nnx.Variable], first_device: Any, stored_int8: bool
) -> dict[str, Target]:
    """Returns the target of every parameter on disk, by its path.

    Args:
      params: as `flat_params` returns them.
      stored_int8: the checkpoint has the values and scales of int8 weights.
    """
    params = {
        lora.base_path(path): variable
        for path, variable in params.items()
        if not isinstance(variable, lora.LoraParam)
    }

    def sharding(path: str) -> Any:
        return params[path].get_value().sharding or first_device

    targets = {}
    for path, variable in params.items():
        if stored_int8 or not is_quantized(variable):
            cast = not is_quantized(variable)
            targets[path] = Target(variable.shape, sharding(path), cast=cast)
        elif path.endswith(".values"):
            path = path.removesuffix(".values")
            places = sharding(f"{path}.values"), sharding(f"{path}.scale")
            quantize = quantizer(variable, places)
            targets[path] = Target(variable.shape, places[0], quantize, cast=False)
    return targets


def check_names(reader: Reader, cfg: TransformerConfig, sources: dict[str, ParamSource]) -> None:
    """Raises ValueError with the missing, unexpected and misshapen tensors of a checkpoint.

    A checkpoint of another width is of another model, so the error has the sizes alone.
    """
    layers, width = _size(reader, sources)
    if layers and width and width != cfg.d_model:
        raise ValueError(
            f"{reader.path} has {layers} layers of width {width}; {cfg.name} wants "
            f"{cfg.num_layers} of {cfg.d_model}.\n"
            f"Give the weights of {cfg.name}, or name the model that these weights are of."
        )
    sizes, tensors = axis_sizes(cfg), reader.tensors
    shapes = {t.name: disk_shape(t, sizes) for source in sources.values() for t in source.tensors}
    missing = sorted(shapes.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - shapes.keys())
    wrong = [
        f"{name} is {tensors[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        f"{problem}: {separator.join(_first(names))}"
        for problem, separator, names in (
            ("missing", ", ", missing),
            ("unexpected", ", ", unexpected),
            ("wrong shapes", "; ", wrong),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{reader.path} does not hold {cfg.name} "
            f"({cfg.num_layers} layers of width {cfg.d_model}). {'. '.join(problems)}"
        )


def _size(reader: Reader, sources: dict[str, ParamSource]) -> tuple[int, int]:
    """Returns the number of layers and the width of a checkpoint, 0 where its names do not tell."""
    final = sources["final_norm.scale"].tensors[0].name
    first = next(s for path, s in sources.items() if path.endswith("pre_attn_norm.scale")).tensors
    layer = re.compile(re.escape(first[0].name).replace("0", r"\d+", 1))
    shape = reader.tensors[final].shape if final in reader.tensors else ()
    return sum(map(bool, map(layer.fullmatch, reader.tensors))), shape[0] if shape else 0


def _first(names: list[str]) -> list[str]:
    """Returns the first names, and how many others there are."""
    rest = len(names) - MOST_NAMES
    names = [f"{one_line(name):.200}" for name in names]
    return [*names[:MOST_NAMES], f"and {rest} more"] if rest > 0 else names


def _read_all(
    reader: Reader,
    sizes: dict[str, int],
    sources: dict[str, ParamSource],
    targets: dict[str, Target],
    param_dtype: str | None,
    progress: Progress | None,
) -> dict[str, jax.Array]:
    """Returns the arrays by parameter path; of a quantised weight, its values and its scales.

    A weight is quantised as soon as it is on the devices, so that the float weights that exist at
    once are those of two parameters.
    """
    done = 0
    out: dict[str, jax.Array] = {}
    dtypes = {
        path: np.dtype(
            (targets[path].cast and param_dtype) or reader.tensors[source.tensors[0].name].dtype
        )
        for path, source in sources.items()
    }
    shards = {path: _shards(*targets[path][:2]) for path in sources}
    total = sum(
        dtypes[path].itemsize * math.prod(stop - start for start, stop in bounds)
        for path in sources
        for bounds in shards[path]
    )
    with ThreadPoolExecutor(max(READERS, os.cpu_count() or 1)) as pool:
        for path, source in sources.items():
            shape, sharding, quantize, _ = targets[path]
            buffers: dict[Bounds, np.ndarray] = {}
            pieces: list[Callable[[], None]] = []
            for bounds in shards[path]:
                buffers[bounds] = aligned_empty(tuple(b - a for a, b in bounds), dtypes[path])
                slices = tuple(slice(*bound) for bound in bounds)
                pieces += _pieces(reader, source, sizes, slices, buffers[bounds])
            with damage_of(reader.path):
                for task in [pool.submit(piece) for piece in pieces]:
                    task.result()
            if out:  # at most two arrays wait on the host for their transfer
                jax.block_until_ready(out[next(reversed(out))])
            array = jax.make_array_from_callback(
                shape,
                sharding,
                lambda index, shape=shape, buffers=buffers: buffers[_bounds(index, shape)],
            )
            if quantize is None:
                out[path] = array
            else:
                out[f"{path}.values"], out[f"{path}.scale"] = quantize(array)
                array.delete()
            done += sum(buffer.nbytes for buffer in buffers.values())
            if progress is not None:
                progress(done, total)
    return out


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _shards(shape: tuple[int, ...], sharding: Any) -> list[Bounds]:
    """Returns the bounds of this process's shards, replicas once."""
    indices = sharding.addressable_devices_indices_map(tuple(shape)).values()
    return list(dict.fromkeys(_bounds(index, shape) for index in indices))


def _pieces(
    reader: Reader,
    source: ParamSource,
    sizes: dict[str, int],
    bounds: tuple[slice, ...],
    out: np.ndarray,
) -> Iterator[Callable[[], None]]:
    """Yields functions that together fill `out`, the shard of one parameter at `bounds`.

    A stacked array (U, D, N, H) is filled layer by layer: out[u] is viewed in the axis order of the
    disk, say N, H, D, and each piece of the view is read into.
    """
    axes = source.axes
    for tensor in source.tensors:
        layer_out, layer_bounds = out, bounds
        if tensor.unit is not None:
            if not bounds[0].start <= tensor.unit < bounds[0].stop:
                continue
            layer_out, layer_bounds = out[tensor.unit - bounds[0].start], bounds[1:]
        data, letters = reader.tensors[tensor.name], tensor.axes.replace(",", "")
        # A digit stands for a whole dimension on disk; letters may be flattened together there.
        view = tuple(data.shape[i] if a.isdigit() else sizes[a] for i, a in enumerate(letters))
        index: list[Any] = [int(a) if a.isdigit() else layer_bounds[axes.index(a)] for a in letters]
        target = layer_out.transpose([axes.index(a) for a in letters if not a.isdigit()])
        rows, cut = target.shape[0], next(i for i, a in enumerate(letters) if not a.isdigit())
        first = index[cut].start
        row_bytes = max(1, target[:1].size * data.dtype.itemsize)
        step = max(1, min(max(PIECE_ROWS, PIECE_BYTES // row_bytes), MAX_PIECE_BYTES // row_bytes))
        for i in range(0, rows, step):
            index[cut] = slice(first + i, first + min(i + step, rows))
            yield functools.partial(data.read_into, view, tuple(index), target[i : i + step])
