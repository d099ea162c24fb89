"""Where a run's numbers go: JSON lines, TensorBoard (through clu) and a progress bar; and the profile of chosen steps."""

import json
import math
import os
import time

import jax
import numpy as np

from grm_jax.storage import as_path, is_remote, read_lines, write_atomic


def plain(value):
    """A number that JSON can hold; NaN and infinities as text, because JSON has none."""
    if isinstance(value, (str, bool, type(None), int)):
        return value
    value = float(np.asarray(value))
    return value if math.isfinite(value) else str(value)


class MetricLog:
    """Scalars of one stage, one JSON object per step in `<folder>/<stage>.jsonl`, mirrored to TensorBoard.

    Opened at step s it keeps the lines up to s and drops what an interrupted run wrote after its last checkpoint, so a resumed
    log has each step once. Only process 0 writes.
    """

    def __init__(self, folder, stage, resume_step=0, tensorboard=True):
        self.path, self.stage = as_path(folder) / f"{stage}.jsonl", stage
        self._file = self._writer = None
        self._rows: list[str] = []
        if jax.process_index() != 0:
            return
        kept = [
            json.dumps(row) + "\n" for row in read_jsonl(self.path) if row["step"] <= resume_step
        ]
        write_atomic(self.path, "".join(kept))
        if is_remote(self.path):
            self._rows = (
                kept  # A bucket's files cannot be appended to: each row writes the file anew.
            )
        else:
            self._file = self.path.open("a")
        if tensorboard:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from clu.metric_writers import summary_writer

            self._writer = summary_writer.SummaryWriter(
                str(as_path(folder) / "tensorboard" / stage)
            )

    def write(self, step, scalars):
        """Appends one row; values are numbers or short strings (strings stay out of TensorBoard)."""
        if jax.process_index() != 0:
            return
        row = {"step": int(step), **{name: plain(value) for name, value in scalars.items()}}
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        else:
            self._rows.append(json.dumps(row) + "\n")
            write_atomic(self.path, "".join(self._rows))
        if self._writer is not None:
            numbers = {
                f"{self.stage}/{k}": v
                for k, v in row.items()
                if isinstance(v, (int, float)) and k != "step"
            }
            self._writer.write_scalars(int(step), numbers)

    def close(self):
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_jsonl(path):
    """Rows of a JSONL file; a last line cut off by a kill is left out, and a file that is not there has none."""
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


class Progress:
    """A rich progress bar with the last metrics beside it; plain lines every `every` seconds where there is no terminal."""

    def __init__(self, title, total, start=0, shown=(), every=15.0):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._title, self._total, self._shown, self._every = title, total, shown, every
        self._console, self._spoken = Console(stderr=True), 0.0
        self._main = jax.process_index() == 0
        self._bar = None
        if self._main and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = RichProgress(
                *columns, TextColumn("{task.fields[note]}"), console=self._console
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, completed=start, note="")

    def update(self, step, scalars):
        note = "  ".join(f"{k} {float(scalars[k]):.4g}" for k in self._shown if k in scalars)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif self._main and (step == self._total or time.monotonic() - self._spoken > self._every):
            self._spoken = time.monotonic()
            print(f"{self._title}  {step}/{self._total}  {note}", flush=True)

    def close(self):
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Profiler:
    """Writes a JAX profile of chosen steps: `steps=(first, last)` inclusive, empty for none."""

    def __init__(self, folder, steps=()):
        self._folder, self._steps, self._on = str(folder), tuple(steps), False

    def before(self, step):
        if self._steps and not self._on and self._steps[0] <= step <= self._steps[-1]:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step, result=None):
        if self._on and step >= self._steps[-1]:
            jax.block_until_ready(result)
            self.close()

    def close(self):
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def memory_metrics():
    """Bytes in use and at peak on the busiest local device, in GiB; empty where the backend does not say (CPU)."""
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {
        ours: max(s[theirs] for s in stats) / 2**30
        for ours, theirs in names.items()
        if theirs in stats[0]
    }
