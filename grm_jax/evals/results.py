"""results.json of `grm eval`: one entry per benchmark, read from this version and earlier ones."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.judging.row_schema import (
    Check,
    field_problem,
    is_count,
    is_int,
    is_number,
    is_text,
    list_of,
    or_null,
)  # fmt: skip

FILE = "results.json"
FILES = (FILE, "results.md", "results.html")
# Keys of earlier versions -> today's.
RENAMED = {"floors": "content_blind", "read": "parsing", "nothing_read": "unparsed"}


def read_results(path: str | Path, complete: bool = False) -> list[dict]:
    """Reads the entries of a results file, with the keys of today's version.

    complete: every field is required, for a page; else those of `grm table`.
    Raises ValueError in one line for a damaged file; it names the entry and the field.
    """
    entries = strict_json.read(Path(path), object)
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a list of entries: name the results.json of `grm eval`")
    read: list[dict] = []
    for i, entry in enumerate(entries):
        entry = upgraded(entry) if isinstance(entry, dict) else {}
        if problem := entry_problem(entry, complete):
            name = f"{entry.get('benchmark', i)!r:.40}"
            raise ValueError(
                f"{path}: entry {name} has {problem}: remove the entry, or run `grm eval` again"
            )
        if any(entry["benchmark"] == other["benchmark"] for other in read):
            raise ValueError(f"{path}: entry {entry['benchmark']!r} appears twice: remove one")
        read.append(entry)
    return read


def upgraded(entry: dict) -> dict:
    """Renames the keys that earlier versions wrote."""
    entry = {RENAMED.get(key, key): value for key, value in entry.items()}
    if isinstance(entry.get("parsing"), dict):
        entry["parsing"] = {RENAMED.get(key, key): value for key, value in entry["parsing"].items()}
    return entry


def make_folder(folder: Path) -> None:
    """Creates a folder of results. Raises ValueError if a file is in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{folder} is a file, or is below one: name a folder") from None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is in this block for a folder, so that no result is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the fields of an entry


def entry_problem(entry: dict, complete: bool) -> str:
    """Returns the first fault of an entry, such as "of = 'x', a value of the wrong type", or ""."""
    required = tuple(ENTRY.keys() - OPTIONAL) if complete else FOR_TABLES
    if problem := field_problem(entry, ENTRY, required):
        return problem
    if complete and (absent := {"kind", "name"} - entry["judge"].keys()):
        return f"no judge.{min(absent)}"
    rule, headline, metrics = entry["rule"], entry["headline"], entry["metrics"]
    if rule not in metrics:
        return f"the rule {rule!r:.40} without metrics"
    for name in {*metrics, *entry.get("rules", ())}:
        if headline not in metrics.get(name, ()) or metrics[name].keys() != metrics[rule].keys():
            return f"metrics.{name:.40} without {headline!r:.40}, or with others than {rule:.40}"
    if entry.get("comparisons", 0) > entry.get("of", 2**31):
        return f"comparisons = {entry['comparisons']} of {entry['of']}"
    return next(filter(None, map(_estimate_problem, _estimates(entry))), "")


def _estimates(value: Any) -> Iterator[Mapping]:
    """Yields every estimate inside a value."""
    if isinstance(value, dict):
        if "value" in value:
            yield value
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _estimates(item)


def _estimate_problem(estimate: Mapping) -> str:
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    bounds = low is None and high is None or (value is not None and None not in (low, high))
    return "" if bounds and (low is None or low <= high) else f"the interval {low} to {high}"


def _is_estimate(value: Any) -> bool:
    checks = dict.fromkeys(("value", "low", "high"), or_null(is_number))
    checks |= {"p": or_null(is_number), "n": is_count}
    return not field_problem(value, checks, ("value", "low", "high"))


def _is_difference(value: Any) -> bool:
    return _is_estimate(value) and "p" in value


def _is_bin(value: Any) -> bool:
    return _is_estimate(value) and "n" in value


def _dict_of(check: Check, keys: Check = is_text) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(map(keys, value)) and all(map(check, value.values()))
    )


def _fields(checks: Mapping[str, Check], *required: str) -> Check:
    return lambda value: not field_problem(value, checks, required)


def _is_k(key: Any) -> bool:
    return is_text(key) and key.isdecimal() and key.isascii() and 0 < len(key) < 9 and int(key) > 0


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_blind(name: Any) -> bool:
    from grm_jax.evals.content_blind import CONTENT_BLIND

    return name in CONTENT_BLIND


_METRICS = _dict_of(_is_estimate)
_CURVES = _dict_of(_dict_of(_is_estimate, _is_k))
_SHARE = or_null(lambda value: is_number(value) and 0 <= value <= 1)
_POSITION = {
    "flips": or_null(_is_estimate), "first_place": or_null(_is_estimate), "first_chance": _SHARE,
}  # fmt: skip
_LENGTH = {
    "longest_picked": or_null(_is_estimate), "longest_right": or_null(_is_estimate),
    "by_ratio": _dict_of(_is_bin),
}  # fmt: skip
_PARSING = {
    "critiques": is_count, "statuses": _dict_of(is_count), "parsed": _SHARE, "unparsed": is_count,
    "ties": _SHARE, "tokens_per_critique": or_null(_is_amount), "errors": _dict_of(is_count),
}  # fmt: skip
_JUDGE = {
    "kind": is_text, "name": is_text, "k": or_null(is_count), "meta_rm": or_null(is_text),
    "temperature": or_null(_is_amount), "seed": or_null(is_int), "vote": or_null(is_text),
    "template": or_null(is_text), "rule": or_null(is_text),
}  # fmt: skip
_PUBLISHED = {"model": is_text, "values": _dict_of(is_number), "source": is_text}
_TEST: dict[str, Check] = {"gained": is_count, "lost": is_count, "p": is_number}
_AGAINST = {
    "run": is_text, "rule": is_text, "metrics": _dict_of(_is_difference), "mcnemar": _fields(_TEST),
}  # fmt: skip
ENTRY: dict[str, Check] = {
    "benchmark": is_text,
    "title": is_text,
    "judge": _fields(_JUDGE),
    "comparisons": is_count,
    "of": is_count,
    "prompts": is_count,
    "smallest_subset": is_count,
    "rule": is_text,
    "rules": _dict_of(is_text),
    "headline": is_text,
    "metrics": _dict_of(_METRICS),
    "chance": is_text,
    "content_blind": lambda value: (
        _dict_of(_is_estimate, _is_blind)(value) and {"longest", "first"} <= value.keys()
    ),
    "parsing": _fields(_PARSING, *_PARSING.keys() - {"tokens_per_critique"}),
    "position": _fields(_POSITION, *_POSITION),
    "length": _fields(_LENGTH, *_LENGTH),
    "gains": _dict_of(or_null(_is_difference)),
    "cost": _dict_of(_is_amount),
    "notes": is_text,
    "published": list_of(_fields(_PUBLISHED, *_PUBLISHED)),
    "curves": _CURVES,
    "greedy": _is_estimate,
    "by_paper": _fields({"curves": _CURVES, "greedy": _is_estimate}, "curves"),
    "against": _fields(_AGAINST, "run", "metrics"),
}
OPTIONAL = ("prompts", "smallest_subset", "greedy", "by_paper", "against")
FOR_TABLES = ("benchmark", "title", "judge", "rule", "headline", "metrics", "curves", "cost")
