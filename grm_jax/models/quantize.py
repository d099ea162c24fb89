"""Int8 weights: symmetric, one float32 scale per output channel. They are not trained.

A product casts the int8 values to the activations' dtype inside the product, which is exact, and
multiplies the result by the scales:

    x_BxD @ w_DxF  ~  (x_BxD @ values_DxF) * scale_F       scale_F = max over D of |w_DxF| / 127

So a decode step reads one byte per weight from HBM. `qwix` cannot serve these layers: it finds a
weight by the identity of the array that reaches `einsum` or `dot_general`, and here a weight is
first cast, sliced out of a scanned stack or gathered by token, or reaches `tensordot`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grm_jax.models import cpu

KINDS = ("int8",)
LARGEST = 127


def check_kind(kind: str | None, label: str = "quantize") -> None:
    """Raises ValueError for an unknown kind of quantisation, of weights or caches.

    label: the setting that the error names.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"{label} = {kind!r:.80} is unknown: use {', '.join(KINDS)}, or omit it")


def quantize(w: jax.Array, contracted: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns (int8 values of w's shape, float32 scales without the contracted axes).

    A channel of zeros has the scale 1. contracted: axes that the product sums over.
    """
    w = w.astype(jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=contracted, keepdims=True) / LARGEST
    scale = jnp.where(scale == 0, 1.0, scale)
    values = jnp.clip(jnp.round(w / scale), -LARGEST, LARGEST).astype(jnp.int8)
    return values, jnp.squeeze(scale, contracted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Array:
    """Int8 values and their float32 scales.

    A weight's scales have the last axes of a product's result. Keys and values in a cache have one
    scale per token and KV head (`quantize_tokens`).
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def quantize_tokens(a: jax.Array) -> Int8Array:
    """Returns keys or values (..., H) in int8, with scales (...)."""
    return Int8Array(*quantize(a, (-1,)))


def hadamard(a: jax.Array) -> jax.Array:
    """Multiplies (..., H) by an orthonormal Hadamard matrix; unchanged unless H is a power of two.

    The rotation preserves dot products. Keys can have a few large coordinates, as in Qwen 2.5,
    whose keys have biases. The rotation spreads them over all coordinates, so that the scale of a
    token is smaller (QuaRot, arXiv 2404.00456).
    """
    H = a.shape[-1]
    if H & (H - 1):
        return a
    rotated = jnp.matmul(
        a.astype(jnp.float32), _hadamard_matrix(H), precision=jax.lax.Precision.HIGHEST
    )
    return rotated.astype(a.dtype)


def _hadamard_matrix(H: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < H:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(H))


def dequantize_tokens(a: Any, dtype: Any) -> jax.Array:
    """Returns keys or values of a cache in `dtype`; float ones are returned unchanged."""
    if not isinstance(a, Int8Array):
        return a
    return (a.values * a.scale[..., None]).astype(dtype)


class Int8Weight(nnx.Module):
    """A quantised weight of a model; `weight[...]` is its `Int8Array`.

    The scales have the weight's logical axes but the contracted ones.

    Args:
      weight: float.
      contracted: axes that the product sums over, counted from the last: (-2,) for a matrix.
    """

    def __init__(self, weight: nnx.Param, contracted: tuple[int, ...]) -> None:
        axes = weight.get_metadata()["axes"]
        kept = [axis for i, axis in enumerate(axes) if i - len(axes) not in contracted]
        values, scale = quantize(weight[...], contracted)
        self.values = nnx.Param(values, axes=axes, contracted=contracted)
        self.scale = nnx.Param(scale, axes=tuple(kept), contracted=contracted)

    def __getitem__(self, index: Any) -> Int8Array:
        return Int8Array(self.values[...], self.scale[...])


def is_quantized(variable: nnx.Variable) -> bool:
    """Returns whether a variable is the values or the scales of an `Int8Weight`."""
    return "contracted" in variable.get_metadata()


@functools.lru_cache(maxsize=256)
def quantizer(contracted: tuple[int, ...], shardings: Any) -> Callable[..., Any]:
    """Returns `quantize`, jitted. shardings: of values and scales."""
    return jax.jit(functools.partial(quantize, contracted=contracted), out_shardings=shardings)


def product(function: Callable[..., jax.Array], x: jax.Array, w: Int8Array) -> jax.Array:
    """Returns float32 function(x, w.values) * w.scale.

    function: jnp.matmul, or another product that takes `preferred_element_type`.
    """
    values = w.values.astype(x.dtype)
    out = (
        cpu.matmul(function, x, values)
        if cpu.on_cpu()
        else function(x, values, preferred_element_type=jnp.float32)
    )
    return out * w.scale


def frozen_product(function: Callable[..., jax.Array], x: jax.Array, w: Int8Array) -> jax.Array:
    """Computes `product` in x's dtype; x has a gradient, the weight has none."""
    return _frozen_product(function, x, w.values, w.scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_product(
    function: Callable[..., jax.Array], x: jax.Array, values: jax.Array, scale: jax.Array
) -> jax.Array:
    return product(function, x, Int8Array(values, scale)).astype(x.dtype)


def _frozen_product_backward(function: Callable[..., jax.Array], saved: Any, g: jax.Array) -> Any:
    # g is multiplied by the scales first, so that both factors of the product are in x's dtype.
    x, values, scale = saved
    _, product_of = jax.vjp(lambda x: function(x, values.astype(x.dtype)), x)
    return *product_of((g * scale).astype(x.dtype)), None, None


_frozen_product.defvjp(
    lambda function, *factors: (_frozen_product(function, *factors), factors),
    _frozen_product_backward,
)


def lookup(table_VxD: Int8Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Returns rows (..., D) of a table with one scale per row, in `dtype`."""
    rows = table_VxD.values[tokens].astype(jnp.float32)
    return (rows * table_VxD.scale[tokens][..., None]).astype(dtype)
