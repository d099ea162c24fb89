"""The training state: one pytree of parameters, optimizer state, step and RNG, and where each of its arrays lives.

Parameters are NNX states (`graphdef, params = nnx.split(model)`): float32 master weights that carry their logical axes, which the
optimizer's moments inherit. Matrices are cast to the compute dtype once, at the start of a step.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from grm_jax import sharding
from grm_jax.models import abstract_model, build_model
from grm_jax.sharding import is_variable, with_shardings
from grm_jax.sharding import state_shardings as shardings


def given(params):
    """Parameters that were given as they are, or as a function that makes them: such are kept by nobody but the one who asked."""
    return params() if callable(params) else params


def init_params(cfg, mesh, seed):
    """Random parameters, each created where it lives."""
    _, abstract = abstract_model(cfg, mesh)
    init = jax.jit(
        lambda: nnx.state(build_model(cfg, nnx.Rngs(seed))), out_shardings=shardings(abstract, mesh)
    )
    return init()


def compute_params(params, dtype):
    """Parameters in the compute dtype; norm scales, and the scalar head, stay in the dtype they rest in."""
    dtype = jnp.dtype(dtype)

    def cast(v):
        return (
            v if "norm" in v.get_metadata()["axes"] else jax.tree.map(lambda x: x.astype(dtype), v)
        )

    return jax.tree.map(cast, params, is_leaf=is_variable)


def make_state(params, tx, seed):
    """A training state at step 0. Traceable: `jax.eval_shape` of it is the abstract state."""
    return {
        "params": params,
        "opt_state": tx.init(params),
        "step": jnp.zeros((), jnp.int32),
        "rng": jax.random.key_data(jax.random.key(seed)),
    }


def abstract_state(abstract_params, tx, mesh):
    """The training state as ShapeDtypeStructs with shardings."""
    shapes = jax.eval_shape(lambda p: make_state(p, tx, 0), abstract_params)
    return with_shardings(shapes, shardings(shapes, mesh))


def init_state(params, tx, mesh, seed):
    """A training state at step 0 around given parameters (which it takes over: their buffers may be donated later)."""
    target = shardings(jax.eval_shape(lambda p: make_state(p, tx, seed), params), mesh)
    return jax.jit(lambda p: make_state(p, tx, seed), out_shardings=target)(params)


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(batch, mesh):
    """Rows (the leading axis) over `data` and `fsdp`; scalars replicated."""

    def place(x):
        return (
            sharding.named(mesh, "batch", *(None,) * (x.ndim - 1)) if x.ndim else replicated(mesh)
        )

    return jax.tree.map(place, batch)


def abstract_batch(batch_shapes, mesh):
    """{name: (shape, dtype)} as ShapeDtypeStructs with shardings."""
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch_shapes.items()
    }
    return with_shardings(batch, batch_shardings(batch, mesh))


def put_batch(batch, mesh):
    """Numpy arrays of the whole batch as global arrays; each process hands over only the rows of its devices.

    Raises ValueError if the mesh does not divide the rows.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, x in batch.items():
        if x.ndim and x.shape[0] % ways:
            raise ValueError(
                f"batch {name!r} has {x.shape[0]} rows, which mesh data x fsdp = {ways} does not divide: "
                f"use a multiple of {ways} rows"
            )

    def put(x, place):
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    return jax.tree.map(put, batch, batch_shardings(batch, mesh))
