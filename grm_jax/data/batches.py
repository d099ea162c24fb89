"""Batches of comparisons for rollouts, by step: a pure function of (source, seed, step), sharded by process.

A batch is the same for any number of processes, each taking its share of it, and the position to save is the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from grm_jax.data.packing import shuffled_index
from grm_jax.data.world.items import DEFAULT, WorldConfig, make_items
from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class ComparisonBatches:
    """An endless stream of batches of comparisons with random access by step.

    Attributes:
      at: place -> comparison, for any place from 0 on. See `from_list` and `from_world`.
      batch_size: Comparisons of a global batch.
      process_index, process_count: This process gets its equal share of every batch.
    """

    at: Callable[[int], Comparison]
    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by {self.process_count} processes: use a multiple of it"
            )

    def batch(self, step: int) -> list[Comparison]:
        """This process's comparisons of batch number `step`."""
        share = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * share
        return [self.at(place) for place in range(first, first + share)]


def from_list(comparisons: Sequence[Comparison], seed: int = 0) -> Callable[[int], Comparison]:
    """Places over a list, in another order each epoch. Raises ValueError for an empty list."""
    if not comparisons:
        raise ValueError("no comparisons to make batches of")
    return lambda place: comparisons[shuffled_index(place, len(comparisons), seed)]


def from_world(
    split: str = "train",
    seed: int = 0,
    start: int = 0,
    families: Sequence[str] | None = None,
    config: WorldConfig = DEFAULT,
) -> Callable[[int], Comparison]:
    """Places over the judging world: place p is item start + p, never repeated."""
    return lambda place: make_items(split, start + place, 1, seed, families, config)[0]


def from_mixture(
    sources: Sequence[Callable[[int], Comparison]], rates: Sequence[float], seed: int = 0
) -> Callable[[int], Comparison]:
    """Places over several sources at given rates, in blocks of 1,000 places that keep the rates.

    Each source is read without gaps or repeats. Raises ValueError where rates do not fit the sources.
    """
    if len(sources) != len(rates) or not sources or min(rates) <= 0:
        raise ValueError(
            f"{len(rates)} rates for {len(sources)} sources: give one positive rate per source"
        )
    counts = _shares(rates, _BLOCK)
    which = [s for s, count in enumerate(counts) for _ in range(count)]
    starts = [sum(counts[:s]) for s in range(len(counts))]

    def at(place: int) -> Comparison:
        block, within = divmod(place, _BLOCK)
        slot = shuffled_index(within, _BLOCK, seed)
        source = which[slot]
        return sources[source](block * counts[source] + slot - starts[source])

    return at


_BLOCK = 1000


def _shares(rates: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to the rates (largest remainders), each at least 1."""
    exact = [rate / sum(rates) * total for rate in rates]
    shares = [max(1, int(x)) for x in exact]
    by_remainder = sorted(range(len(rates)), key=lambda s: exact[s] - shares[s], reverse=True)
    for s in range(total - sum(shares)):
        shares[by_remainder[s % len(rates)]] += 1
    while sum(shares) > total:
        shares[shares.index(max(shares))] -= 1
    return shares
