"""Scripted policies that know nothing of the query: what a judge must beat, and what a good world does not reward.

Each takes a comparison and returns one score per response, in the caller's order.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable

from grm_jax.data.world.responses import manner_of
from grm_jax.types import Comparison

Control = Callable[[Comparison], tuple[float, ...]]


def _only(n: int, chosen: int) -> tuple[float, ...]:
    return tuple(float(i == chosen) for i in range(n))


def _key(comparison: Comparison) -> random.Random:
    """A generator of the comparison's own content: the same choice whenever the comparison is seen."""
    content = json.dumps([comparison.turns, comparison.responses])
    return random.Random(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest())


def longest(comparison: Comparison) -> tuple[float, ...]:
    """The longest response by characters, drawn at random among equals."""
    rng = _key(comparison)
    return _only(
        comparison.n,
        max(range(comparison.n), key=lambda i: (len(comparison.responses[i]), rng.random())),
    )


def shortest(comparison: Comparison) -> tuple[float, ...]:
    """The shortest response by characters, drawn at random among equals."""
    rng = _key(comparison)
    return _only(
        comparison.n,
        min(range(comparison.n), key=lambda i: (len(comparison.responses[i]), rng.random())),
    )


def first(comparison: Comparison) -> tuple[float, ...]:
    """Always the first response."""
    return _only(comparison.n, 0)


def last(comparison: Comparison) -> tuple[float, ...]:
    """Always the last response."""
    return _only(comparison.n, comparison.n - 1)


def chance(comparison: Comparison) -> tuple[float, ...]:
    """A response at random; the same one each time for the same comparison."""
    return _only(comparison.n, _key(comparison).randrange(comparison.n))


def surest(comparison: Comparison) -> tuple[float, ...]:
    """The response that opens in the surest manner (judging world only), drawn at random among equals."""
    rng, rank = _key(comparison), ("terse", "plain", "wordy", "sure")
    manners = [manner_of(response) for response in comparison.responses]
    return _only(
        comparison.n, max(range(comparison.n), key=lambda i: (rank.index(manners[i]), rng.random()))
    )


CONTROLS: dict[str, Control] = {
    "longest": longest,
    "shortest": shortest,
    "first": first,
    "last": last,
    "random": chance,
    "surest": surest,
}
