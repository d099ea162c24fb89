"""The lock of a run's folder: one run, of any number of processes, writes it at a time."""

import contextlib
from collections.abc import Iterator

import jax

from grm_jax import locks, storage
from grm_jax.training import inputs


@contextlib.contextmanager
def lock(folder: storage.PathLike, what: str = "a training run") -> Iterator[None]:
    """Holds a folder for this run. Process 0 locks it, and the others fail with it.

    Raises, on all processes:
      locks.InUse: another run holds the folder; names its host and pid.
      OSError: the folder is not writable.
    """
    with contextlib.ExitStack() as stack:
        answer = {"fault": "", "in_use": ""}
        if jax.process_index() == 0:
            try:
                stack.enter_context(storage.locked(folder, what))
            except OSError as error:
                in_use = "yes" if isinstance(error, locks.InUse) else ""
                answer = {"fault": str(error), "in_use": in_use}
        answer = inputs.from_process_0(answer)
        if fault := answer["fault"]:
            raise locks.InUse(fault) if answer["in_use"] else OSError(fault)
        yield
