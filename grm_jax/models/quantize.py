"""Weights in int8 and int4: symmetric, with scales. They are not trained.

int8: one float32 scale per output channel. A product casts the values to the activations' dtype,
which is exact, and multiplies the result by the scales:

    x_BxD @ w_DxF  ~  (x_BxD @ values_DxF) * scale_F       scale_F = max over D of |w_DxF| / 127

int4: one bfloat16 scale per group of up to 32 values that a product sums over, because the largest
value of a whole channel leaves too few steps for the others. A product multiplies the values by
their scales in the activations' dtype first, piece by piece:

    x_BxD @ w_DxF  ~  x_BxD @ (values_DxF * scale_GxF)     scale_GxF = max in a group / 7

So a decode step reads one byte per weight from HBM, or 0.56. Embedding tables are int8 with
either. `qwix` cannot serve these layers: it finds a weight by the identity of the array that
reaches `einsum` or `dot_general`, and here a weight is first cast, sliced out of a scanned stack or
gathered by token, or reaches `tensordot`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grm_jax.models import cpu

KINDS = ("int8", "int4")
CACHE_KINDS = ("int8",)
LARGEST = {"int8": 127, "int4": 7}
GROUP = 32  # most values per scale of int4
# XLA writes the multiplied weight before the product reads it; a piece of this size stays in VMEM.
PIECE_BYTES = 32 << 20


def check_kind(kind: str | None, label: str = "quantize", kinds: tuple[str, ...] = KINDS) -> None:
    """Raises ValueError for an unknown kind of quantisation, of weights or caches.

    label: the setting that the error names.
    """
    if kind is not None and kind not in kinds:
        raise ValueError(f"{label} = {kind!r:.80} is unknown: use {', '.join(kinds)}, or omit it")


def array_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Returns the bytes of an array on a TPU, where two int4 values take one."""
    return math.prod(shape) * (1 if dtype == jnp.int4 else 2 * dtype.itemsize) // 2


def quantize(
    w: jax.Array, contracted: tuple[int, ...], kind: str = "int8"
) -> tuple[jax.Array, jax.Array]:
    """Returns (values of w's shape, scales).

    The scales of int8 lack the contracted axes. Those of int4 have w's axes; the last contracted
    one has its number of groups. Zeros have the scale 1.

    contracted: axes that the product sums over, counted from the last.
    """
    w = w.astype(jnp.float32)
    grouped = _split(w, max(contracted)) if kind == "int4" else w
    axes = (max(contracted),) if kind == "int4" else contracted
    largest = LARGEST[kind]
    scale = jnp.max(jnp.abs(grouped), axis=axes, keepdims=True) / largest
    scale = jnp.where(scale == 0, 1.0, scale)
    if kind == "int4":
        scale = scale.astype(jnp.bfloat16)
    values = jnp.clip(jnp.round(grouped / scale), -largest, largest).astype(kind)
    return values.reshape(w.shape), jnp.squeeze(scale, axes)


