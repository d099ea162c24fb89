"""Endless streams of comparisons for rollouts: a pure function of (source, seed, place).

A stream maps any place from 0 on to a comparison, so to resume, only the step is needed.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from grm_jax.data.packing import shuffled_index
from grm_jax.data.world.items import DEFAULT, WorldConfig, make_items
from grm_jax.types import Comparison

T = TypeVar("T")

_BLOCK = 1000  # places in which a mixture keeps its rates


def from_list(items: Sequence[T], seed: int = 0) -> Callable[[int], T]:
    """Returns places over a list, in a new order each epoch. Raises ValueError if it is empty."""
    if not items:
        raise ValueError("no comparisons to make batches of")
    return lambda place: items[shuffled_index(place, len(items), seed)]


def from_world(
    split: str = "train",
    seed: int = 0,
    families: Sequence[str] | None = None,
    config: WorldConfig = DEFAULT,
) -> Callable[[int], Comparison]:
    """Returns places over the judging world: place p is item p, never repeated."""
    return lambda place: make_items(split, place, 1, seed, families, config)[0]


def from_mixture(
    sources: Sequence[Callable[[int], T]], rates: Sequence[float], seed: int = 0
) -> Callable[[int], T]:
    """Returns places over several sources, in blocks of 1,000 places that keep the rates.

    Each source is read without gaps or repeats; a single one keeps its order. Raises ValueError if
    the rates do not match the sources.
    """
    if len(sources) != len(rates) or not sources or min(rates) <= 0:
        raise ValueError(
            f"{len(rates)} rates for {len(sources)} sources: give one positive rate per source"
        )
    if len(sources) == 1:
        return sources[0]
    counts = _shares(rates, _BLOCK)
    source_of_slot = [s for s, count in enumerate(counts) for _ in range(count)]
    starts = [sum(counts[:s]) for s in range(len(counts))]

    def at(place: int) -> T:
        block, position = divmod(place, _BLOCK)
        slot = shuffled_index(position, _BLOCK, seed)
        source = source_of_slot[slot]
        return sources[source](block * counts[source] + slot - starts[source])

    return at


def _shares(rates: Sequence[float], total: int) -> list[int]:
    """Integers of sum `total`, each at least 1, in proportion to the rates (largest remainder)."""
    exact = [rate / sum(rates) * total for rate in rates]
    shares = [max(1, int(x)) for x in exact]
    by_remainder = sorted(range(len(rates)), key=lambda s: exact[s] - shares[s], reverse=True)
    for s in range(total - sum(shares)):
        shares[by_remainder[s % len(rates)]] += 1
    while sum(shares) > total:
        shares[shares.index(max(shares))] -= 1
    return shares
