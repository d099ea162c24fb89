"""What only XLA's CPU backend needs: the same mathematics in forms that it compiles to faster code.

`on_cpu` decides while a program is traced, by the platform that the program is compiled for. A
program that is compiled for a TPU slice on a machine without TPUs takes the TPU's branch.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grm_jax import sharding

UNSTACK_BYTES = 4 << 20  # a layer stack of this size no longer fits a core's cache


def on_cpu() -> bool:
    """Returns whether the program being traced is compiled for CPUs."""
    return sharding.platform() == "cpu"


_PRODUCTS = contextvars.ContextVar("cpu_products", default=True)


@contextlib.contextmanager
def products(enabled: bool) -> Iterator[None]:
    """Sets `float32_products` while a model is traced, from `TransformerConfig.cpu_products`."""
    token = _PRODUCTS.set(enabled)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def float32_products(*arrays: jax.Array) -> bool:
    """Returns whether to use the float32 forms of attention and logits: on CPUs, unless disabled.

    Their sums have the same terms as the plain forms, and may round differently.
    """
    return on_cpu() and _PRODUCTS.get() and all(x.dtype == jnp.float32 for x in arrays)


def query_chunk(chunk: int, length: int) -> int:
    """Returns the number of queries of `length` whose attention to compute at once, at most chunk.

    On a CPU few enough that their logits stay in its caches, and few enough chunks to compile soon.
    """
    return min(chunk, max(128, length // 8)) if on_cpu() and length >= 512 else chunk


def matmul(product: Callable[..., jax.Array], x: jax.Array, w: jax.Array) -> jax.Array:
    """Computes a product of activations (B, D), (B, L, D) or (B, L, N, H) and a weight in float32.

    The CPU backend has kernels for bfloat16 factors, a float32 result and at least two rows. For a
    bfloat16 result it first converts the weights to float32, and holds them so during a decode
    loop; a single row takes several times as long as two.

    product: jnp.matmul, or another that takes `preferred_element_type`.
    """
    one_row = x.dtype == jnp.bfloat16 and set(x.shape[: min(2, x.ndim - 1)]) == {1}
    rows = jnp.concatenate([x, x]) if one_row else x
    out = product(rows, w, preferred_element_type=jnp.float32)
    return out[:1] if one_row else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(product: Callable[..., jax.Array], x: jax.Array, w: jax.Array) -> jax.Array:
    """Computes `matmul` in x's dtype, with the gradient of the plain product."""
    return matmul(product, x, w).astype(x.dtype)


project.defvjp(
    lambda product, x, w: (project(product, x, w), (x, w)),
    lambda product, factors, g: jax.vjp(product, *factors)[1](g),
)


@jax.custom_vjp
def dense(x: jax.Array, w_DxF: jax.Array) -> jax.Array:
    """Computes x (..., D) @ w_DxF, with a gradient of w that transposes the narrower factor.

    JAX would transpose the gradient of the result, which is the wide factor in an MLP. The CPU
    backend then recomputes everything that it is made from, against the memory order, in two fifths
    of an update's time.
    """
    return matmul(jnp.matmul, x, w_DxF).astype(x.dtype)


def _dense_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    x, w_DxF = residuals
    (D, F), contract = w_DxF.shape, (((0,), (0,)), ((), ()))
    x_MxD, g_MxF = x.reshape(-1, D), g.reshape(-1, F)
    grad_w_DxF = (
        jax.lax.dot_general(x_MxD, g_MxF, contract)
        if D <= F
        else jax.lax.dot_general(g_MxF, x_MxD, contract).T
    )
    return g @ w_DxF.T, grad_w_DxF


dense.defvjp(lambda x, w_DxF: (dense(x, w_DxF), (x, w_DxF)), _dense_backward)


@jax.custom_vjp
def logits(x: jax.Array, table_VxD: jax.Array) -> jax.Array:
    """Computes x (..., D) @ table_VxD.T, with a gradient of the table as in `dense`."""
    return jnp.einsum("...d,vd->...v", x, table_VxD)


