"""Rows of tables as JSON-like dicts: CSV, Parquet and Arrow files.

Values that JSON lacks become text. A cell that is the text of a chat, as JSON or as Python writes
lists, becomes the list: pandas and `datasets` write nested columns so into CSV.
"""

import ast
import csv
import gzip
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_CHAT = re.compile(r"""\s*\[\s*\{\s*(['"])(role|content|from|value)\1\s*:""")
_EXTRA = "\0more cells"  # key of the cells beyond the header's; no header has it
csv.field_size_limit(1 << 30)


class BadCell(ValueError):
    """A row that cannot be decoded; the rows after it can."""


def open_bytes(path: str | Path) -> IO[bytes]:
    """Opens a file for reading, decompressed if it is a gzip file."""
    file: Any = open(path, "rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        file = gzip.open(path)
    file.seek(0)
    return file


def read_table(path: Path, suffix: str) -> Iterator[dict[str, Any] | BadCell]:
    """Yields the rows of a table, or what is wrong with a row. suffix: a key of `FORMATS`."""
    for row in FORMATS[suffix](path):
        try:
            if not isinstance(row, BadCell):
                row = {key: _cell(value, key) for key, value in plain(row).items()}
            yield row
        except BadCell as error:
            yield error


def plain(value: Any) -> Any:
    """Returns a value of Arrow, TFDS or pandas as JSON-like Python.

    Arrays become lists, bytes text, and dates and decimals their text.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "to_list"):  # tf.RaggedTensor
        return plain(value.to_list())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def _cell(value: Any, column: str) -> Any:
    if isinstance(value, float) and math.isnan(value):  # how pandas writes a missing number
        return None
    if not isinstance(value, str) or not _CHAT.match(value):
        return value
    for parse in (json.loads, ast.literal_eval):
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
        header = file.readline()
        file.seek(0)
        if not delimiter:  # spreadsheets of some countries write semicolons
            delimiter = ";" if b"," not in header and b";" in header else ","
        lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.DictReader(lines, delimiter=delimiter, restkey=_EXTRA)
        for row in reader:
            extra = row.pop(_EXTRA, None)
            if extra is not None:
                yield BadCell(f"{len(row) + len(extra)} cells in {len(row)} columns")
                continue
            cells = {key: value for key, value in row.items() if value is not None}
            try:
                "".join(cells.values()).encode("utf-8")
                yield cells
            except UnicodeEncodeError:
                yield BadCell("not UTF-8")


def _tsv(path: Path) -> Iterator[dict[str, Any] | BadCell]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with open_bytes(path) as file:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
            yield from batch.to_pylist()


def _arrow(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    # `save_to_disk` writes the streaming format, `to_feather` and others the file format.
    with pa.memory_map(str(path)) as file:
        try:
            batches = list(pa.ipc.open_stream(file))
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            yield from batch.to_pylist()


FORMATS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
