"""The order in which each sample sees the responses.

Balanced: the cyclic rotations in turn, so that over n samples each response stands once at each
position, and n prompts suffice for any k. Random: a permutation per sample, as in the paper (SPCT,
section 4). Both depend on the seed and the comparison's content alone, not on its place in a file
or a batch.
"""

import hashlib
import json
import random
from collections.abc import Sequence

from grm_jax.types import Comparison

KINDS = ("balanced", "random", "given")


def response_orders(
    comparison: Comparison, k: int, kind: str = "balanced", seed: int = 0
) -> list[tuple[int, ...]]:
    """Returns k orders; order[j] is the caller's index of the response at position j.

    The first rotation is drawn from the seed and the content. With k < n no response is favoured by
    its position in the input, which matters for data that list the better response first.

    Args:
      kind: "balanced", "random", or "given" (the caller's order, for single-order protocols).
    """
    if kind not in KINDS:
        raise ValueError(f"orders {kind!r}: use one of {', '.join(KINDS)}")
    n = comparison.n
    if kind == "given" or n == 1:
        return [tuple(range(n))] * k
    key = content_key(comparison, seed)
    if kind == "balanced":
        start = key % n
        return [tuple((j + start + s) % n for j in range(n)) for s in range(k)]
    rng = random.Random(key)
    return [tuple(rng.sample(range(n), n)) for _ in range(k)]


def content_key(comparison: Comparison, seed: int) -> int:
    """Returns a 64-bit hash of a seed and the texts of a comparison, equal on every machine."""
    content = json.dumps(
        [seed, comparison.turns, comparison.responses, comparison.reference], sort_keys=True
    )
    return int.from_bytes(
        hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big"
    )


def item_of(ids: Sequence[int]) -> int:
    """Returns the sampler's item number of a prompt: a 31-bit hash of its tokens.

    A sample depends on (seed, item, sample index) only, so batches and resumed runs do not change
    it.
    """
    digest = hashlib.sha256(b",".join(str(i).encode() for i in ids)).digest()
    return int.from_bytes(digest[:4], "big") >> 1
