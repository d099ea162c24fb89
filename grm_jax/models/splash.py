"""JAX's splash-attention TPU kernel under our mesh, for prefill and training.

The kernel masks by slot. That equals masking by position if positions grow by one per slot inside a
segment, as they do in padded and packed batches. Attention logits never reach the HBM.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec

from grm_jax import sharding
from grm_jax.sharding import spec

BLOCK = 512


class Group(NamedTuple):
    """A row of one left-padded prompt and its completions, `prompt` and `completion` slots each."""

    prompt: int
    completion: int


def splash_attention(
    q_BxLxNxH: jax.Array,
    k_BxLxKxH: jax.Array,
    v_BxLxKxH: jax.Array,
    segment_ids_BxL: jax.Array,
    window: int | None,
    cap: float | None,
    group: Group | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes causal attention inside segments; queries are already scaled. Returns o_BxLxNxH.

    Args:
      group: the rows are groups; each completion sees the prompt and itself.

    Raises:
      ValueError: the length is not a multiple of 128, or the devices are not TPUs.
    """
    B, L, N, H = q_BxLxNxH.shape
    if not interpret and (platform := sharding.platform()) != "tpu":
        raise ValueError(f"splash attention needs a TPU, not {platform}: set attention='xla'")
    if L % 128:
        parts = f" ({group.prompt} + completions of {group.completion})" if group else ""
        raise ValueError(
            f"splash attention needs a length that is a multiple of 128, not {L}{parts}: "
            "pad the batch, or set attention='xla'"
        )
    mesh = jax.sharding.get_abstract_mesh()
    sharded = not mesh.empty and mesh.size > 1
    heads = N // mesh.shape["tensor"] if sharded else N
    kernel = _kernel(_mask(L, window, group), heads, cap, interpret)

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


@dataclasses.dataclass(frozen=True)
class GroupMask(masks.Mask):
    """What the slots of a group's row see; segment ids exclude the prompt's padding.

    window: None sees all.
    """

    length: int
    group: Group
    window: int | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.length

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        S, T = self.group
        queries, keys = (np.arange(self.length)[part] for part in index)
        # 0 for the prompt, then the number of the completion; the distance as if it were alone.
        (q_part, k_part), (q, k) = (
            [f(slots) for slots in (queries[:, None], keys[None])]
            for f in (
                lambda slots: np.where(slots < S, 0, 1 + (slots - S) // T),
                lambda slots: np.where(slots < S, slots, S + (slots - S) % T),
            )
        )
        seen = ((k_part == 0) | (k_part == q_part)) & (k <= q)
        return seen if self.window is None else seen & (q - k < self.window)


def _mask(L: int, window: int | None, group: Group | None) -> masks.Mask:
    if group is not None:
        return GroupMask(L, group, window)
    if window is None or window >= L:
        return masks.CausalMask((L, L))
    # The left bound counts tokens before the query: a window of W, the query included, reaches
    # W - 1 back.
    return masks.LocalMask((L, L), (window - 1, 0), 0)


def _kernel(mask: masks.Mask, heads: int, cap: float | None, interpret: bool) -> Any:
    b = next(size for size in (BLOCK, 256, 128) if mask.shape[0] % size == 0)
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
        residual_checkpoint_name="attended",  # as `transformer.py` names it for `remat`
        interpret=interpret,
    )
