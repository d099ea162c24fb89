"""What a row of `grm judge` holds: the check of every row that is read from a file.

A damaged or edited row would otherwise show nonsense in a report, or count in a metric.
"""

import math
from collections.abc import Callable
from typing import Any

from grm_jax.judging import votes

Check = Callable[[Any], bool]


def row_problem(row: dict[str, Any]) -> str:
    """Returns what is wrong with a row, such as "label = 7: ...", or "" for a row that is right.

    Fields that earlier versions did not write may be absent; unknown fields are ignored.
    """
    problem = _field_problem(row, ROW, REQUIRED)
    if problem or row.get("error"):
        return problem or _error_problem(row)
    n, critiques = row["n"], row["critiques"]
    if n < 1:
        return f"n = {n} responses"
    for i, critique in enumerate(critiques):
        if problem := _critique_problem(critique, n):
            return f"critiques[{i}] with {problem}"
    return _verdict_problem(row, n, critiques)


def _error_problem(row: dict[str, Any]) -> str:
    error = row["error"]
    is_error = row["n"] == 0 and not row["critiques"] and error.get("reason")
    is_error = is_error and _is_text(error["reason"]) and _is_place(error.get("line", ""))
    return "" if is_error else f"the malformed error {error!r:.60}"


def _critique_problem(critique: Any, n: int) -> str:
    if problem := _field_problem(critique, CRITIQUE, ("order", "status", "scores")):
        return problem
    order, scores, expected = (critique.get(x) for x in ("order", "scores", "expected_scores"))
    if sorted(order) != list(range(n)):
        return f"order = {order!r:.60}, which is no permutation of the responses"
    if (scores is not None) != (critique["status"] == "ok"):
        return f"the status {critique['status']!r:.40}, which does not fit its scores"
    for name, values in (("scores", scores), ("expected_scores", expected)):
        if values is not None and not are_numbers(values, n):
            return f"{name} that are not {n} numbers"
    return ""


def _verdict_problem(row: dict[str, Any], n: int, critiques: list[Any]) -> str:
    """Returns where the fields of a verdict do not fit each other."""
    scores, by_rule, label = row["scores"], row.get("votes"), row.get("label")
    if not all(are_numbers(values, n) for values in (scores, *(by_rule or {}).values())):
        return f"scores or votes that are not {n} numbers, or one that is NaN or infinite"
    if not (label is None or (_is_int(label) and 0 <= label < n) or are_numbers(label, n)):
        return f"label = {label!r:.60}, which does not fit {n} responses"
    unparsed = sum(critique["status"] != "ok" for critique in critiques)
    if row["unparsed"] != unparsed:
        return f"unparsed = {row['unparsed']}, but {unparsed} critiques without scores"
    voted = unparsed < len(critiques) if by_rule is None else bool(by_rule)
    best = votes.winner(scores) if voted else None
    if row["best"] != best:
        return f"best = {row['best']}, which does not fit its scores"
    if row.get("tie", False) != (best is None and unparsed < len(critiques)):
        return f"tie = {row.get('tie')}, which does not fit its scores"
    if by_rule and row.get("vote") in by_rule and scores != by_rule[row["vote"]]:
        return f"scores that differ from its vote by {row['vote']}"
    kept = row.get("kept")
    if kept is not None and not all(_is_int(i) and 0 <= i < len(critiques) for i in kept):
        return f"kept = {kept!r:.60}, which are no critiques"
    responses = row.get("responses")
    if responses is not None and len(responses) != n:
        return f"{len(responses)} responses for n = {n}"
    return ""


def _field_problem(fields: Any, checks: dict[str, Check], required: tuple[str, ...]) -> str:
    """Returns the first field that is absent or of the wrong type."""
    if not isinstance(fields, dict):
        return f"{fields!r:.40} where an object is expected"
    for name in required:
        if name not in fields:
            return f"no field {name!r}"
    for name, check in checks.items():
        if name in fields and not check(fields[name]):
            return f"{name} = {fields[name]!r:.60}, a value of the wrong type or range"
    return ""


# ---------------------------------------------------------------- types


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or (
        _is_int(value) and abs(value) < 2**63
    )


def _is_place(value: Any) -> bool:
    return _is_text(value) or _is_count(value)


def are_numbers(values: Any, n: int) -> bool:
    """Returns whether a value is a list of n finite numbers."""
    return isinstance(values, list) and len(values) == n and all(map(_is_number, values))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("role")) and "content" in value


def _is_principle(value: Any) -> bool:
    checks = {"name": _is_text, "weight": _or_null(_is_number), "description": _is_text}
    known = isinstance(value, dict) and value.keys() <= checks.keys() and "name" in value
    return known and not _field_problem(value, checks, ())


def _is_query(value: Any) -> bool:
    return _is_text(value) or (value != [] and _list_of(_is_turn)(value))


def _is_rule(value: Any) -> bool:
    return _is_text(value) and value in votes.VOTES


REQUIRED = ("id", "line", "n", "scores", "best", "unparsed", "critiques")
ROW: dict[str, Check] = {
    "id": _is_place,
    "line": _is_place,
    "n": _is_count,
    "best": _or_null(_is_count),
    "tie": lambda value: isinstance(value, bool),
    "votes": lambda value: isinstance(value, dict),
    "unparsed": _is_count,
    "kept": _or_null(lambda value: isinstance(value, list)),
    "critiques": lambda value: isinstance(value, list),
    "error": _or_null(lambda value: isinstance(value, dict) and value != {}),
    "query": _or_null(_is_query),
    "responses": _or_null(_list_of(_is_text)),
    "reference": _or_null(_is_text),
    "meta": _or_null(lambda value: isinstance(value, dict)),
    "k": _is_count,
    "temperature": _is_number,
    "seed": _is_count,
    "max_new_tokens": _is_count,
    "top_p": _is_number,
    "top_k": _is_count,
    "k_meta": _or_null(_is_count),
    "expected": lambda value: isinstance(value, bool),
    "vote": _or_null(_is_rule),
    "model": _is_text,
    "template": _or_null(_is_text),
    "meta_rm": _or_null(_is_text),
    "input": _or_null(_is_text),
}
CRITIQUE: dict[str, Check] = {
    "text": _is_text,
    "order": _list_of(_is_int),
    "status": _is_text,
    "scores": _or_null(lambda value: isinstance(value, list)),
    "meta_score": _or_null(_is_number),
    "expected_scores": _or_null(lambda value: isinstance(value, list)),
    "tokens": _is_count,
    "sample": _is_count,
    "seed": _is_count,
    "finish": _or_null(_is_text),
    "principles": _list_of(_is_principle),
    "analysis": _is_text,
}
