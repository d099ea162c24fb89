"""A table of named things that users can extend: voting rules, benchmarks, layouts, model families.

VOTES = Registry("vote")

@VOTES.register("sum")
def sum_scores(critiques, n): ...

VOTES["sum"]      # the function
VOTES["summ"]     # ValueError: unknown vote 'summ': did you mean 'sum'?
list(VOTES)       # names in the order of registration
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict from names to values; `kind` says what the values are, for errors."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def add(self, name: str, value: T) -> T:
        """Registers `value`. Raises ValueError for a name that is taken."""
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered twice: choose another name")
        self[name] = value
        return value

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers what it decorates under `name`."""
        return lambda value: self.add(name, value)

    def __missing__(self, name: str) -> T:
        raise ValueError(f"unknown {self.kind} {name!r}: {nearest(name, self)}")


def nearest(name: str, known) -> str:
    """ "did you mean 'sum'?", or the list of all known names where none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(map(str, known))}"
