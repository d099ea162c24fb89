"""Builds models: the only module that names a model class."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from grm_jax import sharding
from grm_jax.models import lora, quantize
from grm_jax.models.config import TransformerConfig
from grm_jax.models.transformer import Transformer


def build_model(config: TransformerConfig, rngs: nnx.Rngs) -> Transformer:
    """Builds a randomly initialised model of this configuration."""
    return Transformer(config, rngs)


def abstract_model(
    config: TransformerConfig, mesh: Any = None, mesh_axes: Sequence[str] = sharding.AXES
) -> tuple[nnx.GraphDef, Any]:
    """Returns (graphdef, params) of a model without allocating it.

    params: an nnx.State of jax.ShapeDtypeStruct, with shardings if there is a mesh, so that
    programs compile for devices that this machine does not have. mesh_axes: as in
    `state_shardings`.

    Raises:
      ValueError: the mesh does not divide the model.
    """
    if mesh is not None:
        sharding.check_fits(config, mesh)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    if mesh is not None:
        shardings = sharding.state_shardings(params, mesh, mesh_axes)
        params = sharding.with_shardings(params, shardings)
    return graphdef, params


def init_adapters(config: TransformerConfig, mesh: Any = None, seed: int = 0) -> nnx.State:
    """Returns new adapters, and the random head of a reward model (`lora.adapters`)."""
    _, params = abstract_model(config, mesh)
    shardings = None if mesh is None else sharding.state_shardings(lora.adapters(params), mesh)
    init = lambda: lora.adapters(nnx.state(build_model(config, nnx.Rngs(seed))))
    return jax.jit(init, out_shardings=shardings)()


@functools.lru_cache(maxsize=64)
def weight_bytes(config: TransformerConfig) -> int:
    """Returns the bytes of a model's weights in use: of `config.dtype`, or quantised with scales.

    Adapters count as float32.
    """
    size = jax.numpy.dtype(config.dtype).itemsize
    if not config.quantize and config.lora is None:
        return config.num_params * size
    _, params = abstract_model(config.replace(param_dtype=config.dtype))
    return sum(quantize.array_bytes(x.shape, x.dtype) for x in jax.tree.leaves(params))
