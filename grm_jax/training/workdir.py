"""The lock of a run's folder: one run, of any number of processes, writes it at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from grm_jax import locks, storage
from grm_jax.training import inputs

FOLDERS = ("checkpoints", "final", "hf", "data", "profile")  # of a stage
FILES = ("result.json", "export.json", "metrics.jsonl")


def _check_entries(folder: storage.PathLike) -> None:
    """Raises OSError for a file instead of a folder, and what is no file in that of a file."""
    folder = storage.as_path(folder)
    if storage.is_remote(folder):
        return
    local = Path(folder)
    for path in (
        local / "config.json",
        *(path for name in FILES for path in local.glob(f"*/{name}")),
    ):
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is no regular file: move it away, the run writes one")
    for path in (path for name in FOLDERS for path in local.glob(f"*/{name}")):
        if path.exists() and not path.is_dir():
            raise OSError(f"{path} is no folder: move it away, the run makes one")


@contextlib.contextmanager
def lock(folder: storage.PathLike, what: str = "a training run") -> Iterator[None]:
    """Holds a folder for this run. Process 0 locks it, and the others fail with it.

    Raises, on all processes:
      locks.InUse: another run holds the folder; names its host and pid.
      OSError: the folder is not writable, or holds entries that no run makes.
    """
    with contextlib.ExitStack() as stack:
        answer = {"fault": "", "in_use": ""}
        if jax.process_index() == 0:
            try:
                stack.enter_context(storage.locked(folder, what))
                _check_entries(folder)
            except OSError as error:
                in_use = "yes" if isinstance(error, locks.InUse) else ""
                answer = {"fault": str(error), "in_use": in_use}
        answer = inputs.from_process_0(answer)
        if fault := answer["fault"]:
            raise locks.InUse(fault) if answer["in_use"] else OSError(fault)
        yield
