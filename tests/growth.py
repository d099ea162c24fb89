"""Tells linear from quadratic work; a slow or busy machine fails no check."""

import time
from collections.abc import Callable

LIMIT_SECONDS = 20.0  # of CPU time


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def check_linear(work: Callable[[int], object], length: int, factor: int = 8) -> None:
    """Raises AssertionError if work(length) takes time that is quadratic in `length`.

    Work within LIMIT_SECONDS / factor² passes. Slower work is repeated `factor` times as long: a
    quadratic algorithm takes more than LIMIT_SECONDS, and a linear one factor times as long.
    """
    if cpu_seconds(lambda: work(length)) < LIMIT_SECONDS / factor**2:
        return
    seconds = cpu_seconds(lambda: work(factor * length))
    assert seconds < LIMIT_SECONDS, f"{factor * length:,} characters take {seconds:.1f} s"
