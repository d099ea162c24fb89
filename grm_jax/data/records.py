"""Records from files, with the file and line of each, and an account of those that could not be used.

Reads .jsonl and .json (a list), each also as .gz. A malformed record is reported and skipped; when more than a stated
share of the records seen is malformed, reading stops with an error that names the first ones.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from grm_jax.types import Comparison

log = logging.getLogger(__name__)

GRACE = 100  # records seen before the share of malformed ones is judged (the end of the data is always judged)
_SHOWN = 5


class Malformed(ValueError):
    """A record does not have the columns and types of its layout."""


class Unusable(ValueError):
    """A well-formed record that holds no comparison with exactly one best response, e.g. a labelled tie."""


class TooManyMalformed(ValueError):
    """More records than the stated share were malformed."""


@dataclasses.dataclass
class Account:
    """What became of the records: seen, malformed (file, line, reason), unusable by reason.

    Attributes:
      max_share: Share of malformed records above which `check` raises; 0 tolerates none.
      source: Name of the data, for that error.
    """

    max_share: float = 0.01
    source: str = ""
    seen: int = 0
    malformed: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    unusable: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def report(self, path: str, line: int, reason: str) -> None:
        """Notes and logs a malformed record."""
        self.malformed.append((path, line, reason))
        log.warning("%s:%d: skipped: %s", path, line, reason)

    def check(self, final: bool = False) -> None:
        """Raises TooManyMalformed where the share is exceeded; before the end only after some records."""
        if len(self.malformed) > self.max_share * self.seen and (final or self.seen >= GRACE):
            first = "; ".join(
                f"{path}:{line}: {reason}" for path, line, reason in self.malformed[:_SHOWN]
            )
            raise TooManyMalformed(
                f"{self.source}{': ' if self.source else ''}{len(self.malformed)} of {self.seen} records are malformed, more than the share of "
                f"{self.max_share:g} that may be skipped: {first}. Mend the records, or raise max_skipped"
            )

    def summary(self) -> dict:
        """Counts, JSON-ready."""
        return {
            "seen": self.seen,
            "malformed": len(self.malformed),
            "unusable": dict(self.unusable),
        }


def open_text(path: str | Path):
    """A text file, gunzipped where its name ends in .gz."""
    path = Path(path)
    return (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8")
    )


def read_records(path: str | Path) -> Iterator[tuple[int, dict | Malformed]]:
    """Yields (line, record) of a file; a record that is no JSON object comes as a Malformed instance.

    Raises FileNotFoundError, or ValueError for a name of another ending or a .json file that is not a list.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}")
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        yield from _read_lines(path)
    elif name.endswith(".json"):
        yield from _read_list(path)
    else:
        raise ValueError(f"{path}: records are read from .jsonl or .json files, gzipped or not")


def _read_lines(path: Path) -> Iterator[tuple[int, dict | Malformed]]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, Malformed(f"not JSON: {error.msg} at column {error.colno}")
                continue
            yield (
                number,
                record
                if isinstance(record, dict)
                else Malformed(f"a {type(record).__name__}, not an object"),
            )


def _read_list(path: Path) -> Iterator[tuple[int, dict | Malformed]]:
    """Objects of a JSON list, each with the line on which it begins."""
    with open_text(path) as file:
        text = file.read()
    decoder, at = json.JSONDecoder(), _skip(text, 0, " \t\r\n")
    if text[at : at + 1] != "[":
        raise ValueError(
            f"{path} holds no JSON list: give a list of objects, or one object a line as .jsonl"
        )
    line, counted, at = 1, 0, at + 1
    while (at := _skip(text, at, " \t\r\n,")) < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # What follows a broken element cannot be found again.
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
        yield (
            line,
            record
            if isinstance(record, dict)
            else Malformed(f"a {type(record).__name__}, not an object"),
        )


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def read_comparisons(
    paths: str | Path | Iterable[str | Path],
    layout: Callable[[dict, str], list[Comparison]],
    max_skipped: float = 0.01,
    account: Account | None = None,
) -> Iterator[Comparison]:
    """Comparisons of files in one layout (see `layouts.py`), in file order.

    Args:
      paths: One file or several.
      layout: (record, name of the record) -> comparisons. Raises Malformed, or Unusable.
      max_skipped: Share of records that may be malformed and skipped.
      account: Filled with counts, if given; its own `max_share` is set to `max_skipped`.

    Raises:
      TooManyMalformed: As soon as the share is exceeded after 100 records, or at the end.
    """
    account = Account() if account is None else account
    account.max_share = max_skipped
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        for line, record in read_records(path):
            account.seen += 1
            yield from convert(
                record, layout, f"{Path(path).name.split('.')[0]}-{line}", str(path), line, account
            )
            account.check()
    account.check(final=True)


def convert(
    record: dict | Malformed,
    layout: Callable[[dict, str], list[Comparison]],
    name: str,
    path: str,
    line: int,
    account: Account,
) -> list[Comparison]:
    """The comparisons of one record, [] where it is malformed or unusable (noted in `account`)."""
    try:
        if isinstance(record, Malformed):
            raise record
        return layout(record, name)
    except Unusable as error:
        account.unusable[str(error)] += 1
    # Comparison itself raises ValueError for an empty query or response list.
    except (Malformed, ValueError) as error:
        account.report(path, line, str(error))
    return []
