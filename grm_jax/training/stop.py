"""SIGTERM as a flag that the train loop checks between steps."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

from grm_jax.training import checkpoint

log = logging.getLogger(__name__)


class Stopped(RuntimeError):
    """A signal stopped the run after its state was saved; the same command resumes it."""


class StopSignal:
    """Records SIGTERM, which a preempted machine receives, while the context is entered.

    One object serves all stages of a run. A signal during the last step of a stage does not
    interrupt that stage; it stops the run before the next one:

        stop = StopSignal()
        with stop:
            for i in range(steps):
                train_step(i)
                if stop.requested():    # the same answer on all hosts
                    save()
                    raise Stopped
        stop.check("rl")                # raises Stopped
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def __enter__(self) -> StopSignal:
        try:
            self._previous = signal.signal(signal.SIGTERM, self._record)
        except ValueError:  # not in the main thread, as in a notebook's worker
            log.warning(
                "signal %d cannot be caught outside the main thread: "
                "the state is not saved when the machine is preempted",
                signal.SIGTERM,
            )
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def requested(self) -> bool:
        """Whether any host has received a signal. Every host must call it at the same step."""
        return checkpoint.agree(self._received)

    def check(self, stage: str) -> None:
        """Raises Stopped if a signal came during the last step of the stage before this one."""
        if self.requested():
            raise Stopped(
                f"{stage}: stopped by a signal before its first step; the earlier stages are "
                "saved. Run the same command again to resume"
            )
