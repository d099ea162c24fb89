"""What an experiment shows, in a few sentences with intervals: each stage against the one before.

A difference is "not established" where its 95% interval includes 0, and "too few to tell" below 30
comparisons.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.display import counted
from grm_jax.evals.bootstrap import Resampler
from grm_jax.evals.cells import Cell, difference
from grm_jax.evals.tables import percent
from grm_jax.judging.pairs import FEW

VOTES = 8  # of the paper's tables
NAMES = {"rft": "RFT", "rl": "RL"}
Difference = Mapping[str, Any]


def differences(cells: Sequence[Cell], resampler: Resampler) -> dict[str, Difference]:
    """Returns the paired differences behind the paper's claims, as far as their cells exist."""
    by_name, last = {c.name: c for c in cells}, cells[-1].model
    k = votes(cells)
    pairs = {
        f"RFT Voting@{k} - chance": (f"rft/Voting@{k}", "chance/Rule@1"),
        f"RL Voting@{k} - chance": (f"rl/Voting@{k}", "chance/Rule@1"),
        f"RFT Voting@{k} - base Voting@{k}": (f"rft/Voting@{k}", f"base/Voting@{k}"),
        "RL greedy - RFT greedy": ("rl/Greedy@1", "rft/Greedy@1"),
        "RL Voting@1 - RFT Voting@1": ("rl/Voting@1", "rft/Voting@1"),
        f"RL Voting@{k} - RFT Voting@{k}": (f"rl/Voting@{k}", f"rft/Voting@{k}"),
        f"Voting@{k} - Voting@1": (f"{last}/Voting@{k}", f"{last}/Voting@1"),
        f"MetaRM@{k} - Voting@{k}": (f"{last}/MetaRM@{k}", f"{last}/Voting@{k}"),
    }
    return {
        name: difference(by_name[a], by_name[b], resampler)
        for name, (a, b) in pairs.items()
        if a in by_name and b in by_name and a != b
    }


def votes(cells: Sequence[Cell]) -> int:
    """Returns how many critiques vote in the sentences: 8, or the largest k below."""
    return max((c.k for c in cells if c.method == "Voting" and c.k <= VOTES), default=1)


def sentences(cells: Sequence[Cell], known: Mapping[str, Difference]) -> list[str]:
    """Returns up to three sentences: RFT (or RL alone) over chance, RL over RFT, votes, meta RM.

    With fewer than FEW comparisons a last one says that they are too few.
    """
    k = votes(cells)
    many = f"{k} votes" if k > 1 else "one vote"
    lines, n = [], max((len(c.credits) for c in cells), default=0)

    def gain(difference: Difference) -> str:
        return gain_text(difference, n < FEW)

    by_name = {c.name: c for c in cells}
    for model, name in NAMES.items():
        reached, over = by_name.get(f"{model}/Voting@{k}"), known.get(f"{name} Voting@{k} - chance")
        base = known.get(f"{name} Voting@{k} - base Voting@{k}")
        if reached and over:
            lines.append(
                f"{name} is right on {percent(reached.accuracy)}% of "
                f"{counted(n, 'held-out comparison')} with {many}: {gain(over)} over chance"
                f"{f', {gain(base)} over the base model' if base else ''}."
            )
            break
    steps = [
        ("one vote", known.get("RL Voting@1 - RFT Voting@1")),
        (many, known.get(f"RL Voting@{k} - RFT Voting@{k}") if k > 1 else None),
    ]
    if texts := [f"{gain(step)} with {name}" for name, step in steps if step]:
        lines.append(f"RL adds to RFT: {', '.join(texts)}.")
    texts = []
    if step := known.get(f"Voting@{k} - Voting@1"):
        texts.append(f"{k} votes add {gain(step)} to one vote")
    if step := known.get(f"MetaRM@{k} - Voting@{k}"):
        texts.append(f"the meta reward model adds {gain(step)} to {many}")
    if texts:
        lines.append(f"{'; '.join(texts)}.")
    if lines and n < FEW:
        lines.append(few_text(n).capitalize() + ".")
    return lines


def few_text(n: int) -> str:
    """Returns "1 held-out comparison is too few to tell: hold out at least 30"."""
    verb = "is" if n == 1 else "are"
    return f"{counted(n, 'held-out comparison')} {verb} too few to tell: hold out at least {FEW}"


def gain_text(difference: Difference, few: bool = False) -> str:
    """Returns "+5.4 points (95% CI -0.2 to +11.0: not established)"; `few`: "too few to tell"."""
    mean = f"{100 * difference['mean']:+.1f} points"
    if difference["low"] is None:
        return f"{mean} (too few to tell)"
    low, high = (100 * difference[key] for key in ("low", "high"))
    doubt = ": too few to tell" if few else ": not established" if low <= 0 <= high else ""
    return f"{mean} (95% CI {low:+.1f} to {high:+.1f}{doubt})"
