"""Weights for decoding, taken from a training state leaf by leaf: never two full copies at once."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from grm_jax.models import Transformer, cpu
from grm_jax.sharding import state_shardings

# Decoding splits weights over `tensor` only: prompts and rows use the other axes, and a weight split over
# `fsdp`, as in training, would be gathered again for every token.
SAMPLING_AXES = ("tensor",)


def for_sampling(state, mesh, dtype: str, donate: bool = False):
    """A state cast to `dtype` and laid out for decoding (`SAMPLING_AXES`); norm scales stay in the dtype they rest in, as in training.

    mesh: None for a single device. One leaf is cast and moved at a time; with `donate` its source is freed before the next, so the peak is one
    copy and one leaf. A leaf that is as it should be is handed on, not copied.
    """

    def move(variable, sharding=None):
        old = variable[...]
        target = old.dtype if "norm" in variable.get_metadata()["axes"] else jnp.dtype(dtype)
        if old.dtype == target and (
            sharding is None or old.sharding.is_equivalent_to(sharding, old.ndim)
        ):
            return variable
        value = _mover(target, sharding)(old)
        if donate:
            jax.block_until_ready(value)
            old.delete()
        return variable.replace(value)

    is_variable = lambda v: isinstance(v, nnx.Variable)
    if mesh is None:
        return jax.tree.map(move, state, is_leaf=is_variable)
    return jax.tree.map(
        move, state, state_shardings(state, mesh, SAMPLING_AXES), is_leaf=is_variable
    )


@functools.lru_cache(maxsize=256)
def _mover(dtype, sharding: NamedSharding | None):
    """Kept, because weights move again after every training step: a new function would be compiled again."""
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)


def for_decoding(model: Transformer) -> Transformer:
    """The model as the decode loop wants it, under the mesh in context: weights in the activations' dtype, split over `tensor` alone.

    On a CPU layers of some size stand one by one as well: there a slice of a stack is a copy at every step. A model that is so already comes
    back as it is.
    """
    mesh = jax.sharding.get_mesh()
    graphdef, state = nnx.split(model)
    model = nnx.merge(
        graphdef,
        for_sampling(state, None if mesh.empty or mesh.size == 1 else mesh, model.cfg.dtype),
    )
    return cpu.prepare_for_decoding(model) if cpu.on_cpu() else model
