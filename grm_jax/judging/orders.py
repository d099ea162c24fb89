"""In which order each sample sees the responses.

Balanced: the cyclic rotations in turn, so that over n samples every response stands once in every place, and a prompt
is needed only n times however large k is. Random: an own permutation per sample, as in the paper (SPCT, section 4).
Both depend on the seed and on the comparison's content alone, never on its place in a file or a batch.
"""

from __future__ import annotations

import hashlib
import json
import random

from grm_jax.types import Comparison

KINDS = ("balanced", "random", "given")


def orders(
    comparison: Comparison, k: int, kind: str = "balanced", seed: int = 0
) -> list[tuple[int, ...]]:
    """k orders; order[j] is the caller's index of the response shown at position j.

    kind: "balanced", "random", or "given" (as the caller has them, for single-order protocols).
    The first rotation is drawn from the seed and the content: with k < n no response is favoured by where the caller
    put it, which matters for data that always list the better response first.
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
    """A number of 64 bits from a seed and the texts of a comparison; the same on every machine."""
    content = json.dumps(
        [seed, comparison.turns, comparison.responses, comparison.reference], sort_keys=True
    )
    return int.from_bytes(
        hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big"
    )


def item_of(ids: list[int]) -> int:
    """The sampler's item number of a prompt: 31 bits of a hash of its tokens.

    A row's text depends on (seed, item, sample) only, so judging a file in other batches, or from the middle, changes
    nothing.
    """
    digest = hashlib.sha256(b",".join(str(i).encode() for i in ids)).digest()
    return int.from_bytes(digest[:4], "big") >> 1
