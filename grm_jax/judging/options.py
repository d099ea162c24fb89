"""Settings of a judgement: a verdict depends on them, the weights and the template."""

import dataclasses
import numbers
import operator
from typing import TypedDict

from grm_jax.judging import orders
from grm_jax.judging.votes import VOTES


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
        if self.k < 1:
            raise ValueError(f"k = {self.k}: sample at least one critique")
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature}: use 0 (greedy) or more")
        if self.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens}: a critique needs at least one token"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: use a share in (0, 1]")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed = {self.seed}: use 0 to 2147483647")
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
        """Raises ValueError for a number of another type; integers of NumPy become Python's."""
        for name in ("k", "seed", "max_new_tokens", "top_k", "k_meta"):
            value = getattr(self, name)
            if name == "k_meta" and value is None:
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise ValueError(f"{name} = {value!r} is a {type(value).__name__}: use an integer")
            object.__setattr__(self, name, operator.index(value))
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(f"{name} = {value!r} is a {type(value).__name__}: use a number")
