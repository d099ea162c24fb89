"""Metrics of a run: JSON lines, TensorBoard (through clu), a progress bar, JAX profiles."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from grm_jax.storage import PathLike, as_path, is_remote, read_lines, write_atomic


def plain(value: Any) -> str | bool | int | float | None:
    """Converts a value to JSON; NaN and infinities become text, because JSON has none."""
    if isinstance(value, (str, bool, type(None), int)):
        return value
    value = float(np.asarray(value))
    return value if math.isfinite(value) else str(value)


class MetricLog(contextlib.AbstractContextManager):
    """Scalars of one stage: one JSON object per step in `<folder>/<stage>.jsonl`, and TensorBoard.

    Opened at step s, it keeps the lines up to s and drops what an interrupted run wrote after its
    last checkpoint, so a resumed log has each step once. Only process 0 writes.
    """

    def __init__(
        self, folder: PathLike, stage: str, resume_step: int = 0, tensorboard: bool = True
    ):
        self.path, self.stage = as_path(folder) / f"{stage}.jsonl", stage
        self._file: Any = None
        self._writer: Any = None
        if jax.process_index() != 0:
            return
        kept = [row for row in read_jsonl(self.path) if row["step"] <= resume_step]
        self._lines = [json.dumps(row) + "\n" for row in kept]
        write_atomic(self.path, "".join(self._lines))
        if not is_remote(self.path):
            self._file = self.path.open("a")
        if tensorboard:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from clu.metric_writers import summary_writer

            self._writer = summary_writer.SummaryWriter(
                str(as_path(folder) / "tensorboard" / stage)
            )

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line; values are numbers or short strings (not sent to TensorBoard)."""
        if jax.process_index() != 0:
            return
        row = {"step": int(step), **{name: plain(value) for name, value in scalars.items()}}
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        else:  # a bucket's files cannot be appended to, so the whole file is written again
            self._lines.append(json.dumps(row) + "\n")
            write_atomic(self.path, "".join(self._lines))
        if self._writer is not None:
            numbers = {
                f"{self.stage}/{name}": value
                for name, value in row.items()
                if isinstance(value, (int, float)) and name != "step"
            }
            self._writer.write_scalars(int(step), numbers)

    def __exit__(self, *_: Any) -> None:
        for opened in (self._file, self._writer):
            if opened is not None:
                opened.close()


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a JSONL file, up to a line cut off by a kill; none if it does not exist."""
    path = as_path(path)
    if not path.exists():
        return []
    rows = []
    for line in read_lines(path):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress(contextlib.AbstractContextManager):
    """A progress bar with the last metrics, or a line every `every` seconds without a terminal."""

    def __init__(
        self, title: str, total: int, start: int = 0, shown: Sequence[str] = (), every: float = 15.0
    ):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as RichProgress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._title, self._total, self._shown, self._every = title, total, shown, every
        self._console, self._last_print = Console(stderr=True), 0.0
        self._main = jax.process_index() == 0
        self._bar: RichProgress | None = None
        if self._main and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
            )
            self._bar = RichProgress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, completed=start, metrics="")

    def update(self, step: int, scalars: Mapping[str, Any]) -> None:
        text = "  ".join(f"{k} {float(scalars[k]):.4g}" for k in self._shown if k in scalars)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=text)
        elif self._main and (
            step == self._total or time.monotonic() - self._last_print > self._every
        ):
            self._last_print = time.monotonic()
            print(f"{self._title}  {step}/{self._total}  {text}", flush=True)

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()


class Profiler(contextlib.AbstractContextManager):
    """Writes a JAX profile of the steps first to last of `steps`, inclusive; () profiles none."""

    def __init__(self, folder: PathLike, steps: Sequence[int] = ()):
        self._folder, self._steps, self._is_on = str(folder), tuple(steps), False

    def before(self, step: int) -> None:
        if self._steps and not self._is_on and self._steps[0] <= step <= self._steps[-1]:
            jax.profiler.start_trace(self._folder)
            self._is_on = True

    def after(self, step: int, result: Any = None) -> None:
        if self._is_on and step >= self._steps[-1]:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._is_on = False

    def __exit__(self, *_: Any) -> None:
        if self._is_on:
            jax.profiler.stop_trace()


def memory_metrics() -> dict[str, float]:
    """Returns GiB in use and at peak on the busiest local device; empty on CPU."""
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {
        name: max(s[field] for s in stats) / 2**30
        for name, field in names.items()
        if field in stats[0]
    }
