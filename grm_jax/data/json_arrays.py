"""Yields the elements of a JSON array file, and continues after a broken element."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from grm_jax import strict_json

MOST_BROKEN = 100  # elements; a file with more is not a JSON array
_BEFORE = re.compile(r"[ \t\r\n,]*")
_FIRST_KEY = re.compile(r'\{\s*"((?:[^"\\\n]|\\.){0,100})"\s*:')
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\[\]{},]')
_LENIENT = json.JSONDecoder(parse_int=float)
_OPENED = re.compile(r'\{\s*"?\Z')
_BETWEEN = re.compile(r"\}\s*,\s*\{")


@dataclasses.dataclass(frozen=True)
class Element:
    """One element: its first line, from 1, and its value, or the reason why it has none."""

    line: int
    value: Any
    problem: str = ""


def is_array(file: IO[bytes]) -> bool:
    """Whether a file that begins with "[" is one array rather than an array per line.

    The file is read and rewound.
    """
    content = file.read()
    file.seek(0)
    first, _, rest = content.partition(b"\n")
    if not content.rstrip().endswith(b"]"):
        return False
    try:
        strict_json.loads(first)
    except ValueError:
        return True
    return not rest.strip()


def elements(path: Path, text: str) -> Iterator[Element]:
    """Yields the elements of an array, in order.

    After an element that is not JSON, the next one starts at an object with the same first key.

    Args:
      path: of the file, for errors.
      text: the whole file; bytes that are not UTF-8 as surrogates.

    Raises:
      ValueError: the array is not closed, something follows it, or where a broken element ends
        cannot be seen. The message names file, line and element.
    """
    at, line, counted, key, broken = text.index("[") + 1, 1, 0, "", 0
    number = 0
    while before := _BEFORE.match(text, at):  # it always matches
        at = before.end()
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] in ("]", ""):
            break
        number += 1
        try:
            value, end = strict_json.decode_at(text, at)
        except ValueError as error:
            broken += 1
            problem, at = str(error), _after_broken(text, at, key)
            if not at or broken > MOST_BROKEN:
                raise ValueError(
                    f"{path}:{line}: element {number} of the array is broken, and the start of the "
                    f"next one is uncertain: {problem}"
                ) from None
            yield Element(line, None, problem)
            continue
        key = key or next(iter(value), "") if isinstance(value, dict) else key
        if escaped := _undecodable(text[at:end]):
            yield Element(line, None, escaped)
        else:
            yield Element(line, value)
        at = end
    if not text[at:]:
        raise ValueError(f"{path}:{line}: the array is not closed after element {number}")
    if text[at + 1 :].strip():
        raise ValueError(f"{path}:{line}: text after the end of the array: remove it")


def _undecodable(text: str) -> str:
    if hit := re.search("[\udc80-\udcff]", text) if not text.isascii() else None:
        return f"not UTF-8: byte 0x{ord(hit[0]) - 0xDC00:02x}"
    return ""


def _after_broken(text: str, start: int, key: str) -> int:
    """Returns where a broken element ends, at the latest where the next one begins; 0: unknown.

    key: the first key of an earlier element's object.
    """
    try:
        return _LENIENT.raw_decode(text, start)[1]  # a number that is not finite, a repeated key
    except json.JSONDecodeError as error:
        noticed = error.pos
    except RecursionError:
        noticed = start
    own = _FIRST_KEY.match(text, start)
    if keys := "|".join(re.escape(k) for k in (own[1] if own else "", key) if k):
        begin = re.compile(rf',\s*(?=\{{\s*"(?:{keys})"\s*:)')
        # In {"a": 1, {"a": 2} and {"a": "x}, {"a": 2} the error is noticed in the next element.
        if opened := _OPENED.search(text, max(start + 1, noticed - 100), noticed):
            noticed = opened.start()
        hits = begin.finditer(text, max(start, text.rfind(",", start, noticed)))
        if hit := next((hit for hit in hits if hit.end() >= noticed), None):
            return hit.end()
    depth, end = 0, len(text.rstrip()) - 1
    for token in _TOKEN.finditer(text, start, max(start, end)):
        if token[0] == "," and depth == 0:
            return token.start()
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
    # Without an earlier element, a quotation mark that is missing could hide all later ones.
    is_last = (depth == 0 and key) or not _BETWEEN.search(
        text, max(start, text.rfind("}", start, noticed))
    )
    return end if text[end] == "]" and is_last else 0
