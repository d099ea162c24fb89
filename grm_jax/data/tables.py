"""Rows of tables as JSON-like dicts: CSV, Parquet and Arrow files.

Values that JSON lacks become text. A cell that is the text of a chat, as JSON or as Python writes
lists, becomes the list: pandas and `datasets` write nested columns so into CSV.
"""

import ast
import collections
import csv
import gzip
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from grm_jax import strict_json
from grm_jax.model_files import one_line

_CHAT = re.compile(r"""\s*\[\s*\{\s*(['"])(role|content|from|value)\1\s*:""")
MOST_EXPANDED = 100  # times its size to which a gzip file of more than 1 GiB may expand
_ALWAYS_EXPANDED = 1 << 30
csv.field_size_limit(1 << 30)


class BadCell(ValueError):
    """A row that cannot be decoded; reading continues with the next one."""


def open_bytes(path: str | Path) -> IO[bytes]:
    """Opens a file for reading, decompressed if it is a gzip file.

    Reading raises ValueError where a gzip file expands to more than `MOST_EXPANDED` times its size,
    and to more than 1 GiB.
    """
    file: Any = open(path, "rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return io.BufferedReader(_Expanded(path), 1 << 16)
    file.seek(0)
    return file


class _Expanded(io.RawIOBase):
    """The content of a gzip file, of bounded size."""

    def __init__(self, path: str | Path):
        self._path, self._file = path, gzip.open(path)
        self._most = max(_ALWAYS_EXPANDED, MOST_EXPANDED * Path(path).stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        if self._file.tell() > self._most:
            raise ValueError(
                f"{self._path} expands to more than {MOST_EXPANDED} times its size: decompress it"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


# First bytes of files that are no text -> what they are, and what to do.
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive or an Excel file: unpack it, or export it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel file: export it as CSV",
    b"BZh": "compressed with bzip2: decompress it",
    b"\xfd7zXZ": "compressed with xz: decompress it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it",
    b"SQLite format 3": "an SQLite database: export it as CSV",
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: name it .arrow",
}


def check_is_text(path: Path, file: IO[bytes]) -> None:
    """Raises ValueError if a file is UTF-16, UTF-32 or no text; rewinds it otherwise."""
    head = file.read(16)
    file.seek(0)
    for magic, problem in _OTHER_FILES.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is {problem}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) >= 4 and head[:4].count(0) in (2, 3)):
        raise ValueError(f"{path} is UTF-16 or UTF-32 text: save it as UTF-8")


class NotUtf8(str):
    """The text of bytes that are not UTF-8, such as an image; no text of a comparison."""


def read_table(path: Path, suffix: str) -> Iterator[dict[str, Any] | BadCell]:
    """Yields the rows of a table, BadCell for a damaged one. suffix: a key of `FORMATS`."""
    for row in FORMATS[suffix](path):
        try:
            if not isinstance(row, BadCell):
                row = {key: _cell(value, key) for key, value in plain(row).items()}
            yield row
        except BadCell as error:
            yield error


def plain(value: Any) -> Any:
    """Returns a value of Arrow, TFDS or pandas as JSON-like Python.

    Arrays become lists, bytes text (`NotUtf8` if they are none), and dates and decimals their text.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return NotUtf8(value.decode(errors="replace"))
    if hasattr(value, "to_list"):  # tf.RaggedTensor
        return plain(value.to_list())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def _cell(value: Any, column: str) -> Any:
    if isinstance(value, float) and math.isnan(value):  # how NumPy writes a missing number
        return None
    if not isinstance(value, str) or not _CHAT.match(value):
        return value
    for parse in (strict_json.loads, ast.literal_eval):
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list) and all(isinstance(turn, dict) for turn in parsed):
            return parsed
    raise BadCell(
        f"the column {column!r} holds a chat that is neither JSON nor a Python list: save the file "
        "as Parquet or JSON lines"
    )


def _csv(path: Path, delimiter: str = "") -> Iterator[dict[str, Any] | BadCell]:
    with open_bytes(path) as file:
        check_is_text(path, file)
        header = file.readline()
        file.seek(0)
        if not delimiter:  # spreadsheets of some countries write semicolons
            delimiter = ";" if b"," not in header and b";" in header else ","
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        columns = _header(path, reader)
        start = reader.line_num + 1
        while (cells := _next_row(path, reader, start)) is not None:
            start = reader.line_num + 1
            if cells:
                yield _named(cells, columns) if isinstance(cells, list) else cells


def _header(path: Path, reader: Any) -> list[str]:
    columns: list[str] = next((cells for cells in reader if cells), [])
    _check_unique(path, columns)
    if any(strict_json.surrogate(name, "") for name in columns):
        raise ValueError(f"{path}: the header is not UTF-8: save the file as UTF-8")
    return columns


def _check_unique(path: Path, columns: Sequence[str]) -> None:
    if repeated := [name for name, n in collections.Counter(columns).items() if name and n > 1]:
        raise ValueError(f"{path} has the column {repeated[0]!r:.60} twice: rename one")


def _next_row(path: Path, reader: Any, start: int) -> list[str] | BadCell | None:
    """Returns the cells of the next row; None at the end. start: its first line."""
    try:
        return next(reader, None)
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise ValueError(
                f"{path}, line {start}: a quoted cell is not closed before the end of the file"
            ) from None
        last = reader.line_num
        lines = f"line {start}" if last == start else f"lines {start} to {last}"
        return BadCell(f"{lines}: a quotation mark is missing, or not doubled ({error})")


def _named(cells: list[str], columns: list[str]) -> dict[str, Any] | BadCell:
    if len(cells) > len(columns):
        return BadCell(f"{len(cells)} cells in {len(columns)} columns")
    if any(strict_json.surrogate(cell, "") for cell in cells):
        return BadCell("not UTF-8")
    return dict(zip(columns, cells))


def _tsv(path: Path) -> Iterator[dict[str, Any] | BadCell]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[dict[str, Any] | BadCell]:
    import pyarrow.parquet

    with open_bytes(path) as file:
        table = pyarrow.parquet.ParquetFile(file)
        _check_unique(path, table.schema_arrow.names)
        for batch in table.iter_batches(1024):
            yield from _batch_rows(batch)


def _arrow(path: Path) -> Iterator[dict[str, Any] | BadCell]:
    import pyarrow as pa

    with open_bytes(path) as packed:
        # `save_to_disk` writes the streaming format, `to_feather` and others the file format.
        is_plain = isinstance(packed, io.BufferedReader) and not isinstance(packed.raw, _Expanded)
        with pa.memory_map(str(path)) if is_plain else pa.PythonFile(packed) as file:
            try:
                batches = iter(pa.ipc.open_stream(file))
            except pa.ArrowInvalid:
                file.seek(0)
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in batches:
                _check_unique(path, batch.schema.names)
                yield from _batch_rows(batch)


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | BadCell]:
    """Yields the rows of a record batch, and a BadCell for one with invalid values."""
    batch.validate()  # raises for offsets and lengths that do not fit the buffers
    try:
        batch.validate(full=True)
        rows = batch.to_pylist()
    except Exception:  # noqa: BLE001
        rows = (_batch_row(batch.slice(i, 1)) for i in range(batch.num_rows))
    yield from rows


def _batch_row(batch: Any) -> dict[str, Any] | BadCell:
    try:
        batch.validate(full=True)
        return batch.to_pylist()[0]
    except Exception as error:  # noqa: BLE001
        return BadCell(one_line(f"a value is damaged: {error}")[:200])


FORMATS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
