"""Weights of a transformer: how they are declared, and their products with activations.

Axes: B batch, L length, D model width, F ffn width, N query heads, H head width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grm_jax.models import cpu, lora, quantize
from grm_jax.models.config import TransformerConfig


def param(
    rngs: nnx.Rngs,
    cfg: TransformerConfig,
    stack: tuple[int, ...],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    fan_in: int,
) -> nnx.Param:
    """Declares a parameter: shape, logical axes, normal initializer.

    stack: the scanned axis, which precedes the others. fan_in: 1 over the variance; 0 gives zeros.
    """
    full = (*stack, *shape)
    dtype = jnp.dtype(cfg.param_dtype)
    value = (
        jax.random.normal(rngs.params(), full, dtype) * fan_in**-0.5
        if fan_in
        else jnp.zeros(full, dtype)
    )
    return nnx.Param(value, axes=("layers",) * len(stack) + tuple(axes))


def weight(
    rngs: nnx.Rngs,
    cfg: TransformerConfig,
    stack: tuple[int, ...],
    target: str,
    *args: Any,
    contracted: tuple[int, ...],
) -> Any:
    """Declares the weight of a product, as `param`; a `QuantizedWeight` if the config quantises.

    target: PEFT's name of the weight; a `LoraWeight` if the config adapts it. contracted: axes that
    the product sums over, from the end.
    """
    key = lora.adapter_key(rngs)
    array = param(rngs, cfg, stack, *args)
    base: Any = array
    if cfg.quantize:
        kind = "int8" if target == "embed_tokens" else cfg.quantize
        base = quantize.QuantizedWeight(array, contracted, kind)
    if cfg.lora is None or target not in cfg.lora.targets:
        return base
    return lora.LoraWeight(base, contracted, cfg.lora, key)


TO_HEADS = functools.partial(jnp.einsum, "bld,dnh->blnh")
# Not einsum: its contraction over (h, n), in alphabetical order, would transpose the weights.
FROM_HEADS = functools.partial(jnp.tensordot, axes=2)


def project(product: Callable[..., jax.Array], x: jax.Array, w: Any) -> jax.Array:
    """Computes a product of activations and a weight in the activations' dtype."""
    if isinstance(w, lora.LoraArray):
        return project(product, x, w.base) + lora.low_rank(x, w, project)
    if isinstance(w, quantize.QuantizedArray):
        return quantize.frozen_product(product, x, w)
    w = w.astype(x.dtype)
    if cpu.on_cpu() and x.dtype == jnp.bfloat16:
        return cpu.project(product, x, w)
    return product(x, w)


def dense(x: jax.Array, w_DxF: Any) -> jax.Array:
    """Computes x (..., D) @ w_DxF in x's dtype."""
    if isinstance(w_DxF, lora.LoraArray):
        return dense(x, w_DxF.base) + lora.low_rank(x, w_DxF, project)
    if isinstance(w_DxF, quantize.QuantizedArray):
        return project(jnp.matmul, x, w_DxF)
    w_DxF = w_DxF.astype(x.dtype)
    return cpu.dense(x, w_DxF) if cpu.on_cpu() else x @ w_DxF
