"""How a comparison is judged: every setting that a verdict depends on, besides the weights and the template."""

from __future__ import annotations

import dataclasses

from grm_jax.judging import orders, votes


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of one run. Raises ValueError naming the setting that cannot be.

    k: critiques per comparison.  temperature: 0.5 as in SPCT's tables; 0 is greedy, and then k critiques of one order
    are equal.  vote: the rule that decides (`votes.VOTES`).  orders: `orders.KINDS`.  k_meta: critiques that the meta
    reward model lets vote, half of k when None.  principles: "own", written in the same text as the critique, or "first",
    written in a call of their own from the query alone and shared by all comparisons of that query.
    given_principles: text that replaces both.  expected: also compute expected scores from the token probabilities.
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

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k = {self.k}: ask for at least one critique")
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
        if votes.VOTES[self.vote].needs == "expected_scores" and not self.expected:
            object.__setattr__(self, "expected", True)
        if self.orders not in orders.KINDS:
            raise ValueError(f"orders {self.orders!r}: use one of {', '.join(orders.KINDS)}")
        if self.k_meta is not None and not 1 <= self.k_meta <= self.k:
            raise ValueError(f"k_meta = {self.k_meta}: keep between 1 and k = {self.k} critiques")
        if self.principles not in ("own", "first"):
            raise ValueError(
                f"principles {self.principles!r}: use 'own' or 'first', or pass given_principles"
            )
