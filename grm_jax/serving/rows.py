"""The engine of a model that samples nothing: no rows, and no work of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.sampling import Completion, Request
from grm_jax.sampling.slots import Stats


@dataclasses.dataclass
class NoRows:
    """Stands for `Engine` on the engine thread of a scalar reward model.

    Its forward passes run as calls of the thread.
    """

    stats: Stats = dataclasses.field(default_factory=Stats)
    P: int = 0
    R: int = 0
    waiting: int = 0
    running_rows: int = 0
    busy: bool = False

    def reserve(self, prompt: int, new_tokens: int, head: Sequence[int] = ()) -> None:
        """Reserves nothing: there are no caches."""

    def step(self) -> list[Completion]:
        return []

    def cancel(self, key: int) -> None:
        """Has nothing to cancel."""

    def submit(self, request: Request, listener: Callable[..., Any] | None = None) -> int:
        raise ValueError("a scalar reward model samples nothing")
