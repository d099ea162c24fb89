"""Reads records (JSON-like dicts) from files, with the line of each, and counts those that fail.

`sources.py` lists what a source may be; JSON lines and arrays are parsed here, CSV, Parquet and
Arrow in `tables.py`. A record that is not JSON, not UTF-8 or not an object is returned with the
problem, so that the caller can report it and continue.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from grm_jax import strict_json
from grm_jax.data import json_arrays, shards, sources, tables
from grm_jax.data.tables import check_is_text, open_bytes
from grm_jax.model_files import one_line

log = logging.getLogger(__name__)

GRACE = 100  # records seen before the share of malformed ones is checked; the end always checks it
_SHOWN = 5


class Malformed(ValueError):
    """A record lacks a field of its layout, or a field has another type."""


class Unusable(ValueError):
    """A well-formed record that gives no comparison with a single best response."""


class TooManyMalformed(ValueError):
    """More than the allowed share of the records is malformed."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
      line: line of the file on which it begins, from 1; in a table, its number.
      number: the line in a JSON-lines file, the position from 1 in an array or a table.
      fields: its content; empty if there is a problem.
      problem: why it has no content, None if it has.
      is_table: of a CSV file or a table, where lists and numbers may be JSON text.
    """

    line: int
    number: int
    fields: dict[str, Any]
    problem: str | None = None
    is_table: bool = False


@dataclasses.dataclass
class Account:
    """Counts records: seen, malformed (file, line, reason), and unusable by reason.

    Attributes:
      max_share: share of malformed records above which `check` raises; 0 allows none.
      source: name of the data, for the error.
    """

    max_share: float = 0.01
    source: str = ""
    seen: int = 0
    malformed: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    unusable: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def report(self, path: str, line: int, reason: str) -> None:
        """Counts and logs a malformed record."""
        self.malformed.append((path, line, reason))
        log.warning("%s:%d: skipped: %s", path, line, reason)

    def check(self, final: bool = False) -> None:
        """Raises TooManyMalformed above the share, after `GRACE` records or at the end."""
        if len(self.malformed) <= self.max_share * self.seen or not (final or self.seen >= GRACE):
            return
        first = "; ".join(f"{path}:{line}: {why}" for path, line, why in self.malformed[:_SHOWN])
        prefix = f"{self.source}: " if self.source else ""
        raise TooManyMalformed(
            f"{prefix}{len(self.malformed)} of {self.seen} records are malformed, more than the "
            f"share of {self.max_share:g} that may be skipped: {first}. Fix the records, or raise "
            "max_skipped"
        )

    def summary(self) -> dict[str, Any]:
        """Counts, JSON-ready."""
        unusable = dict(self.unusable)
        return {"seen": self.seen, "malformed": len(self.malformed), "unusable": unusable}


def read_records(source: str | Path) -> Iterator[Record]:
    """Yields the records of a source (`sources.local_files`), in its order.

    .csv, .tsv, .parquet and .arrow are tables, other suffixes JSON lines or one JSON array; a file
    without any of these suffixes is recognised by its content, and so is gzip. Blank lines are
    skipped, but counted. Numbers and lines of the files of one source follow each other.

    Raises:
      FileNotFoundError, ValueError: what `sources.local_files` raises; a .json file that holds no
        array, an array that is not valid JSON, or a damaged file.
    """
    before = last = 0
    for path in sources.local_files(source):
        for record in _guarded(path):
            last = before + max(record.line, record.number)
            if before:
                record = dataclasses.replace(
                    record, line=before + record.line, number=before + record.number
                )
            yield record
        before = last


def _guarded(path: Path) -> Iterator[Record]:
    """Yields the records of a file. Raises ValueError that names it, whatever is wrong with it."""
    try:
        yield from _file_records(path)
    except OSError as error:
        if error.filename is not None:  # of the file system, which names the file
            raise
        raise _damaged(path, error) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    if str(path) in str(error):
        return ValueError(one_line(error))
    problem = one_line(f"{type(error).__name__}: {error}")
    return ValueError(f"{path} is damaged or has another format: {problem:.200}")


def _file_records(path: Path) -> Iterator[Record]:
    suffix = shards.suffix_of(path.name)
    if suffix not in shards.SUFFIXES:
        suffix = shards.suffix_of(f"data{sources.format_of(path)}")
    if suffix in tables.FORMATS:
        for number, row in enumerate(tables.read_table(path, suffix), 1):
            if isinstance(row, tables.BadCell):
                yield Record(number, number, {}, str(row), is_table=True)
            else:
                yield _checked(number, number, row, is_table=True)
        return
    with open_bytes(path) as file:
        check_is_text(path, file)
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if head[:1] == b"[" and (suffix == ".json" or json_arrays.is_array(file)):
            text = file.read().decode("utf-8-sig", errors="surrogateescape")
            for number, element in enumerate(json_arrays.elements(path, text), 1):
                if element.problem:
                    problem = f"element {number} (line {element.line}): {element.problem}"
                    yield Record(element.line, number, {}, problem)
                else:
                    yield _checked(element.line, number, element.value)
            return
        yield from _line_records(path, file, is_json=suffix == ".json")


def _line_records(path: Path, file: IO[bytes], is_json: bool) -> Iterator[Record]:
    for number, raw in enumerate(file, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            if is_json and raw.strip() and not isinstance(_parsed(raw), dict):
                raise ValueError(
                    f"{path} is not a JSON array: give an array of objects, or one object "
                    "per line as .jsonl"
                )
        if not raw.strip():
            continue
        try:
            value = strict_json.loads(raw.rstrip(b"\r\n"), unique_keys=True)
        except ValueError as error:
            yield Record(number, number, {}, str(error))
        else:
            yield _checked(number, number, value)


def strict_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the contents of a source's records. Raises ValueError naming the first bad one."""
    for record in read_records(path):
        if record.problem:
            raise ValueError(f"{path}, line {record.line}: {record.problem}")
        yield record.fields


def _parsed(raw: bytes) -> Any:
    try:
        return strict_json.loads(raw)
    except ValueError:
        return None


def _checked(line: int, number: int, value: Any, is_table: bool = False) -> Record:
    """Returns the record of a parsed value of any kind of file."""
    if not isinstance(value, dict):
        problem = f"a {type(value).__name__} instead of an object"
        return Record(line, number, {}, problem)
    if problem := strict_json.problem(value):
        return Record(line, number, {}, problem, is_table)
    return Record(line, number, value, is_table=is_table)


# ---------------------------------------------------------------- TFDS


def tfds_splits(folder: Path) -> list[str]:
    """Returns the splits of a prepared TFDS folder (NAME/CONFIG/VERSION)."""
    file = folder / "dataset_info.json"
    try:
        return [str(split["name"]) for split in strict_json.read(file).get("splits", [])]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged: prepare the data set again") from None
