"""A control: each label is drawn anew. A model trained on it must score at chance."""

import dataclasses
import random
from collections.abc import Callable

from grm_jax.data import world
from grm_jax.types import Comparison


def shuffle(at: Callable[[int], Comparison], seed: int) -> Callable[[int], Comparison]:
    """Returns the comparisons of `at`, each with a label drawn from the seed and its place."""

    def shuffled_at(place: int) -> Comparison:
        comparison = at(place)
        rng = random.Random(f"labels/{seed}/{place}")
        single = comparison.n == 1
        label = (float(rng.random() < 0.5),) if single else rng.randrange(comparison.n)
        meta = dict(comparison.meta)
        if "world" in meta:
            meta["world"] = world.believing(meta["world"], label, rng)
        return dataclasses.replace(comparison, label=label, meta=meta)

    return shuffled_at
