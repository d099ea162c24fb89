"""Settings of a judgement: a verdict depends on them, the weights and the template."""

import dataclasses
from typing import TypedDict

from grm_jax import strict_json
from grm_jax.commands import Number
from grm_jax.judging import orders
from grm_jax.judging.votes import VOTES

MAX_INT = 2**31 - 1
CHUNK = 256  # comparisons per call of the sampler


class Keywords(TypedDict, total=False):
    """The fields of `Options` as keyword arguments of `Judge`, for editors and type checkers."""

    max_new_tokens: int
    top_p: float
    top_k: int
    vote: str
    orders: str
    k_meta: int | None
    principles: str
    given_principles: str | None
    expected: bool


POSITIVE = Number(int, 1, MAX_INT)
NUMBERS = {
    "k": Number(int, 1, 1 << 20, use="sample at least one critique, and at most 1048576"),
    "temperature": Number(float, 0, 100, use="use 0 (greedy) or more, up to 100"),
    "seed": Number(int, 0, MAX_INT),
    "max_new_tokens": Number(
        int, 1, MAX_INT, use=f"a critique needs at least one token, and at most {MAX_INT}"
    ),
    "top_p": Number(float, above=0, high=1, use="use a share in (0, 1]"),
    "top_k": Number(int, 0, MAX_INT, use=f"use 0 (off) to {MAX_INT}"),
    "k_meta": Number(int, 1, 1 << 20),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of one run.

    Attributes:
      k: critiques per comparison.
      temperature: 0.5 as in SPCT's tables; 0 is greedy, and then critiques of one order are equal.
      vote: the rule that decides, a name of `votes.VOTES`.
      orders: how response orders are chosen, one of `orders.KINDS`.
      k_meta: critiques that the meta reward model keeps; half of k if None.
      principles: "own" (in the text of the critique), or "first" (in a call of its own that sees
        the query alone, shared by all comparisons of that query).
      given_principles: text that replaces both.
      expected: compute expected scores from the token probabilities.

    Raises:
      ValueError: names the setting and its value.
    """

    k: int = 8
    temperature: float = 0.5
    seed: int = 0
    max_new_tokens: int = 1024
    top_p: float = 1.0
    top_k: int = 0
    vote: str = "sum"
    orders: str = "balanced"
    k_meta: int | None = None
    principles: str = "own"
    given_principles: str | None = None
    expected: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        if VOTES[self.vote].needs == "expected_scores":
            object.__setattr__(self, "expected", True)
        if self.orders not in orders.KINDS:
            raise ValueError(f"orders {self.orders!r}: use one of {', '.join(orders.KINDS)}")
        if self.k_meta is not None and not 1 <= self.k_meta <= self.k:
            raise ValueError(f"k_meta = {self.k_meta}: keep between 1 and k = {self.k} critiques")
        if self.principles not in ("own", "first"):
            raise ValueError(
                f"principles {self.principles!r}: use 'own' or 'first', or pass given_principles"
            )

    def _check_types(self) -> None:
        """Raises ValueError for a value of another type, or a number outside its range."""
        for name, number in NUMBERS.items():
            value = getattr(self, name)
            if name != "k_meta" or value is not None:
                object.__setattr__(self, name, number.check(f"{name} = ", value))
        for name in ("vote", "orders", "principles", "given_principles"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name != "given_principles" or value is not None):
                raise ValueError(f"{name} = {value!r:.80} is a {type(value).__name__}: use a text")
            if problem := strict_json.problem(value, name):
                raise ValueError(problem)
        if not isinstance(self.expected, bool):
            raise ValueError(f"expected = {self.expected!r:.80}: use True or False")
        if self.given_principles is not None and not self.given_principles.strip():
            raise ValueError("given_principles is empty: write them, or use principles='own'")
