"""Registry: a table of named things that users extend, such as voting rules and benchmarks.

VOTES = Registry("vote")

@VOTES.register("sum")
def sum_scores(critiques, n): ...

VOTES["sum"]      # the function
VOTES["summ"]     # ValueError: unknown vote 'summ': did you mean 'sum'?
list(VOTES)       # names in the order of registration
"""

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict from names to values. kind: what the values are, for error messages."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def add(self, name: str, value: T) -> T:
        """Registers a value and returns it. Raises ValueError for a name that is taken."""
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered twice: choose another name")
        self[name] = value
        return value

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers its function or class under `name`."""
        return lambda value: self.add(name, value)

    def __missing__(self, name: str) -> T:
        raise ValueError(f"unknown {self.kind} {name!r}: {nearest(name, self)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint for an unknown name: the most similar known one, or all of them."""
    names = [str(other) for other in known]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names)}"


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError in one line for a keyword argument that a function does not take."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{function} takes no argument {name!r}: {nearest(name, known)}")
