"""Converts weights of a training state for decoding, leaf by leaf, without a second full copy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from grm_jax.models import Transformer, abstract_model, cpu, quantize
from grm_jax.models.config import TransformerConfig
from grm_jax.sharding import device_mesh, is_variable, state_shardings

# Decoding splits weights over `tensor` only. Prompts and rows use the other axes, and a weight
# split over `fsdp`, as in training, would be gathered again for every token.
SAMPLING_AXES = ("tensor",)


def for_sampling(state: Any, mesh: Mesh | None, dtype: str, donate: bool = False) -> Any:
    """Returns a state cast to `dtype` and sharded for decoding (`SAMPLING_AXES`).

    Norm scales keep their dtype, as in training, and so do quantised weights with their scales.
    Leaves that already match are returned, not copied.

    Args:
      mesh: None for a single device.
      donate: deletes each source leaf before the next one is moved, so that the peak is one copy
        and one leaf.
    """

    def move(variable: nnx.Variable, sharding: NamedSharding | None = None) -> nnx.Variable:
        old = variable[...]
        kept = "norm" in variable.get_metadata()["axes"] or quantize.is_quantized(variable)
        target = old.dtype if kept else jnp.dtype(dtype)
        placed = sharding is None or old.sharding.is_equivalent_to(sharding, old.ndim)
        if old.dtype == target and placed:
            return variable
        value = _mover(target, sharding)(old)
        if donate:
            jax.block_until_ready(value)
            old.delete()
        return variable.replace(value)

    if mesh is None:
        return jax.tree.map(move, state, is_leaf=is_variable)
    shardings = state_shardings(state, mesh, SAMPLING_AXES)
    return jax.tree.map(move, state, shardings, is_leaf=is_variable)


@functools.lru_cache(maxsize=256)
def _mover(dtype: Any, sharding: NamedSharding | None) -> Any:
    """Cached, because weights move after every training step and a new function would recompile."""
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)


def quantized(model: Transformer, kind: str) -> Transformer:
    """Returns a copy for decoding, quantised weight by weight on the devices.

    The weights are those that `checkpoints.load(quantize=kind)` quantises. Weights that stay
    float, such as norms and adapters, are shared with `model`, which stays as it is.
    """
    graphdef, state = _quantized_graph(model.cfg.replace(quantize=kind))
    mesh = device_mesh()
    places = None if mesh is None else state_shardings(state, mesh, SAMPLING_AXES)
    shardings = {} if places is None else dict(nnx.to_flat_state(places))
    params = dict(nnx.to_flat_state(nnx.state(model)))
    arrays: dict[tuple[Any, ...], jax.Array] = {}
    variables = dict(nnx.to_flat_state(state))
    for path, variable in variables.items():
        values, scale = (*path[:-1], "values"), (*path[:-1], "scale")
        if path in params:
            arrays[path] = params[path][...]
        elif path == values:
            where = (shardings[values], shardings[scale]) if shardings else None
            program = quantize.quantizer(variable, where)
            arrays[values], arrays[scale] = program(params[path[:-1]][...])
    flat = [(path, variable.replace(arrays[path])) for path, variable in variables.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


@functools.lru_cache(maxsize=8)
def _quantized_graph(cfg: TransformerConfig) -> tuple[nnx.GraphDef, Any]:
    return abstract_model(cfg)


def for_decoding(model: Transformer) -> Transformer:
    """Returns the model for the decode loop under the mesh in context.

    Weights are in the activations' dtype and split over `tensor` only; on a CPU, large layer stacks
    are unstacked. A model that already matches is returned unchanged.
    """
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, for_sampling(state, device_mesh(), model.cfg.dtype))
    return cpu.prepare_for_decoding(model) if cpu.on_cpu() else model
