"""JAX's splash-attention TPU kernel under our mesh, for prefill and training.

The kernel masks by slot. That equals masking by position if positions grow by one per slot inside a
segment, as they do in padded and packed batches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec

from grm_jax.sharding import spec

BLOCK = 512


def splash_attention(
    q_BxLxNxH: jax.Array,
    k_BxLxKxH: jax.Array,
    v_BxLxKxH: jax.Array,
    segment_ids_BxL: jax.Array,
    window: int | None,
    cap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """Computes causal attention inside segments; queries are already scaled. Returns o_BxLxNxH.

    Raises:
      ValueError: the length is not a multiple of 128.
    """
    B, L, N, H = q_BxLxNxH.shape
    if L % 128:
        raise ValueError(
            f"splash attention needs a length that is a multiple of 128, not {L}: "
            "pad the batch, or set attention='xla'"
        )
    mesh = jax.sharding.get_abstract_mesh()
    sharded = not mesh.empty and mesh.size > 1
    heads = N // mesh.shape["tensor"] if sharded else N
    kernel = _kernel(L, heads, window, cap, interpret)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> Any:
        groups = q.shape[2] // k.shape[2]  # the kernel takes one KV head per query head

        def row(q: jax.Array, k: jax.Array, v: jax.Array, s: jax.Array) -> Any:
            q, k, v = (
                x.transpose(1, 0, 2)
                for x in (q, jnp.repeat(k, groups, axis=1), jnp.repeat(v, groups, axis=1))
            )
            return kernel(q, k, v, splash.SegmentIds(q=s, kv=s)).transpose(1, 0, 2)

        return jax.vmap(row)(q, k, v, segments)

    if sharded:
        heads_spec = spec(("batch", "length", "heads", "head_dim"))
        kv_spec = spec(("batch", "length", "kv_heads", "head_dim"))
        segment_spec = PartitionSpec(*spec(("batch", "length")))
        local = jax.shard_map(
            local,
            in_specs=(heads_spec, kv_spec, kv_spec, segment_spec),
            out_specs=heads_spec,
            check_vma=False,
        )
    return local(q_BxLxNxH, k_BxLxKxH, v_BxLxKxH, segment_ids_BxL.astype(jnp.int32))


def _kernel(L: int, heads: int, window: int | None, cap: float | None, interpret: bool) -> Any:
    # The left bound counts tokens before the query: a window of W, the query included, reaches W -
    # 1 back.
    mask = (
        masks.CausalMask((L, L))
        if window is None or window >= L
        else masks.LocalMask((L, L), (window - 1, 0), 0)
    )
    b = next(size for size in (BLOCK, 256, 128) if L % size == 0)
    blocks = splash.BlockSizes(
        block_q=b,
        block_kv=b,
        block_kv_compute=b,
        block_q_dkv=b,
        block_kv_dkv=b,
        block_kv_dkv_compute=b,
        block_q_dq=b,
        block_kv_dq=b,
    )
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )
