"""Reads records (JSON-like dicts) from files, with the line of each, and counts those that fail.

`sources.py` lists what a source may be; JSON lines and arrays are parsed here, CSV, Parquet and
Arrow in `tables.py`. A record that is not JSON, not UTF-8 or not an object is returned with the
problem, so that the caller can report it and continue.
"""

import collections
import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grm_jax.data import shards, sources, tables
from grm_jax.data.tables import open_bytes

log = logging.getLogger(__name__)

GRACE = 100  # records seen before the share of malformed ones is checked; the end always checks it
_SHOWN = 5
_BEFORE_ELEMENT = re.compile(r"[ \t\r\n,]*(?=[^\] \t\r\n,])")  # of a JSON array


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
    """

    line: int
    number: int
    fields: dict[str, Any]
    problem: str | None = None


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
    except (MemoryError, GeneratorExit):
        raise
    except Exception as error:
        if str(path) in str(error):
            raise
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{path} is damaged or has another format: {problem:.200}") from error


def _file_records(path: Path) -> Iterator[Record]:
    suffix = shards.suffix_of(path.name)
    if suffix not in shards.SUFFIXES:
        suffix = shards.suffix_of(sources.format_of(path))
    if suffix in tables.FORMATS:
        for number, row in enumerate(tables.read_table(path, suffix), 1):
            if isinstance(row, tables.BadCell):
                yield Record(number, number, {}, str(row))
            else:
                yield Record(number, number, row)
        return
    with open_bytes(path) as file:
        first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if first == b"[":
            content = file.read()
            if suffix == ".json" or isinstance(_parsed(content), list):
                yield from _array_records(path, content)
                return
            file.seek(0)
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
                if suffix == ".json" and raw.strip() and not isinstance(_parsed(raw), dict):
                    raise ValueError(
                        f"{path} holds no JSON array: give an array of objects, or one object "
                        "per line as .jsonl"
                    )
            if raw.strip():
                yield _line_record(number, raw)


def strict_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the contents of a source's records. Raises ValueError naming the first bad one."""
    for record in read_records(path):
        if record.problem:
            raise ValueError(f"{path}, line {record.line}: {record.problem}")
        yield record.fields


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _line_record(number: int, raw: bytes) -> Record:
    try:
        value = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting
        problem = f"not JSON that can be parsed: {type(error).__name__}"
    else:
        return _checked(number, number, value, b"\\u" in raw)
    return Record(number, number, {}, problem)


def _array_records(path: Path, content: bytes) -> Iterator[Record]:
    """The objects of a JSON array, each with the line on which it begins."""
    text = content.decode("utf-8-sig")
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    line, counted, number = 1, 0, 0
    while separators := _BEFORE_ELEMENT.match(text, at):
        at = separators.end()
        line, counted, number = line + text.count("\n", counted, at), at, number + 1
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # The end of a broken element is unknown, so nothing after it can be parsed.
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        yield _checked(line, number, value, "\\u" in text[counted:at])


def _checked(line: int, number: int, value: Any, escapes: bool) -> Record:
    if not isinstance(value, dict):
        return Record(line, number, {}, f"a {type(value).__name__} where an object is expected")
    try:
        if escapes:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        return Record(line, number, {}, "nested too deep")
    except UnicodeEncodeError as error:
        code = ord(str(error.object)[error.start])
        return Record(
            line, number, {}, f"half a surrogate pair (\\u{code:04x}), which is not a character"
        )
    return Record(line, number, value)


# ---------------------------------------------------------------- TFDS


def tfds_splits(folder: Path) -> list[str]:
    """Returns the splits of a prepared TFDS folder (NAME/CONFIG/VERSION)."""
    info = json.loads((folder / "dataset_info.json").read_text())
    return [split["name"] for split in info.get("splits", [])]
