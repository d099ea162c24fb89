"""Reads and writes strict JSON: finite numbers, bounded nesting, characters that UTF-8 has.

Everything that reads JSON of outside data, or writes JSON that others read, uses these functions.
Python's own `json` accepts and writes NaN and Infinity, which no other parser takes, and fails
with RecursionError on deep nesting.
"""

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 100  # Python's recursion limit leaves room for code that walks such a value
MAX_DIGITS = 300  # longer integers exceed the largest float64
_MAX_FLOAT_TEXT = 1000  # characters of a number with a point or an exponent
SURROGATE = re.compile(r"[\ud800-\udfff]")


def loads(text: str | bytes | bytearray, unique_keys: bool = False) -> Any:
    """Returns the value of a JSON text. Bytes are UTF-8; a byte order mark is ignored.

    Args:
      unique_keys: refuse an object that has a key twice; otherwise the last value is returned.

    Raises:
      ValueError: the text is not JSON or not UTF-8, a number is not finite or has too many digits,
        or lists and objects are nested more than `MAX_DEPTH` deep. The message is one line.
    """
    if not isinstance(text, str):
        text = decoded(text)
    text = text.removeprefix("\ufeff")
    decoder = _UNIQUE if unique_keys else _DECODER
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(_syntax(error)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value, text.count("[") + text.count("{"))
    return value


def decode_at(text: str, start: int) -> tuple[Any, int]:
    """Returns the value that begins at text[start], and where it ends. Raises as `loads`.

    An object that has a key twice is refused.
    """
    try:
        value, end = _UNIQUE.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError(_syntax(error)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value, text.count("[", start, end) + text.count("{", start, end))
    return value, end


def decoded(data: bytes | bytearray) -> str:
    """Returns bytes as text. Raises ValueError for bytes that are not UTF-8, and names the byte."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("UTF-16 text: save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(f"not UTF-8: byte {error.start + 1} is 0x{byte:02x}") from None


def read(path: Any, kind: type = dict) -> Any:
    """Returns the value of a JSON file. Raises OSError, and ValueError that names the file.

    path: a pathlib.Path, or the path of a bucket's file.  kind: of the value; object: any.
    """
    try:
        value = loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path} is damaged: it holds {value!r:.40}, not a {kind.__name__}")
    return value


def dumps(value: Any, indent: int | None = None, **options: Any) -> str:
    """Returns a value as strict JSON, not escaped to ASCII. Lone surrogates become U+FFFD.

    options: sort_keys and separators of `json.dumps`.

    Raises:
      ValueError: a number is not finite (the message names its key), or nesting is too deep.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, **options)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError:
        if fault := problem(value, numbers_only=True):
            raise ValueError(fault) from None
        raise
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def problem(value: Any, name: str = "", depth: int = 0, numbers_only: bool = False) -> str:
    """Returns the first part of a value that strict JSON lacks: "scores[1] is nan"; "" if none.

    Args:
      value: of JSON's types, or tuples; another type is a problem too.
      name: of the value, with which the message begins.
      depth: of the containers around the value.
      numbers_only: look for NaN and infinite numbers alone.
    """
    shown = name or "the value"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{shown} is {value}: give a finite number"
    if isinstance(value, dict | list | tuple):
        if depth >= MAX_DEPTH:
            return "" if numbers_only else f"{shown}: {_TOO_DEEP}"
        if isinstance(value, dict):
            keys = (_key_problem(key, shown, numbers_only) for key in value)
            if fault := next(filter(None, keys), ""):
                return fault
            items = ((f"{name}.{key}" if name else str(key), item) for key, item in value.items())
        else:
            items = ((f"{name}[{i}]", item) for i, item in enumerate(value))
        below = (problem(item, place, depth + 1, numbers_only) for place, item in items)
        return next(filter(None, below), "")
    if numbers_only or value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return surrogate(value, shown)
    if isinstance(value, int):
        return f"{shown} has {_TOO_LONG}" if abs(value) >= _TOO_LARGE else ""
    return f"{shown} is of type {type(value).__name__}, which JSON lacks"


def _key_problem(key: Any, name: str, numbers_only: bool) -> str:
    if isinstance(key, str):
        return "" if numbers_only else surrogate(key, f"a key of {name}")
    return problem(key, f"a key of {name}", numbers_only=numbers_only)


def surrogate(text: str, name: str) -> str:
    """Returns the fault of a text with half a surrogate pair, "" for other texts."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return f"{name} has half a surrogate pair (\\u{code:04x}), which is not a character"
    return ""


# ---------------------------------------------------------------- the decoder

_TOO_LARGE = 10**MAX_DIGITS
_TOO_LONG = f"more than {MAX_DIGITS} digits"
_TOO_DEEP = f"lists and objects are nested too deep: {MAX_DEPTH} levels are the most"


def _syntax(error: json.JSONDecodeError) -> str:
    """Returns the message of a syntax error with its place; a line only where there are several."""
    line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
    message = error.msg.removesuffix(" starting at")
    return f"not JSON: {message} at {line}column {error.colno}"


def _check_depth(value: Any, brackets: int) -> None:
    """Raises ValueError if containers are nested more than `MAX_DEPTH` deep.

    brackets: number of opening brackets in the text, those in strings included.
    """
    if brackets <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _float(text: str) -> float:
    value = float(text)
    if len(text) > _MAX_FLOAT_TEXT or math.isinf(value):
        _refuse_number(text)
    return value


def _int(text: str) -> int:
    return int(text) if len(text) <= MAX_DIGITS else _refuse_number(text)


def _refuse_number(text: str) -> NoReturn:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {_TOO_LONG} ({len(text):,} characters)")
    raise ValueError(f"the number {text} is not finite: give a number that a float64 holds")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in fields if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r:.60} appears twice in one object: remove one")
    return fields


_HOOKS: Any = {"parse_float": _float, "parse_int": _int, "parse_constant": _refuse_number}
_DECODER = json.JSONDecoder(**_HOOKS)
_UNIQUE = json.JSONDecoder(**_HOOKS, object_pairs_hook=_unique)
