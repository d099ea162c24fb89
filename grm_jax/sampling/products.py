"""The products of decode attention with the caches: common prefix, prefix and ring, float or int8.

Axes as in `cache.py`; G query heads per KV head, M = R * G, W slots of any cache. Logits and sums
are float32.

An int8 cache is cast inside the product, which is exact. The scale of a slot multiplies the slot's
logit, or its weight in the sum of the values. So a step reads one byte per number from HBM.
"""

from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models import cpu
from grm_jax.models.attention import MASKED, soft_cap
from grm_jax.models.quantize import Int8Array

KV = jax.Array | Int8Array  # keys or values of a cache


def cap_and_mask(
    logits_PxKxRxGxW: jax.Array, visible_PxRxW: jax.Array, cap: float | None
) -> jax.Array:
    """Soft-caps logits (None: no cap). Slots that a row does not attend to get `MASKED`."""
    return jnp.where(visible_PxRxW[:, None, :, None], soft_cap(logits_PxKxRxGxW, cap), MASKED)


def prefix_logits(q_PxKxRxGxH: jax.Array, k_PxKxSxH: KV) -> jax.Array:
    """Returns logits (P, K, R, G, S): one matrix product for all rows of a prompt."""
    P, K, R, G, H = q_PxKxRxGxH.shape
    q_PxKxMxH = q_PxKxRxGxH.reshape(P, K, R * G, H)
    return _logits("pkmh,pksh->pkms", q_PxKxMxH, k_PxKxSxH).reshape(P, K, R, G, -1)


def prefix_values(p_PxKxRxGxS: jax.Array, v_PxKxSxH: KV, dtype: Any) -> jax.Array:
    """Returns sums of values (P, K, R, G, H). p: float32 weights. dtype: of the product."""
    P, K, R, G, S = p_PxKxRxGxS.shape
    p_PxKxMxS = p_PxKxRxGxS.reshape(P, K, R * G, S)
    return _sums("pkms,pksh->pkmh", p_PxKxMxS, v_PxKxSxH, dtype).reshape(P, K, R, G, -1)


def common_logits(
    q_PxKxRxGxH: jax.Array, k_KxZxH: KV, seen_PxRxZ: jax.Array, cap: float | None
) -> jax.Array:
    """Returns soft-capped, masked logits (K, P, R, G, Z): one matrix product for all rows.

    The KV heads come first, so that the logits are not transposed. seen: slots that a row attends
    to.
    """
    logits_KxPxRxGxZ = _logits("kprgh,kzh->kprgz", q_PxKxRxGxH.swapaxes(0, 1), k_KxZxH)
    return jnp.where(seen_PxRxZ[None, :, :, None], soft_cap(logits_KxPxRxGxZ, cap), MASKED)


def common_values(p_KxPxRxGxZ: jax.Array, v_KxZxH: KV, dtype: Any) -> jax.Array:
    """Returns sums of values (P, K, R, G, H), as `prefix_values`."""
    return _sums("kprgz,kzh->kprgh", p_KxPxRxGxZ, v_KxZxH, dtype).swapaxes(0, 1)


def ring_logits(q_PxKxRxGxH: jax.Array, k_PxKxRxTxH: KV) -> jax.Array:
    """Returns logits (P, K, R, G, T): each row has its own keys."""
    return _logits("pkrgh,pkrth->pkrgt", q_PxKxRxGxH, k_PxKxRxTxH)


def ring_values(p_PxKxRxGxT: jax.Array, v_PxKxRxTxH: KV, dtype: Any) -> jax.Array:
    """Returns sums of values (P, K, R, G, H), as `prefix_values`."""
    return _sums("pkrgt,pkrth->pkrgh", p_PxKxRxGxT, v_PxKxRxTxH, dtype)


def _logits(spec: str, q: jax.Array, k: KV) -> jax.Array:
    if isinstance(k, Int8Array):
        logits = _einsum(spec, q, k.values)
        return logits * _spread(k.scale, logits.ndim)
    return _einsum(spec, q, k)


def _sums(spec: str, p: jax.Array, v: KV, dtype: Any) -> jax.Array:
    """Returns float32 sums of values. p: float32 weights, cast to `dtype` before the product."""
    if isinstance(v, Int8Array):
        return _einsum(spec, (p * _spread(v.scale, p.ndim)).astype(dtype), v.values)
    return _einsum(spec, p.astype(dtype), v)


def _spread(scale: jax.Array, ndim: int) -> jax.Array:
    """Returns scales (..., W) as `ndim` axes, with axes of size 1 before the last."""
    return scale.reshape(*scale.shape[:-1], *[1] * (ndim - scale.ndim), scale.shape[-1])


def _einsum(spec: str, x: jax.Array, cached: jax.Array) -> jax.Array:
    if cpu.on_cpu() and spec in _CPU:
        return _CPU[spec](x, cached)
    return jnp.einsum(spec, x, cached.astype(x.dtype), preferred_element_type=jnp.float32)


_CPU = {"pkrgh,pkrth->pkrgt": cpu.ring_logits, "pkrgt,pkrth->pkrgh": cpu.ring_values}
