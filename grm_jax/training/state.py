"""The training state: one pytree of parameters, optimizer state, step and RNG, with shardings.

Parameters are NNX states (`graphdef, params = nnx.split(model)`): float32 master weights with
logical axes, which the optimizer's moments inherit. With LoRA they are the adapters alone, and
programs take the frozen parameters as their last argument. Matrices are cast to the compute dtype
once, at the start of a step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from grm_jax.models import TransformerConfig, abstract_model, build_model, lora
from grm_jax.models.quantize import is_quantized
from grm_jax.sharding import batch_shards, is_variable, named, state_shardings, with_shardings

State = dict[str, Any]


def init_params(cfg: TransformerConfig, mesh: Mesh, seed: int) -> Any:
    """Returns random parameters, each created on the devices of its shards."""
    _, abstract = abstract_model(cfg, mesh)
    init = jax.jit(
        lambda: nnx.state(build_model(cfg, nnx.Rngs(seed))),
        out_shardings=state_shardings(abstract, mesh),
    )
    return init()


def compute_params(params: Any, dtype: Any) -> Any:
    """Casts parameters to the compute dtype, but quantised weights, norm scales, scalar heads."""
    dtype = jnp.dtype(dtype)

    def cast(v: nnx.Variable) -> nnx.Variable:
        is_kept = "norm" in v.get_metadata()["axes"] or is_quantized(v)
        return v if is_kept else jax.tree.map(lambda x: x.astype(dtype), v)

    return jax.tree.map(cast, params, is_leaf=is_variable)


def split(params: Any) -> tuple[Any, Any]:
    """Returns (the parameters that training changes, the frozen others).

    Without LoRA all are trained, and the others are an empty tree.
    """
    variables = jax.tree.leaves(params, is_leaf=is_variable)
    if any(isinstance(v, lora.LoraParam) for v in variables):
        return lora.adapters(params), lora.frozen(params)
    return params, nnx.State({})


def join(params: Any, frozen: Any) -> Any:
    """Returns all parameters of a model: the inverse of `split`."""
    return nnx.merge_state(params, frozen) if jax.tree.leaves(frozen) else params


def make_state(params: Any, tx: optax.GradientTransformation, seed: int) -> State:
    """Returns a training state at step 0. Traceable: `jax.eval_shape` gives the abstract state.

    Raises ValueError for quantised parameters, which have no gradient.
    """
    if any(map(is_quantized, filter(is_variable, jax.tree.leaves(params, is_leaf=is_variable)))):
        raise ValueError("quantised weights cannot be trained: load the model without quantize")
    return {
        "params": params,
        "opt_state": tx.init(params),
        "step": jnp.zeros((), jnp.int32),
        "rng": jax.random.key_data(jax.random.key(seed)),
    }


def abstract_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """Returns the training state of abstract parameters as ShapeDtypeStructs with shardings."""
    shapes = jax.eval_shape(lambda p: make_state(p, tx, 0), params)
    return with_shardings(shapes, state_shardings(shapes, mesh))


def init_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh, seed: int) -> State:
    """Returns a training state at step 0 that owns `params`: an update donates their buffers."""
    shardings = state_shardings(jax.eval_shape(lambda p: make_state(p, tx, seed), params), mesh)
    return jax.jit(lambda p: make_state(p, tx, seed), out_shardings=shardings)(params)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Shards the leading axis (sequences) over `data` and `fsdp`; scalars are replicated."""

    def place(x: Any) -> NamedSharding:
        axes = ("batch", *[None] * (x.ndim - 1)) if x.ndim else ()
        return named(mesh, *axes)

    return jax.tree.map(place, batch)


def abstract_batch(batch_shapes: Mapping[str, tuple[tuple[int, ...], Any]], mesh: Mesh) -> Any:
    """Returns {name: (shape, dtype)} as ShapeDtypeStructs with shardings."""
    batch = {name: jax.ShapeDtypeStruct(*x) for name, x in batch_shapes.items()}
    return with_shardings(batch, batch_shardings(batch, mesh))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns NumPy arrays of the whole batch into global arrays.

    Each process copies only the sequences of its own devices.

    Raises:
      ValueError: the mesh does not divide the number of sequences.
    """
    shards = batch_shards(mesh)
    for name, x in batch.items():
        if x.ndim and x.shape[0] % shards:
            raise ValueError(
                f"batch {name!r} has {x.shape[0]} rows, which mesh data x fsdp = {shards} does not "
                f"divide: use a multiple of {shards} rows"
            )

    def put(x: np.ndarray, place: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    return jax.tree.map(put, batch, batch_shardings(batch, mesh))
