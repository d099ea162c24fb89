"""RunStore: the partial results of a long run, so that a killed run resumes without losing work.

`grm judge`, `grm eval`, the samplers of RFT and of the meta reward model, the eval stage and the
baselines table all use it. Example:

    identity = {"model": "spct@1a2b3c", "k": 8, "input": digest}    # what every record depends on
    with RunStore("OUT.jsonl.part", identity, key="line") as store:
        for line, comparison in enumerate(comparisons, start=1):
            if line not in store:                                   # done by an earlier run
                store.append(line, judge_one(comparison))           # on disk when it returns
        store.finish("OUT.jsonl", order=range(1, len(comparisons) + 1))

A caller that works in batches pays one fsync per batch:

    with RunStore(workdir / "samples", {"sampler": "endpoint"}, shared=True) as store:
        missing = [request for request in requests if key_of(request) not in store]
        store.append_all({key_of(r): reply for r, reply in zip(missing, sample(missing))})
        replies = store.records(map(key_of, requests))              # in the order of the requests

A request that failed for good is a record too, by convention {"text": None}, and is not repeated.
Put into `identity` what all records share: a run with another identity is refused. Put into the
key what may differ from record to record.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from grm_jax import strict_json
from grm_jax.hosts import distributed
from grm_jax.storage import (
    as_path,
    check_replaceable,
    is_remote,
    open_atomic,
    remove_leftovers,
    write_atomic,
)

_NAMED = re.compile(r".+@([0-9a-f]{12})")  # a model's or template's name with its fingerprint

REMOVE_LINE = "remove that line, and its record is computed again"

Key = str | int
Record = dict[str, Any]


class IdentityMismatch(ValueError):
    """A store (or a finished output) belongs to a run with other settings or another input."""


class StoreMismatch(RuntimeError):
    """The processes of one run see different records: the store is not on a shared file system."""


class RunStore(Mapping[Key, Record]):
    """An append-only mapping from keys to JSON records, durable after every append.

    Layout. A local path with a suffix is one file: a header line with the identity, then one line
    per record, each forced to disk before `append` returns. A line is JSON, a tab and the CRC-32 of
    the JSON. A kill leaves at most one torn last line, which the next run drops; any other damage
    is an error that names the line. A bucket has no appending, so there, and for a local path
    without a suffix, the store is a folder of numbered parts (000000.jsonl, ...), one per append;
    a part is written atomically. Stores of earlier versions, whose lines have no checksum and whose
    parts may have no header, are read as well.

    Args:
      path: the file or folder. It is created if missing.
      identity: JSON values on which every record depends; a run resumes only where all are equal.
      key: name of the record field that holds the key; added to records that lack it.
      existing: "resume" continues a store, "overwrite" empties it, "refuse" raises.
      shared: all processes of a multi-host run open the store and append the same records; process
        0 writes, the others keep the records in memory. If False, this process writes.
      one_disk: as `shared`, but the others get only the keys of process 0, not its disk's records.

    Raises:
      FileExistsError: the store exists and existing = "refuse".
      IdentityMismatch: the store has another identity; names the first differing field.
      BlockingIOError: another run is writing the store.
      ValueError: a line is damaged, or the path is a symlink, a FIFO or a device.
      StoreMismatch: on all processes of a shared store, if they see different records.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        identity: Mapping[str, Any],
        *,
        key: str = "key",
        existing: str = "resume",
        shared: bool = False,
        one_disk: bool = False,
    ):
        self.path = as_path(path)
        self.identity = json.loads(json.dumps(identity))
        self.key = key
        self.is_folder = is_remote(path) or not self.path.suffix
        self.is_writer, processes = _process() if shared or one_disk else (True, 1)
        # Offset and length of a record in the file; the line itself if this process has no file.
        self._index: dict[Key, tuple[int, int] | bytes] = {}
        self._descriptor = -1
        has_file = self.is_writer or not one_disk
        if existing == "refuse" and has_file and self.path.exists():
            raise FileExistsError(
                f"{self.path} exists: pass --resume to resume it, or --overwrite to start over"
            )
        try:
            if self.is_writer:
                self._lock()
            if existing == "overwrite":
                self._clear()
            elif has_file:
                self._load()
            if processes > 1 and one_disk:
                keys = distributed.from_first(lambda: list(self))
                self._index |= {} if self.is_writer else dict.fromkeys(keys, b"null")
            elif processes > 1:
                _check_same_records(self, self.path)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, key: Key) -> Record:
        return json.loads(self._text(key))

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __iter__(self) -> Iterator[Key]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def records(self, order: Iterable[Key] | None = None) -> Iterator[Record]:
        """Yields the records in the order of `order`, or in the order in which they were added."""
        return (self[key] for key in (self if order is None else order))

    def append(self, key: Key, record: Record) -> None:
        """Adds one record; it is durable on return. Raises ValueError for a key in the store."""
        self.append_all({key: record})

    def append_all(self, records: Mapping[Key, Record]) -> None:
        """Adds records with a single fsync (in a folder: as one part)."""
        lines = {}
        for key, record in records.items():
            if key in self:
                raise ValueError(f"{self.key} {key} is in {self.path} already")
            lines[key] = _encode(record if self.key in record else {self.key: key, **record})
        if not lines:
            return
        if self.is_writer and not self.is_folder:
            offset = self._write(lines.values())
            for key, line in lines.items():
                self._index[key] = (offset, len(line))
                offset += len(line)
            return
        if self.is_writer:
            self._write_part(lines.values())
        self._index |= {key: verified(line) or b"" for key, line in lines.items()}

    def begin(self) -> None:
        """Writes the identity of a folder that has no part yet; a file begins with it anyway."""
        if self.is_writer and self.is_folder and not self._parts():
            self._write_part([])

    def line(self, key: Key) -> bytes:
        """Returns the JSON line of a record, as `finish` writes it."""
        return self._text(key) + b"\n"

    def discard(self, key: Key) -> None:
        """Forgets a record, so that another one can be appended in its place."""
        self._index.pop(key, None)

    def finish(self, output: str | os.PathLike, order: Iterable[Key] | None = None) -> None:
        """Replaces the local file `output` by the records, atomically, and removes the store.

        order: keys in the order of the output's lines; by default the order of the appends.
        Raises ValueError where a key of `order` has no record yet.
        """
        keys = list(self if order is None else order)
        missing = [key for key in keys if key not in self]
        if missing:
            raise ValueError(
                f"{self.path} lacks {len(missing)} of {len(keys)} records, the first is "
                f"{self.key} {missing[0]}: run the same command again to add them"
            )
        if self.is_writer:
            remove_leftovers(output)
            with open_atomic(output) as file:
                file.writelines(self.line(key) for key in keys)
        self.remove()

    def remove(self) -> None:
        """Removes the store from disk, then releases the lock."""
        if self.is_writer:
            self.path.rmtree() if self.is_folder else self.path.unlink()
        self.close()

    def close(self) -> None:
        """Releases the lock. The store stays on disk."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _text(self, key: Key) -> bytes:
        """Returns the JSON of a record, read again from the file and checked again."""
        place = self._index[key]
        if isinstance(place, bytes):
            return place
        text = verified(os.pread(self._descriptor, place[1], place[0]))
        if text is None:
            raise ValueError(f"{self.path} was changed by another program: start over")
        return text

    def _lock(self) -> None:
        """Creates and locks the store; in a bucket there is nothing to lock."""
        if is_remote(self.path):
            return
        (self.path if self.is_folder else self.path.parent).mkdir(parents=True, exist_ok=True)
        flags = os.O_RDONLY
        if not self.is_folder:
            if os.path.islink(self.path):
                raise ValueError(f"{self.path} is a symlink: remove it, or name another output")
            check_replaceable(self.path)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        in_use = BlockingIOError(
            f"{self.path} is being written by another run: wait for it, or stop it"
        )
        self._descriptor = os.open(self.path, flags, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two calls the other run may have finished, and removed the file.
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                raise in_use
        except (BlockingIOError, FileNotFoundError):
            raise in_use from None

    def _parts(self) -> list[Any]:
        parts = self.path.glob("*.jsonl") if self.path.exists() else ()
        return sorted((p for p in parts if p.stem.isdecimal()), key=lambda part: int(part.stem))

    def _clear(self) -> None:
        if not self.is_writer:
            return
        if self.is_folder:
            for part in self._parts():
                part.unlink()
        else:
            os.ftruncate(self._descriptor, 0)
            self._write([_encode(self.identity)])

    def _load(self) -> None:
        """Indexes the records, drops a torn last line, and writes the header of a new file."""
        if self.is_folder:
            for part in self._parts():
                self._index_lines(part, io.BytesIO(part.read_bytes()))
        elif self.path.exists():
            with open(self.path, "rb") as file:
                size = self._index_lines(self.path, file)
            if self.is_writer:
                self._check_torn_header(size)
                os.ftruncate(self._descriptor, size)
                if not size:
                    self._write([_encode(self.identity)])

    def _check_torn_header(self, size: int) -> None:
        """Raises ValueError for a file without a complete line that is no torn header."""
        with open(self.path, "rb") as file:
            torn = b"" if size else file.readline()
        if not _encode(self.identity).startswith(torn):
            raise ValueError(
                f"{self.path} does not begin with the settings of its run: start over with "
                "--overwrite"
            )

    def _index_lines(self, path: Any, lines: Iterable[bytes]) -> int:
        """Indexes the records of one file; returns the bytes up to the last complete line."""
        offset = 0
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # the run was killed while it wrote this line
            record = _parsed(line)
            key = None if record is None else record.get(self.key)
            if (
                key is not None
                and number == 1
                and not self.is_folder
                and self.key not in self.identity
            ):
                raise ValueError(
                    f"{path} does not begin with the settings of its run: start over with "
                    "--overwrite"
                )
            if record is not None and number == 1 and (key is None or not self.is_folder):
                # The header of an earlier version, without a checksum, has fewer fields.
                known = self.identity if b"\t" in line else record
                new = {name: value for name, value in self.identity.items() if name in known}
                check_identity(record, new, path)
            elif not isinstance(key, str | int) or isinstance(key, bool):
                raise ValueError(
                    f"{path}, line {number} is damaged: "
                    + ("start over with --overwrite" if number == 1 else REMOVE_LINE)
                )
            else:
                in_file = self.is_writer and not self.is_folder
                self._index[key] = (offset, len(line)) if in_file else verified(line) or b""
            offset += len(line)
        return offset

    def _write(self, lines: Iterable[bytes]) -> int:
        """Appends lines to the file, with one fsync; returns the offset of the first."""
        offset = os.fstat(self._descriptor).st_size
        try:
            with open(self._descriptor, "ab", closefd=False) as file:
                file.writelines(lines)
            os.fsync(self._descriptor)
        except BaseException:  # a full disk: half a line would damage the next one
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, offset)
            raise
        return offset

    def _write_part(self, lines: Iterable[bytes]) -> None:
        parts = self._parts()
        number = int(parts[-1].stem) + 1 if parts else 0
        content = [_encode(self.identity), *lines]
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / f"{number:06d}.jsonl"
        write_atomic(target, b"".join(content))


def check_identity(old: Mapping[str, Any], new: Mapping[str, Any], path: Any) -> None:
    """Raises IdentityMismatch that names the first field in which the identities differ."""
    for name in sorted({*old, *new}):
        if content_of(old.get(name)) != content_of(new.get(name)):
            raise IdentityMismatch(
                f"{path} was begun with {name} = {old.get(name)!r:.80}, now it is "
                f"{new.get(name)!r:.80}: use the same settings, or start over with --overwrite"
            )


def content_of(value: Any) -> Any:
    """Returns what must be equal in two runs: of NAME@FINGERPRINT the fingerprint.

    The names of models and templates may change; no record depends on them.
    """
    match = _NAMED.fullmatch(value) if isinstance(value, str) else None
    return match[1] if match else value


# ---------------------------------------------------------------- lines


def _encode(record: Mapping[str, Any]) -> bytes:
    """Returns the line of a record. Raises ValueError for a number that is not finite."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8 form, but it has an escape
        text = json.dumps(record, allow_nan=False).encode()
    except ValueError:
        problem = strict_json.problem(record, numbers_only=True)
        raise ValueError(f"a record cannot be stored: {problem}") from None
    return b"%b\t%08x\n" % (text, zlib.crc32(text))


def verified(line: bytes) -> bytes | None:
    """Returns the JSON of a line without its checksum; None if the two do not fit.

    A line of an earlier version, which has no checksum, is returned as it is.
    """
    text, tab, checksum = line.rstrip(b"\n").rpartition(b"\t")
    if not tab:
        return checksum
    return text if b"%08x" % zlib.crc32(text) == checksum else None


def _parsed(line: bytes) -> Record | None:
    """Returns the record of a line; None for one that is damaged."""
    text = verified(line)
    try:
        record = None if text is None else strict_json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _process() -> tuple[bool, int]:
    """Whether this is process 0 of the run, and how many processes there are."""
    import jax

    return jax.process_index() == 0, jax.process_count()


def _check_same_records(keys: Iterable[Key], path: Any) -> None:
    import numpy as np
    from jax.experimental import multihost_utils

    digest = zlib.crc32("\n".join(sorted(map(str, keys))).encode())
    if len(np.unique(multihost_utils.process_allgather(np.array([digest])))) > 1:
        raise StoreMismatch(
            f"the processes see different records in {path}: use a folder that all of them share"
        )
