"""The judging world's test split: comparisons whose truth is decided by rules; no files are needed."""

from __future__ import annotations

from collections.abc import Sequence

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Grades,
    accuracy_by_subset,
    columns,
    credit,
    strict,
)
from grm_jax.evals.files import Source
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

ITEMS = 400
# All trained families. An experiment's own mixture is in its config: `evals.baselines.run` measures on that.
LEVELS, SIZES = {0: 0.6, 1: 0.4}, {2: 0.62, 3: 0.3}


def read(source: Source, held_out: bool = False) -> list[Comparison]:
    """The first items of the test split; subset is the family. held_out: of the families that training never judges."""
    from grm_jax.data import world

    families = world.HELD_OUT_NAMES if held_out else None
    return measurable(
        world.make_items(
            "test", 0, ITEMS, 0, families, world.WorldConfig(levels=LEVELS, sizes=SIZES)
        )
    )


def measurable(items: Sequence[Comparison]) -> list[Comparison]:
    """Items of the world as a benchmark wants them: with a best response, their family as subset, those of one query as a group, and nothing
    of the truth."""
    found = []
    for item in items:
        if item.n > 1 and item.best is not None:
            meta = {"subset": item.meta["world"]["family"], "group": item.query}
            found.append(Comparison(item.query, item.responses, None, item.label, item.id, meta))
    return found


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """See the rules."""
    return columns(judged, (strict(j) if rule == "strict" else credit(j) for j in judged))


def _benchmark(name: str, title: str, held_out: bool) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        read=lambda source: read(source, held_out),
        grade=grade,
        aggregate=accuracy_by_subset,
        rules={
            "official": "a tie of t that holds the best response counts 1/t; unreadable counts 1/n",
            "strict": "a tie or an unreadable judgement is wrong, as in training",
            "paper": PAPER,
        },
        files="nothing: the items are made from a seed",
        chance="1/n: 0.45 for this mixture",
        bars=("subset/",),
    )


WORLD = _benchmark("world", "Judging world", False)
WORLD_HELD_OUT = _benchmark("world_held_out", "Judging world, unseen families", True)