def _split(w: jax.Array, axis: int) -> jax.Array:
    """Returns w with an axis, counted from the last, split into (groups, values of a group)."""
    size = w.shape[axis]
    group = next(n for n in range(min(GROUP, size), 0, -1) if size % n == 0)
    place = w.ndim + axis
    return w.reshape(*w.shape[:place], size // group, group, *w.shape[place + 1 :])


def dequantize(
    values: jax.Array, scale: jax.Array, contracted: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Returns values times scales, which are those of `quantize`, in `dtype`."""
    if scale.ndim < values.ndim:
        return values.astype(dtype) * jnp.expand_dims(scale, contracted).astype(dtype)
    place = values.ndim + max(contracted)
    groups = scale.shape[place]
    split = (*values.shape[:place], groups, -1, *values.shape[place + 1 :])
    weight = values.reshape(split).astype(dtype) * jnp.expand_dims(scale, place + 1).astype(dtype)
    return weight.reshape(values.shape)


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4Array:
    """Values and scales of a weight.

    Attributes:
      contracted: axes that its product sums over, counted from the last.
      split: the axis of the model's width, counted from the last; no mesh splits it for decoding.
    """

    values: jax.Array
    scale: jax.Array
    contracted: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    split: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


QuantizedArray = Int8Array | Int4Array


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


class QuantizedWeight(nnx.Module):
    """A quantised weight of a model; `weight[...]` is its `Int8Array` or `Int4Array`.

    The scales have the weight's logical axes but the contracted ones. Groups of int4 are not split
    over devices.

    Args:
      weight: float.
      contracted: axes that the product sums over, counted from the last: (-2,) for a matrix.
      kind: one of KINDS.
    """

    def __init__(self, weight: nnx.Param, contracted: tuple[int, ...], kind: str) -> None:
        axes = weight.get_metadata()["axes"]
        places = [i - len(axes) for i in range(len(axes))]
        if kind == "int4":
            kept = [None if i == max(contracted) else axes[i] for i in places]
        else:
            kept = [axes[i] for i in places if i not in contracted]
        values, scale = quantize(weight[...], contracted, kind)
        self.values = nnx.Param(values, axes=axes, contracted=contracted, kind=kind)
        self.scale = nnx.Param(scale, axes=tuple(kept), contracted=contracted)

    def __getitem__(self, index: Any) -> QuantizedArray:
        values, scale, fields = self.values[...], self.scale[...], self.values.get_metadata()
        if fields["kind"] == "int4":
            split = fields["axes"].index("embed") - len(fields["axes"])
            return Int4Array(values, scale, fields["contracted"], split)
        return Int8Array(values, scale)


def is_quantized(variable: nnx.Variable) -> bool:
    """Returns whether a variable is the values or the scales of a `QuantizedWeight`."""
    return "contracted" in variable.get_metadata()


def quantizer(values: nnx.Variable, shardings: Any) -> Callable[..., Any]:
    """Returns `quantize` of a weight, jitted.

    Args:
      values: of its `QuantizedWeight`.
      shardings: of values and scales.
    """
    return _quantizer(*(values.get_metadata()[name] for name in ("contracted", "kind")), shardings)


@functools.lru_cache(maxsize=256)
def _quantizer(contracted: tuple[int, ...], kind: str, shardings: Any) -> Callable[..., Any]:
    program = functools.partial(quantize, contracted=contracted, kind=kind)
    return jax.jit(program, out_shardings=shardings)


def product(function: Callable[..., jax.Array], x: jax.Array, w: QuantizedArray) -> jax.Array:
    """Computes function(x, w) in float32.

    function: jnp.matmul, or another product that takes `preferred_element_type`.
    """
    if isinstance(w, Int4Array) and not cpu.on_cpu():
        return _int4_product(function, x, w, _num_pieces(w, x.dtype.itemsize))
    factor = _factor(w, x.dtype)
    out = (
        cpu.matmul(function, x, factor)
        if cpu.on_cpu()
        else function(x, factor, preferred_element_type=jnp.float32)
    )
    return out * w.scale if isinstance(w, Int8Array) else out


def _int4_product(
    function: Callable[..., jax.Array], x: jax.Array, w: Int4Array, pieces: int
) -> jax.Array:
    """Computes function(x, w) in float32, with equal pieces of the weight's axis `split`.

    That axis is contracted with x's last one, or it is the last one of the result.
    """
    size, place = w.shape[w.split], w.values.ndim + w.split
    part = lambda a, i: jax.lax.slice_in_dim(
        a, i * a.shape[place] // pieces, (i + 1) * a.shape[place] // pieces, axis=place
    )
    multiply = functools.partial(function, preferred_element_type=jnp.float32)
    outs = []
    for i in range(pieces):
        weight = dequantize(part(w.values, i), part(w.scale, i), w.contracted, x.dtype)
        whole = w.split not in w.contracted or pieces == 1
        piece = x if whole else x[..., i * size // pieces : (i + 1) * size // pieces]
        outs.append(multiply(piece, weight))
    if w.split in w.contracted:
        return sum(outs[1:], start=outs[0])
    return jnp.concatenate(outs, axis=-1)


def _num_pieces(w: Int4Array, itemsize: int) -> int:
    """Returns the fewest equal pieces of at most PIECE_BYTES on a device."""
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    size = math.prod(w.shape) * itemsize // tensor
    sizes = w.values.shape[w.split], w.scale.shape[w.split]
    fitting = (
        n
        for n in range(1, min(sizes) + 1)
        if size <= n * PIECE_BYTES and not any(s % n for s in sizes)
    )
    return next(fitting, 1)


def _factor(w: QuantizedArray, dtype: Any) -> jax.Array:
    """Returns the factor of x in `product`: the values of int8, the weight of int4."""
    if isinstance(w, Int8Array):
        return w.values.astype(dtype)
    return dequantize(w.values, w.scale, w.contracted, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def frozen_product(
    function: Callable[..., jax.Array], x: jax.Array, w: QuantizedArray
) -> jax.Array:
    """Computes `product` in x's dtype; x has a gradient, the weight has none."""
    return product(function, x, w).astype(x.dtype)


def _frozen_product_backward(function: Callable[..., jax.Array], saved: Any, g: jax.Array) -> Any:
    # g is multiplied by the scales first, so that both factors of the product are in x's dtype.
    x, w = saved
    _, product_of = jax.vjp(lambda x: function(x, _factor(w, x.dtype)), x)
    g = g * w.scale if isinstance(w, Int8Array) else g
    return *product_of(g.astype(x.dtype)), None


frozen_product.defvjp(
    lambda function, *factors: (frozen_product(function, *factors), factors),
    _frozen_product_backward,
)


def lookup(table_VxD: Int8Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Returns rows (..., D) of a table with one scale per row, in `dtype`."""
    rows = table_VxD.values[tokens].astype(jnp.float32)
    return (rows * table_VxD.scale[tokens][..., None]).astype(dtype)
