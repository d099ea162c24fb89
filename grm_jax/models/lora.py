"""LoRA and QLoRA: low-rank adapters beside frozen weights, float or quantised (arXiv 2106.09685).

    x @ w  ->  x @ base + (x @ a) @ b * alpha / rank

Only `a` and `b` are trained. `b` starts at zero, so a new model computes what its base computes.
`qwix` cannot add adapters to these layers, for the reason in `models.quantize`.

Axes: U units of the scanned stack, r rank.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grm_jax.models.quantize import QuantizedArray, QuantizedWeight, dequantize
from grm_jax.sharding import constrain

# PEFT's names of the weights that can have adapters.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEAD = "score_D"  # scalar head of a reward model; the base has none, so it is trained too


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters of a model.

    Attributes:
      rank: r, the inner size of a @ b.
      alpha: a @ b is multiplied by alpha / rank.
      targets: the weights that have adapters, from TARGETS.

    Raises ValueError for a rank below 1, an alpha that is not above 0, and unknown or no targets.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"LoRA rank={self.rank}: use 1 or more")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"LoRA alpha={self.alpha}: use a number above 0")
        if unknown := [name for name in self.targets if name not in TARGETS]:
            raise ValueError(f"LoRA target {unknown[0]!r:.80} is unknown: use {', '.join(TARGETS)}")
        if not self.targets:
            raise ValueError(f"LoRA targets are empty: use some of {', '.join(TARGETS)}")


class LoraParam(nnx.Param):
    """A matrix of an adapter, float32."""


@dataclasses.dataclass(frozen=True)
class LoraArray:
    """The arrays of a `LoraWeight` as a layer uses them, without the stacked axis."""

    base: jax.Array | QuantizedArray
    a: jax.Array
    b: jax.Array
    scale: float


class LoraWeight(nnx.Module):
    """A frozen weight and its adapter; `weight[...]` is its `LoraArray`.

    Args:
      base: the weight.
      contracted: its axes that the product sums over, counted from the last: (-2,) for a matrix.
      config: of the adapters.
      key: random key of `a`.

    Attributes:
      base: (U, inputs, outputs), an nnx.Param or a `QuantizedWeight`.
      a: (U, inputs, r), normal with variance 1 / inputs.
      b: (U, r, outputs), zeros.
      scale: alpha / rank.
    """

    def __init__(
        self,
        base: nnx.Param | QuantizedWeight,
        contracted: tuple[int, ...],
        config: LoraConfig,
        key: jax.Array,
    ) -> None:
        weight = base.values if isinstance(base, QuantizedWeight) else base
        axes, shape = weight.get_metadata()["axes"], weight.shape
        start, stop = min(contracted) + len(shape), max(contracted) + 1 + len(shape)
        a_shape = (*shape[:stop], config.rank)
        b_shape = (*shape[:start], config.rank, *shape[stop:])
        a = jax.random.normal(key, a_shape, jnp.float32) * math.prod(shape[start:stop]) ** -0.5
        self.base = base
        self.a = LoraParam(a, axes=(*axes[:stop], "lora_rank"))
        self.b = LoraParam(
            jnp.zeros(b_shape, jnp.float32), axes=(*axes[:start], "lora_rank", *axes[stop:])
        )
        self.scale = config.alpha / config.rank

    def __getitem__(self, index: Any) -> LoraArray:
        return LoraArray(self.base[...], self.a[...], self.b[...], self.scale)


def adapter_key(rngs: nnx.Rngs) -> jax.Array:
    """Returns a key for an adapter without drawing from `rngs`.

    The other weights are therefore those of the model without LoRA.
    """
    stream = rngs["params"]
    return jax.random.fold_in(jax.random.fold_in(stream.key[...], stream.count[...]), 1)


def low_rank(x: jax.Array, w: LoraArray, multiply: Callable[..., jax.Array]) -> jax.Array:
    """Computes the adapter's part of a product, (x @ a) @ b * scale, in x's dtype.

    Args:
      x: (B, L, inputs).
      w: the weight; its base is not used.
      multiply: (product, x, w) -> product(x, w), such as `weights.project`.
    """
    x_BxLxr = multiply(_OVER_AXES[w.a.ndim - 1], x, w.a)
    x_BxLxr = constrain(x_BxLxr, "batch", "length", "lora_rank")
    return multiply(_OVER_AXES[1], x_BxLxr, w.b) * jnp.asarray(w.scale, x.dtype)


# Number of contracted axes -> product.
_OVER_AXES = {axes: functools.partial(jnp.tensordot, axes=axes) for axes in (1, 2)}


def base_path(path: str) -> str:
    """Returns the path of a base weight in the model without LoRA; other paths are unchanged."""
    return path.replace(".base", "")


def is_trained(path: tuple[Any, ...], variable: Any) -> bool:
    """Returns whether LoRA trains a variable: an adapter, or the scalar head."""
    return isinstance(variable, LoraParam) or path[-1] == HEAD


def adapters(params: nnx.State) -> nnx.State:
    """Returns the variables that LoRA trains: the adapters, and the head of a reward model."""
    return nnx.filter_state(params, is_trained)


def frozen(params: nnx.State) -> nnx.State:
    """Returns the variables that LoRA does not train."""
    return nnx.filter_state(params, lambda path, variable: not is_trained(path, variable))


def merge_weights(model: Any) -> Any:
    """Returns the model without LoRA whose weights are base + a @ b * scale.

    Sums are computed in float32. Quantised weights are dequantised to `cfg.param_dtype`; the others
    keep their dtype. Float weights without an adapter are shared with `model`.
    """
    cfg = model.cfg.replace(lora=None, quantize=None)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: type(model)(cfg, nnx.Rngs(0))))
    params = {path: variable for path, variable in nnx.to_flat_state(nnx.state(model))}
    scale = model.cfg.lora.alpha / model.cfg.lora.rank if model.cfg.lora else 0.0

    def merged(path: tuple[Any, ...]) -> jax.Array:
        if path in params:
            return params[path][...]
        adapter = [params[*path, name][...] for name in "ab" if (*path, name) in params]
        base = (*path, "base") if adapter else path
        if base in params:
            return _sum_of(params[base][...].sharding)(params[base][...], *adapter, scale)
        values, scales = params[*base, "values"], params[*base, "scale"]
        add = _sum_of(values[...].sharding, values.get_metadata()["contracted"], cfg.param_dtype)
        return add((values[...], scales[...]), *adapter, scale)

    flat = [(path, v.replace(merged(path))) for path, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


@functools.lru_cache(maxsize=64)
def _sum_of(sharding: Any, contracted: tuple[int, ...] = (), dtype: str | None = None) -> Any:
    """Returns a jitted function (base, [a, b,] scale) -> merged weight.

    Args:
      sharding: of the result.
      contracted: of a quantised base, which is (values, scales); empty for a float base.
      dtype: of the result; default the base's.
    """

    def merge(base: Any, *adapter: Any) -> jax.Array:
        if contracted:
            values, scales = base
            base32 = dequantize(values, scales, contracted)
        else:
            base32 = base.astype(jnp.float32)
        *matrices, scale = adapter
        if matrices:
            a, b = matrices
            # One adapter, or one for each of U units.
            product = functools.partial(jnp.tensordot, axes=1, precision="highest")
            stacked = a.ndim + b.ndim - 2 > base32.ndim
            base32 += (jax.vmap(product) if stacked else product)(a, b) * scale
        return base32.astype(dtype or base.dtype)

    return jax.jit(merge, out_shardings=sharding)
