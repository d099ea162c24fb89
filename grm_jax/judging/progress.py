"""Progress and cost of a run: a bar on stderr, and a JSON file that adds up all sessions."""

from __future__ import annotations

import sys
import time
from typing import Any

from grm_jax import strict_json
from grm_jax.judging import codec
from grm_jax.storage import is_remote, write_atomic
from grm_jax.types import FAILED

PART_SECONDS = 30.0  # a killed run loses at most the rows of so much time in a bucket


def compiling_text(n: int, programs: int) -> str:
    """Returns what is shown while the n-th program compiles. programs: how many are expected."""
    return f"compiling ({n} of {max(n, programs)})"


def read_cost(path: Any) -> dict[str, float]:
    """Returns the cost of earlier sessions. Raises ValueError for a damaged file."""
    cost = strict_json.read(path) if path and path.exists() else {}
    if not isinstance(cost, dict) or not all(isinstance(x, int | float) for x in cost.values()):
        raise ValueError(f"{path} is damaged: remove it, and the cost of earlier sessions is lost")
    return cost


def write_cost(path: Any, cost: dict[str, float]) -> None:
    if path:
        write_atomic(path, strict_json.dumps(cost))


class Progress:
    """A progress bar on stderr with tokens per second, parse rate and errors; counts seconds.

    programs: how many programs the first rows need; the bar counts them while they compile.
    """

    def __init__(self, name: str, total: int, resumed: int, config: Any, programs: int):
        from tqdm import tqdm

        # Where stderr is a file, a line every half minute is enough.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            total=total,
            initial=resumed,
            unit="row",
            desc=name,
            disable=not config.progress,
            mininterval=interval,
            miniters=0,  # `sampled` updates the bar between two rows
        )
        self.programs, self.cost_path = programs, config.cost_path
        earlier = {} if config.existing == "overwrite" else read_cost(self.cost_path)
        self.earlier, self.start = earlier.get("seconds", 0.0), time.monotonic()
        self.written = self.earlier
        self.tokens = self.critiques = self.parsed = self.errors = 0
        self.prompts = self.tokens_sampled = 0  # also of rows that are not complete

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self.write_cost()

    @property
    def seconds(self) -> float:
        """Seconds that all sessions of the run took so far."""
        return self.earlier + time.monotonic() - self.start

    def compiling(self, n: int, done: bool) -> None:
        """Shows that the n-th program is being compiled; in a file, only the first one at once."""
        text = "judging" if done else compiling_text(n, self.programs)
        self.bar.set_postfix_str(text, refresh=sys.stderr.isatty() or (n == 1 and not done))

    def sampled(self, prompts: int, tokens: int) -> None:
        """Shows what the sampler has done: the first row may take minutes."""
        self.prompts += prompts
        self.tokens_sampled += tokens
        self._show()
        self.bar.update(0)

    def count(self, row: codec.OutputRow) -> None:
        """Counts a row. The cost file has the seconds of a killed run up to its last row."""
        self.errors += row["error"] is not None
        self.tokens += sum(critique["tokens"] for critique in row["critiques"])
        self.critiques += sum(critique["status"] != FAILED for critique in row["critiques"])
        self.parsed += sum(critique["status"] == "ok" for critique in row["critiques"])
        self._show(codec.is_scalar(row))
        self.bar.update()
        # A write per row would take longer than some rows.
        if self.seconds > self.written + (PART_SECONDS if is_remote(self.cost_path or "") else 1):
            self.write_cost()

    def _show(self, is_scalar: bool = False) -> None:
        """Sets the text at the bar's end; the bar decides when to write it."""
        tokens = max(self.tokens, self.tokens_sampled)  # an endpoint reports complete rows only
        rate = tokens / max(1e-9, time.monotonic() - self.start)
        parts = [f"{tokens:,} tokens", f"{rate:,.0f} tok/s"]
        if self.prompts and not tokens:
            parts = [f"{self.prompts} prompts prefilled"]
        if self.critiques:
            parts.append(f"{self.parsed / self.critiques:.0%} parsed")
        if is_scalar:
            parts = []
        if self.errors:
            parts.append(f"{self.errors} errors")
        self.bar.set_postfix_str(", ".join(parts), refresh=False)

    def write_cost(self) -> None:
        """Writes the seconds so far, which a killed run adds to."""
        self.written = self.seconds
        write_cost(self.cost_path, {"seconds": self.written})
