"""Judges that look at nothing but length, place or chance: what a trained judge has to beat."""

from __future__ import annotations

import hashlib
import random

from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

FLOORS = {
    "longest": "the response with more characters is better",
    "shortest": "the response with fewer characters is better",
    "first": "the response shown first is better",
    "random": "scores drawn at random",
}


def judge(name: str, comparison: Comparison, seed: int = 0) -> JudgedComparison:
    """The judgement of one floor. ValueError for an unknown name.

    "first" means first in the comparison as read, and the first of each order where a protocol shows several.
    """
    if name in ("longest", "shortest"):
        sign = 1 if name == "longest" else -1
        return JudgedComparison(
            comparison, tuple(float(sign * len(text)) for text in comparison.responses)
        )
    if name == "first":
        n = comparison.n
        orders = (
            [tuple((i + shift) % n for i in range(n)) for shift in range(n)]
            if n == 2
            else [tuple(range(n))]
        )
        views = [(order, tuple(float(order[0] == i) for i in range(n))) for order in orders]
        return JudgedComparison(comparison, views[0][1], tuple(views))
    if name == "random":
        # From the id, not from the place in a file: a subset of a benchmark gets the same draws.
        digest = hashlib.sha256(f"{seed}/{comparison.id}".encode()).digest()
        rng = random.Random(digest)
        return JudgedComparison(comparison, tuple(rng.random() for _ in comparison.responses))
    raise ValueError(f"unknown judge {name!r}: use one of {', '.join(FLOORS)}, or --model PATH")
