"""The judge's side of sampling: what it asks for, what it gets back, and the runner that asks the k-way sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from grm_jax.sharding import use_mesh


@dataclasses.dataclass(frozen=True)
class Request:
    """k samples of one prompt of token ids. item: with seed and sample number it makes a row's randomness."""

    prompt: Sequence[int]
    k: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[int, ...]
    seed: int
    item: int


class Row(Protocol):
    """One finished sample of requests[request_index]: its token ids and why it ended ("stop", "length" or "error")."""

    request_index: int
    sample_index: int
    tokens: Any
    finish: str
    error: str | None


# Anything that takes requests and yields their rows, k for each, in any order.
Runner = Callable[[Sequence[Request]], Iterable[Row]]


def engine_sampler(
    model, mesh=None, prompt_slots: int | None = None, rows: int | None = None
) -> Runner:
    """The runner over `grm_jax.sampling`; by default as many prompts and rows at once as memory holds."""
    from grm_jax import sampling
    from grm_jax.sampling.plan import fit
    from grm_jax.sampling.weights import for_decoding

    placed: list = []

    def run(requests: Sequence[Request]) -> Iterable[Row]:
        asked = [sampling.Request(**vars(request)) for request in requests]
        if not asked:
            return
        with use_mesh(mesh):
            if not placed:  # once, and before memory is planned
                placed.append(for_decoding(model))
            engine = sampling.Engine(placed[0], *fit(model.cfg, asked, prompt_slots, rows))
        iterator = iter(engine.run(asked))
        while True:
            # The mesh is in context only while the engine works: a generator must not leave it behind at a yield.
            with use_mesh(mesh):
                row = next(iterator, None)
            if row is None:
                return
            yield row

    return run
