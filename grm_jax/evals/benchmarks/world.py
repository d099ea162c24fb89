"""The judging world's test split: comparisons whose truth is decided by rules; reads no files."""

import dataclasses
import functools
from collections.abc import Sequence

from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source
from grm_jax.types import Comparison

ITEMS = 400
# Over all trained families. `grm_jax.baselines` uses the mixture of the experiment's own config.
LEVELS, SIZES = {0: 0.6, 1: 0.4}, {2: 0.62, 3: 0.3}


def read(source: Source, held_out: bool = False) -> list[Comparison]:
    """Returns the first items of the test split. held_out: of the families not trained on."""
    from grm_jax.data import world

    families = world.HELD_OUT_NAMES if held_out else None
    config = world.WorldConfig(levels=LEVELS, sizes=SIZES)
    return measurable(world.make_items("test", 0, ITEMS, 0, families, config))


def measurable(items: Sequence[Comparison]) -> list[Comparison]:
    """Keeps items with a best response, without the truth in their metadata.

    The family becomes the subset; the comparisons of one query become one group.
    """
    return [
        dataclasses.replace(
            item, reference=None, meta={"subset": item.meta["world"]["family"], "group": item.query}
        )
        for item in items
        if item.n > 1 and item.best is not None
    ]


WORLD = bm.Benchmark(
    name="world",
    title="Judging world",
    order=190,
    read=read,
    grade=bm.grade_credit,
    aggregate=bm.accuracy_by_subset,
    headline=f"accuracy on {ITEMS} items of the judging world's test split",
    rules={
        "official": "a tie of t that includes the best response counts 1/t; unparseable counts 1/n",
        "strict": "a tie or an unparseable judgement is wrong, as in training",
        "paper": bm.PAPER_RULE,
    },
    files="none: the items are generated from a seed",
    chance="1/n: 0.45 for this mixture",
    bars=("subset/",),
)
WORLD_HELD_OUT = dataclasses.replace(
    WORLD,
    name="world_held_out",
    title="Judging world, unseen families",
    order=200,
    read=functools.partial(read, held_out=True),
    headline="the same, of families that are not trained on",
)
