"""Metrics of a run: JSON lines, TensorBoard files, a progress bar, JAX profiles."""

import contextlib
import datetime
import logging
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from grm_jax import strict_json
from grm_jax.storage import PathLike, as_path, is_remote, write_atomic

log = logging.getLogger(__name__)


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
        self.last: dict[str, Any] | None = None  # the row before the first one of this run
        self._events: EventFile | None = None
        if jax.process_index() != 0:
            return
        kept = [row for row in read_jsonl(self.path) if _step_of(row) <= resume_step]
        self.last = kept[-1] if kept else None
        self._lines = [strict_json.dumps(row) + "\n" for row in kept]
        write_atomic(self.path, "".join(self._lines))
        if not is_remote(self.path):
            self._file = self.path.open("a")
        if tensorboard:
            try:
                self._events = EventFile(as_path(folder) / "tensorboard" / stage, resume_step + 1)
            except ModuleNotFoundError:
                log.info(
                    "no TensorBoard files: run pip install tensorboard; %s has the metrics",
                    self.path,
                )

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line; values are numbers or short strings (not sent to TensorBoard)."""
        if jax.process_index() != 0:
            return
        row = {"step": int(step), **{name: plain(value) for name, value in scalars.items()}}
        if self._file is not None:
            self._file.write(strict_json.dumps(row) + "\n")
            self._file.flush()
        else:  # a bucket's files cannot be appended to, so the whole file is written again
            self._lines.append(strict_json.dumps(row) + "\n")
            write_atomic(self.path, "".join(self._lines))
        if self._events is not None:
            numbers = {
                f"{self.stage}/{name}": value
                for name, value in row.items()
                if isinstance(value, (int, float)) and name != "step"
            }
            self._events.write(int(step), numbers)

    def __exit__(self, *_: Any) -> None:
        for opened in (self._file, self._events):
            if opened is not None:
                opened.close()


def _step_of(row: Mapping[str, Any]) -> float:
    """Returns the step of a line; infinity, after every step, for a line without one."""
    step = row.get("step")
    return step if isinstance(step, int) else math.inf


class EventFile:
    """A TensorBoard file of scalars. It needs the package tensorboard and never imports TensorFlow.

    first_step: TensorBoard drops the values of earlier files in the folder from this step on.

    Raises ModuleNotFoundError without tensorboard.
    """

    def __init__(self, folder: PathLike, first_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder = as_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        # Nanoseconds, because a resumed run may start within the second.
        path = folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
        self._records = RecordWriter(path.open("wb"))
        first = self._event(wall_time=now, file_version="brain.Event:2")
        self._records.write(first.SerializeToString())
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        opened = self._event(wall_time=now, step=first_step, session_log=start)
        self._records.write(opened.SerializeToString())

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one event with all scalars."""
        values = [self._summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=values))
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        self._records.close()


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
    """Returns the objects of a JSONL file; none if it does not exist.

    A last line that a kill cut off is dropped. Other damaged lines are skipped with a warning.
    """
    path = as_path(path)
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = strict_json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                log.warning("%s, line %d is damaged and skipped: %s", path, number, error)
    return rows


class Progress(contextlib.AbstractContextManager):
    """A progress bar with the time left and the last metrics, on process 0.

    Without a terminal, a line every `every` seconds and one at the end. Both appear with the first
    update, because a first step that compiles says nothing about the others.

    Args:
      title: first word of the bar and of each line.
      total: the last step.
      start: the step that a resumed run starts from.
      shown: names of the metrics to show.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, shown: Sequence[str] = (), every: float = 30.0
    ):
        self._title, self._total, self._shown, self._every = title, total, shown, every
        self._first: tuple[float, int] | None = None  # time and step of the first update
        self._last_print, self._last_step = time.monotonic(), -1
        self._bar: Any = None
        self._task: Any = None
        self._start = start

    def update(self, step: int, scalars: Mapping[str, Any] | None = None) -> None:
        """Shows that `step` of `total` is done, with its metrics."""
        if jax.process_index() != 0:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, step
            self._bar = self._make_bar()
        row = scalars or {}
        text = "  ".join(f"{k} {float(row[k]):.4g}" for k in self._shown if k in row)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=text)
        elif step != self._last_step and (
            step >= self._total or now - self._last_print > self._every
        ):
            self._last_print, self._last_step = now, step
            parts = (f"{self._title}  {step:,}/{self._total:,}", self._time_left(now, step), text)
            print("  ".join(filter(None, parts)), flush=True)

    def _time_left(self, now: float, step: int) -> str:
        """The time to the last step, at the mean speed since the first update: "1:05 left"."""
        began, first = self._first or (now, step)
        if step >= self._total or step == first:
            return ""
        seconds = round((now - began) / (step - first) * (self._total - step))
        return f"{datetime.timedelta(seconds=seconds)} left".removeprefix("0:")

    def _make_bar(self) -> Any:
        """Starts the bar if stderr is a terminal."""
        from rich import progress
        from rich.console import Console

        if not sys.stderr.isatty():  # Console.is_terminal obeys FORCE_COLOR, which notebooks set
            return None
        console = Console(stderr=True)
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[metrics]}"),
        )
        bar = progress.Progress(*columns, console=console)
        bar.start()
        self._task = bar.add_task(self._title, total=self._total, completed=self._start, metrics="")
        return bar

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()


def check_steps(name: str, steps: Sequence[int]) -> None:
    """Refuses steps of a `Profiler` that do not rise. name: the field with "="."""
    if list(steps) != sorted(steps):
        raise ValueError(f"{name}{tuple(steps)!r:.80}: name the first step before the last")


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
