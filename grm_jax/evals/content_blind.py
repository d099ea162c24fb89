"""Content-blind baselines: judges that look only at length, position or chance.

To add one, register it here; `grm eval --judge` then offers it.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable

from grm_jax.evals.judged import JudgedComparison
from grm_jax.registry import Registry
from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class ContentBlind:
    """A baseline: its label in plots, a description, and (comparison, seed) -> judged."""

    label: str
    description: str
    judge: Callable[[Comparison, int], JudgedComparison]


CONTENT_BLIND: Registry[ContentBlind] = Registry("content-blind baseline")


def judge(name: str, comparison: Comparison, seed: int = 0) -> JudgedComparison:
    """Judges one comparison with a content-blind baseline."""
    return CONTENT_BLIND[name].judge(comparison, seed)


def _by_length(comparison: Comparison, sign: int) -> JudgedComparison:
    return JudgedComparison(comparison, tuple(float(sign * len(r)) for r in comparison.responses))


def _by_place(comparison: Comparison) -> JudgedComparison:
    """Prefers the first response as loaded, and the first of each order of a pair."""
    n = comparison.n
    orders = [(0, 1), (1, 0)] if n == 2 else [tuple(range(n))]
    views = tuple((order, tuple(float(order[0] == i) for i in range(n))) for order in orders)
    return JudgedComparison(comparison, views[0][1], views)


def _at_random(comparison: Comparison, seed: int) -> JudgedComparison:
    """Draws scores from the seed and the id: any subset of a benchmark gets the same ones."""
    rng = random.Random(hashlib.sha256(f"{seed}/{comparison.id}".encode()).digest())
    return JudgedComparison(comparison, tuple(rng.random() for _ in comparison.responses))


CONTENT_BLIND.add(
    "longest",
    ContentBlind(
        "longest response",
        "the response with more characters is better",
        lambda comparison, seed: _by_length(comparison, 1),
    ),
)
CONTENT_BLIND.add(
    "shortest",
    ContentBlind(
        "shortest response",
        "the response with fewer characters is better",
        lambda comparison, seed: _by_length(comparison, -1),
    ),
)
CONTENT_BLIND.add(
    "first",
    ContentBlind(
        "first response",
        "the response shown first is better",
        lambda comparison, seed: _by_place(comparison),
    ),
)
CONTENT_BLIND.add("random", ContentBlind("random scores", "scores drawn at random", _at_random))
