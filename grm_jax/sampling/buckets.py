"""Lengths that programs are compiled for: prompts and rings are rounded up to declared buckets."""

from collections.abc import Sequence

PROMPT_BUCKETS = (
    *(32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    *(16384, 32768, 65536, 131072),
)
# Each is a third or a half larger than the one before, up to 8192: a decode step reads the whole
# ring, so that on average a sixth of what it reads has not been written yet.
RING_BUCKETS = (
    *(32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    *(12288, 16384, 32768, 65536, 131072),
)
# Instead of the buckets up to 256, where a compilation takes longer than the arithmetic of padding.
# Rings start with min(64, longest sample) tokens, so that most runs need one length.
FEW_PROMPT_BUCKETS, FEW_RING_BUCKETS = (64, 128, 256), (*range(8, 72, 8), 256)
FEW_FIRST_RING = 64
PREFILL_TOKENS = 8192  # of one prefill batch, per batch shard of the mesh


def prompt_bucket(length: int, few: bool = False) -> int:
    """Returns the smallest prompt bucket >= `length`; raises ValueError past the largest.

    few: of FEW_PROMPT_BUCKETS, and of the others beyond them.
    """
    few = few and length <= FEW_PROMPT_BUCKETS[-1]
    return _smallest(length, FEW_PROMPT_BUCKETS if few else PROMPT_BUCKETS)


def ring_bucket(length: int, few: bool = False) -> int:
    """Returns the smallest ring bucket >= `length`; raises ValueError past the largest.

    few: of FEW_RING_BUCKETS, and of the others beyond them.
    """
    few = few and length <= FEW_RING_BUCKETS[-1]
    return _smallest(length, FEW_RING_BUCKETS if few else RING_BUCKETS)


def prefill_batch(S: int, prompts: int, shards: int = 1) -> int:
    """Returns how many of `prompts` prompts of S tokens to prefill together.

    A power of two, so that few sizes are compiled and no prompt is repeated to fill a batch.
    shards: how many ways the mesh splits the batch (`sharding.batch_shards`).
    """
    return 1 << (min(prompts, max(1, shards * PREFILL_TOKENS // S)).bit_length() - 1)


def _smallest(length: int, buckets: Sequence[int]) -> int:
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(
        f"length {length} exceeds the largest bucket, {buckets[-1]}: shorten the prompt, "
        "or add a bucket in grm_jax/sampling/buckets.py"
    )
