"""Builds models: the only module that names a model class."""

from collections.abc import Sequence
from typing import Any

from flax import nnx

from grm_jax import sharding
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
