"""The schema of a row of `grm judge`. Every row that is read from a file is checked against it.

A damaged or edited row would otherwise appear in a report, or count in a metric.
"""

from collections.abc import Callable, Mapping
from typing import Any

from grm_jax.judging import votes
from grm_jax.types import FAILED

SCALAR = "scalar"  # the kind of a row of a scalar reward model; rows of a judge have no kind
Check = Callable[[Any], bool]


def row_problem(row: dict[str, Any]) -> str:
    """Returns the first fault of a row, such as "label = 7, which ...", or "" for a valid row.

    Fields that earlier versions did not write may be absent; unknown fields are ignored.
    """
    problem = field_problem(row, ROW, REQUIRED)
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
    named = is_text(error.get("reason")) and error["reason"] and is_place(error.get("line"))
    return (
        ""
        if named and row["n"] == 0 and not row["critiques"]
        else f"the malformed error {error!r:.60}"
    )


def _critique_problem(critique: Any, n: int) -> str:
    if problem := field_problem(
        critique, CRITIQUE, ("order", "status", "scores", "text", "tokens")
    ):
        return problem
    order, scores, expected = (critique.get(x) for x in ("order", "scores", "expected_scores"))
    if sorted(order) != list(range(n)):
        return f"order = {order!r:.60}, which is not a permutation of the responses"
    if (scores is not None) != (critique["status"] == "ok"):
        return f"the status {critique['status']!r:.40}, which does not fit its scores"
    for name, values in (("scores", scores), ("expected_scores", expected)):
        if values is not None and not are_numbers(values, n):
            return f"{name} that are not {n} numbers"
    return ""


def _verdict_problem(row: dict[str, Any], n: int, critiques: list[Any]) -> str:
    """Returns the first field of a verdict that contradicts another, or ""."""
    scores, by_rule, label = row["scores"], row.get("votes"), row.get("label")
    if not all(are_numbers(values, n) for values in (scores, *(by_rule or {}).values())):
        return f"scores or votes that are not {n} finite numbers"
    if not (label is None or (is_int(label) and 0 <= label < n) or are_numbers(label, n)):
        return f"label = {label!r:.60}, which does not fit {n} responses"
    is_scalar = row.get("kind") == SCALAR
    if is_scalar and (critiques or by_rule or row.get("kept") is not None):
        return "critiques or votes, which a scalar reward model does not have"
    statuses = [critique["status"] for critique in critiques]
    unparsed = sum(status not in ("ok", FAILED) for status in statuses)
    if row["unparsed"] != unparsed:
        return f"unparsed = {row['unparsed']}, but {unparsed} critiques without scores"
    some_parsed = is_scalar or unparsed + statuses.count(FAILED) < len(critiques)
    voted = some_parsed if by_rule is None or is_scalar else bool(by_rule)
    best = votes.winner(scores) if voted else None
    if row["best"] != best:
        return f"best = {row['best']}, which does not fit its scores"
    if row["tie"] != (best is None and some_parsed):
        return f"tie = {row['tie']}, which does not fit its scores"
    if by_rule and row.get("vote") in by_rule and scores != by_rule[row["vote"]]:
        return f"scores that differ from its vote by {row['vote']}"
    kept = row.get("kept")
    if kept is not None and not all(is_int(i) and 0 <= i < len(critiques) for i in kept):
        return f"kept = {kept!r:.60}, which are not indices of critiques"
    scored = all(c.get("meta_score") is not None for c in critiques if c["status"] == "ok")
    if kept is not None and not scored:
        return "kept, but a parsed critique has no meta_score"
    responses = row.get("responses")
    if responses is not None and len(responses) != n:
        return f"{len(responses)} responses for n = {n}"
    return ""


def field_problem(fields: Any, checks: Mapping[str, Check], required: tuple[str, ...]) -> str:
    """Returns the first field that is absent or of the wrong type."""
    if not isinstance(fields, dict):
        return f"{fields!r:.40} instead of an object"
    for name in required:
        if name not in fields:
            return f"no field {name!r}"
    for name, check in checks.items():
        if name in fields and not check(fields[name]):
            return f"{name} = {fields[name]!r:.60}, a value of the wrong type or range"
    return ""


# ---------------------------------------------------------------- types


def is_text(value: Any) -> bool:
    """Returns whether a value is a string."""
    return isinstance(value, str)


def is_int(value: Any) -> bool:
    """Returns whether a value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Returns whether a value is an integer from 0 to 2**31 - 1."""
    return is_int(value) and 0 <= value < 2**31


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, not a bool, up to 1e100, so that sums are finite."""
    return (isinstance(value, float) or is_int(value)) and abs(value) <= 1e100  # False for NaN


def is_place(value: Any) -> bool:
    """Returns whether a value may be a line number or an id."""
    return is_text(value) or is_count(value)


def are_numbers(values: Any, n: int) -> bool:
    """Returns whether a value is a list of n finite numbers."""
    return isinstance(values, list) and len(values) == n and all(map(is_number, values))


def or_null(check: Check) -> Check:
    """Returns a check that accepts None too."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """Returns a check of a list whose items all pass `check`."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and is_text(value.get("role")) and "content" in value


def _is_principle(value: Any) -> bool:
    checks = {"name": is_text, "weight": or_null(is_number), "description": is_text}
    known = isinstance(value, dict) and value.keys() <= checks.keys() and "name" in value
    return known and not field_problem(value, checks, ())


def _is_query(value: Any) -> bool:
    return is_text(value) or (value != [] and list_of(_is_turn)(value))


def _is_rule(value: Any) -> bool:
    return is_text(value) and value in votes.VOTES


REQUIRED = ("id", "line", "n", "scores", "best", "tie", "unparsed", "critiques")
ROW: dict[str, Check] = {
    "kind": lambda value: value == SCALAR,
    "id": is_place,
    "line": is_place,
    "n": is_count,
    "best": or_null(is_count),
    "tie": lambda value: isinstance(value, bool),
    "votes": lambda value: isinstance(value, dict),
    "unparsed": is_count,
    "kept": or_null(lambda value: isinstance(value, list)),
    "critiques": lambda value: isinstance(value, list),
    "error": or_null(lambda value: isinstance(value, dict) and value != {}),
    "query": or_null(_is_query),
    "responses": or_null(list_of(is_text)),
    "reference": or_null(is_text),
    "meta": or_null(lambda value: isinstance(value, dict)),
    "k": is_count,
    "temperature": is_number,
    "seed": is_count,
    "max_new_tokens": is_count,
    "top_p": is_number,
    "top_k": is_count,
    "k_meta": or_null(is_count),
    "expected": lambda value: isinstance(value, bool),
    "vote": or_null(_is_rule),
    "model": is_text,
    "template": or_null(is_text),
    "meta_rm": or_null(is_text),
    "input": or_null(is_text),
}
CRITIQUE: dict[str, Check] = {
    "text": is_text,
    "order": list_of(is_int),
    "status": is_text,
    "scores": or_null(lambda value: isinstance(value, list)),
    "meta_score": or_null(is_number),
    "expected_scores": or_null(lambda value: isinstance(value, list)),
    "tokens": is_count,
    "sample": is_count,
    "seed": is_count,
    "finish": or_null(is_text),
    "principles": list_of(_is_principle),
    "analysis": is_text,
    "prompt_tokens": is_count,
    "error": is_text,
}
