"""Content-blind policies: baselines for a judge, which a good world does not reward.

Each takes a comparison and returns one score per response, in the caller's order: 1 for the chosen
response, 0 for the others. Equal candidates are drawn at random, from the comparison's content.
"""

import hashlib
import json
import random
from collections.abc import Callable

from grm_jax.data.world.responses import manner_of
from grm_jax.types import Comparison

Policy = Callable[[Comparison], tuple[float, ...]]

_SURENESS = ("terse", "plain", "wordy", "sure")


def _choose(key: Callable[[Comparison, int], int], best: Callable = max) -> Policy:
    """A policy that chooses the response with the best key."""

    def policy(comparison: Comparison) -> tuple[float, ...]:
        content = json.dumps([comparison.turns, comparison.responses])
        seed = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
        rng = random.Random(seed)
        keys = [(key(comparison, i), rng.random()) for i in range(comparison.n)]
        return tuple(float(one == best(keys)) for one in keys)

    return policy


CONTROLS: dict[str, Policy] = {
    "longest": _choose(lambda c, i: len(c.responses[i])),
    "shortest": _choose(lambda c, i: len(c.responses[i]), min),
    "first": _choose(lambda c, i: -i),
    "last": _choose(lambda c, i: i),
    "random": _choose(lambda c, i: 0),
    "surest": _choose(lambda c, i: _SURENESS.index(manner_of(c.responses[i]))),
}