def _logits_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> Any:
    x, table_VxD = residuals
    x_MxD, g_MxV = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    grad_DxV = jax.lax.dot_general(x_MxD, g_MxV, (((0,), (0,)), ((), ())))
    return g @ table_VxD, grad_DxV.T


logits.defvjp(lambda x, table_VxD: (logits(x, table_VxD), (x, table_VxD)), _logits_backward)


def _products(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Multiplies matrices (B, K, ., .) over one axis of each, 2 or 3; free axes stay in order."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))))


# Attention in float32. Of the two factors of a gradient that sums over queries, the one of width H
# is transposed, and no product has a result with the queries last. The compiler would otherwise
# write each chunk's logits three times against the memory order, once in the forward pass.
@jax.custom_vjp
def attention_logits(q_BxKxMxH: jax.Array, k_BxKxSxH: jax.Array) -> jax.Array:
    """Computes einsum("bkmh,bksh->bkms")."""
    return _products(q_BxKxMxH, k_BxKxSxH, 3, 3)


attention_logits.defvjp(
    lambda q, k: (_products(q, k, 3, 3), (q, k)),
    lambda qk, g: (_products(g, qk[1], 3, 2), _products(qk[0], g, 2, 2).swapaxes(2, 3)),
)


@jax.custom_vjp
def attention_values(p_BxKxMxS: jax.Array, v_BxKxSxH: jax.Array) -> jax.Array:
    """Computes einsum("bkms,bksh->bkmh")."""
    return _products(p_BxKxMxS, v_BxKxSxH, 3, 2)


attention_values.defvjp(
    lambda p, v: (_products(p, v, 3, 2), (p, v)),
    lambda pv, g: (_products(g, pv[1], 3, 3), _products(g, pv[0], 2, 2).swapaxes(2, 3)),
)


# One small matrix product per batch row, P * K * R of them: the CPU backend runs these several
# times slower than sums over the products.
def ring_logits(q_PxKxRxGxH: jax.Array, k_PxKxRxTxH: jax.Array) -> jax.Array:
    """Computes einsum("pkrgh,pkrth->pkrgt") in float32."""
    products = q_PxKxRxGxH[..., None, :].astype(jnp.float32) * k_PxKxRxTxH[:, :, :, None].astype(
        jnp.float32
    )
    return jnp.sum(products, axis=-1)


def ring_values(p_PxKxRxGxT: jax.Array, v_PxKxRxTxH: jax.Array) -> jax.Array:
    """Computes einsum("pkrgt,pkrth->pkrgh") in float32."""
    products = p_PxKxRxGxT[..., None].astype(jnp.float32) * v_PxKxRxTxH[:, :, :, None].astype(
        jnp.float32
    )
    return jnp.sum(products, axis=-2)


def prepare_for_decoding(model: Any) -> Any:
    """Unstacks the layers of a model that has at least UNSTACK_BYTES of them.

    In a decode loop on a CPU, slicing a layer out of a stack copies it at every step.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model.units)))
    return model if model.cfg.num_units == 1 or size < UNSTACK_BYTES else unstack(model)


def unstack(model: Any) -> Any:
    """Returns the same network with one unit that holds all of its layers; copies their weights."""
    cfg = model.cfg
    graphdef = _graph(model.__class__, cfg.replace(pattern=cfg.pattern * cfg.num_units + cfg.tail))
    units, tail, size = nnx.state(model.units), nnx.state(model.tail), len(cfg.pattern)
    layers = [
        jax.tree.map(lambda x, unit=unit: x[unit][None], units[place])
        for unit in range(cfg.num_units)
        for place in range(size)
    ] + [jax.tree.map(lambda x: x[None], tail[place]) for place in range(len(cfg.tail))]
    state = nnx.state(model)
    for name in ("units", "tail"):
        state.pop(name, None)
    state["units"] = nnx.State(dict(enumerate(layers)))
    return nnx.merge(graphdef, state)


@functools.cache
def _graph(kind: Any, cfg: Any) -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: kind(cfg, nnx.Rngs(0))))
