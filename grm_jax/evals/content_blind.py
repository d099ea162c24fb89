"""Content-blind baselines: judges that look only at length, position or chance.

To add one, register a function here; `grm eval --judge` then offers it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable

from grm_jax.evals.judged import JudgedComparison
from grm_jax.registry import Registry
from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class ContentBlind:
    """A baseline: its label in tables and plots, a one-line description, and its scoring function.

    score: (comparison, seed) -> the judged comparison.
    """

    label: str
    description: str
    score: Callable[[Comparison, int], JudgedComparison]


CONTENT_BLIND: Registry[ContentBlind] = Registry("content-blind baseline")


def judge(name: str, comparison: Comparison, seed: int = 0) -> JudgedComparison:
    """Judges one comparison with a content-blind baseline.

    Raises ValueError for an unregistered name.
    """
    return CONTENT_BLIND[name].score(comparison, seed)


def _register(name: str, label: str, description: str) -> Callable:
    def decorate(score: Callable[[Comparison, int], JudgedComparison]) -> Callable:
        CONTENT_BLIND.add(name, ContentBlind(label, description, score))
        return score

    return decorate


@_register("longest", "longest response", "the response with more characters is better")
def longest(comparison: Comparison, seed: int) -> JudgedComparison:
    return JudgedComparison(comparison, tuple(float(len(text)) for text in comparison.responses))


@_register("shortest", "shortest response", "the response with fewer characters is better")
def shortest(comparison: Comparison, seed: int) -> JudgedComparison:
    return JudgedComparison(comparison, tuple(-float(len(text)) for text in comparison.responses))


@_register("first", "first response", "the response shown first is better")
def first(comparison: Comparison, seed: int) -> JudgedComparison:
    """Prefers the first response as loaded, and the first of each order of a pair."""
    n = comparison.n
    orders = [(0, 1), (1, 0)] if n == 2 else [tuple(range(n))]
    views = [(order, tuple(float(order[0] == i) for i in range(n))) for order in orders]
    return JudgedComparison(comparison, views[0][1], tuple(views))


@_register("random", "random scores", "scores drawn at random")
def random_scores(comparison: Comparison, seed: int) -> JudgedComparison:
    """Draws scores from the seed and the id, so any subset of a benchmark gets the same ones."""
    rng = random.Random(hashlib.sha256(f"{seed}/{comparison.id}".encode()).digest())
    return JudgedComparison(comparison, tuple(rng.random() for _ in comparison.responses))
