"""SIGTERM and Ctrl-C as a flag that the train loop checks between steps."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from grm_jax.training import checkpoint

log = logging.getLogger(__name__)
INTERRUPTED = 130  # exit status after Ctrl-C
RESUME = "Run the same command again to resume"


class Stopped(RuntimeError):
    """A signal stopped the run after its state was saved; the same command resumes it.

    interrupted: it was Ctrl-C on one of the hosts.
    """

    def __init__(self, message: str, interrupted: bool = False):
        super().__init__(message)
        self.interrupted = interrupted


class StopSignal:
    """Records SIGTERM, which a preempted machine receives, and Ctrl-C while the context is entered.

    A second Ctrl-C ends the process at once, with status 130, also while a program runs on the
    device; in a notebook it raises KeyboardInterrupt instead, when that program has ended.

    One object serves all stages of a run. A signal during the last step of a stage does not
    interrupt that stage; it stops the run before the next one:

        stop = StopSignal()
        with stop:
            for i in range(steps):
                train_step(i)
                if stop.requested():    # the same answer on all hosts
                    save()
                    raise stop.stopped("after step 3; the state is saved")
        stop.check("rl")                # raises Stopped
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}
        self._wakeup = (-1, -1)  # the descriptor to which Python writes signals, and its former one

    def __enter__(self) -> StopSignal:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._previous[number] = signal.signal(number, self._record)
        except ValueError:  # not in the main thread, as in a notebook's worker
            log.warning(
                "signal %d cannot be caught outside the main thread: "
                "the state is not saved when the machine is preempted",
                signal.SIGTERM,
            )
            return self
        if "ipykernel" not in sys.modules:
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._wakeup = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            threading.Thread(target=_watch, args=(read,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._wakeup[0] >= 0:
            signal.set_wakeup_fd(self._wakeup[1])
            os.close(self._wakeup[0])
            self._wakeup = (-1, -1)
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self._received:
            raise KeyboardInterrupt
        self._received.append(number)

    def requested(self) -> bool:
        """Whether any host has received a signal. Every host must call it at the same step."""
        return checkpoint.agree(bool(self._received))

    def stopped(self, stage: str, when: str) -> Stopped:
        """Returns the error of a run that stops. Every host must call it."""
        interrupted = checkpoint.agree(signal.SIGINT in self._received)
        return Stopped(f"{stage}: stopped by a signal {when}. {RESUME}", interrupted)

    def check(self, stage: str) -> None:
        """Raises Stopped if a signal came during the last step of the stage before this one."""
        if self.requested():
            raise self.stopped(stage, "before its first step; the earlier stages are saved")


def _watch(descriptor: int) -> None:
    """Counts Ctrl-C in a thread: the main thread runs no handler while it waits for the device."""
    count = 0
    with open(descriptor, "rb", buffering=0) as signals:
        while numbers := signals.read(64):
            for _ in range(numbers.count(signal.SIGINT)):
                count += 1
                if count > 1:
                    print(f"interrupted again: not saved. {RESUME}", file=sys.stderr, flush=True)
                    os._exit(INTERRUPTED)
                text = "interrupted: saves after this step; Ctrl-C again exits at once"
                print(text, file=sys.stderr, flush=True)
