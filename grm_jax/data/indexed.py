"""An indexed file of JSON lines: any line is read directly, without the others in memory.

A folder holds records.jsonl, offsets.npy (int64: where each line ends), checksums.json and, written
last, index.json with the number of lines of each section. A section is one task of a mixture.
"""

import array
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from grm_jax import checksums, strict_json
from grm_jax.storage import as_path, fetch, forget, replace_folder, write_atomic

log = logging.getLogger(__name__)
READY = "index.json"
_WRITING_HOURS = 12  # how long the other processes wait for process 0


def is_indexed(folder: Any) -> bool:
    """Whether `write_index` has finished in this folder, local or a bucket's."""
    return (as_path(folder) / READY).exists()


def write_index(folder: Any, sections: Iterable[tuple[str, Iterator[str]]]) -> None:
    """Writes (name, JSON texts) sections, one text per line. Memory: 8 bytes per line."""
    ends, counts, size = array.array("q"), {}, 0
    marker = as_path(folder) / READY
    marker.unlink(missing_ok=True)
    with replace_folder(folder) as local:
        with open(local / "records.jsonl", "wb") as out:
            for name, texts in sections:
                before = len(ends)
                for text in texts:
                    size += out.write(text.encode() + b"\n")
                    ends.append(size)
                counts[name] = len(ends) - before
        np.save(local / "offsets.npy", np.frombuffer(ends, np.int64) if ends else np.zeros(0, int))
        ready = strict_json.dumps(counts) + "\n"
        checksums.write(local, {READY: ready})
    write_atomic(marker, ready)


def problem(folder: Any) -> str:
    """Returns why the index in a folder cannot be used, or ""; reads all of it."""
    if not is_indexed(folder):
        return f"{READY} is missing"
    return checksums.problem(fetch(str(folder)))


def open_or_write(folder: Any, write: Callable[[], None], alone: bool = False) -> "Index":
    """Opens an index, which process 0 writes if it is missing or damaged; the other processes wait.

    alone: every process writes its own, as in a temporary folder.

    Raises:
      FileNotFoundError: the index is damaged, and a file that it was made of no longer exists.
    """
    if (reason := problem(folder)) and (alone or jax.process_index() == 0):
        if exists := is_indexed(folder):
            log.warning("%s: %s; the folder is written again", folder, reason)
        try:
            write()
        except FileNotFoundError as error:
            if not exists:
                raise
            message = f"{folder}: {reason}, and cannot be written again: {error}"
            raise FileNotFoundError(message) from error
        forget(folder)
    deadline = time.monotonic() + 3600 * _WRITING_HOURS
    while reason and (reason := problem(folder)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process 0 did not write {folder} in {_WRITING_HOURS} hours")
        time.sleep(2)
        forget(folder)
    return Index(folder)


class Index:
    """The lines that `write_index` wrote: `index[i]` is the i-th, parsed.

    `sections` maps each name to its range of lines. A bucket's folder is copied to this machine.
    """

    def __init__(self, folder: Any):
        local = fetch(str(folder))
        self._file = open(local / "records.jsonl", "rb")
        self._ends = np.load(local / "offsets.npy", mmap_mode="r")
        self.sections, start = {}, 0
        for name, count in strict_json.read(local / READY).items():
            self.sections[name] = range(start, start + count)
            start += count

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Any:
        start = int(self._ends[i - 1]) if i else 0
        return strict_json.loads(os.pread(self._file.fileno(), int(self._ends[i]) - start, start))
