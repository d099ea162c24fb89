"""The data of the page of `grm report`: an index of all rows, and their texts in compressed parts.

The browser parses the index at once, and decompresses a part when it shows or searches its rows,
so a page of many rows opens quickly.
"""

import base64
import dataclasses
import functools
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from grm_jax import strict_json
from grm_jax.judging import pairs, summary
from grm_jax.judging.codec import OutputRow, is_scalar
from grm_jax.judging.pairs import Pair
from grm_jax.judging.row_schema import row_problem
from grm_jax.judging.votes import VOTES
from grm_jax.text import rendering

PART_CHARACTERS = 300_000  # of JSON, before compression
OPENING = 240  # characters of a query in the list
MAX_GROUPS = 60  # values of a field that the page breaks the rates down by
GROUP_RATES = ("comparisons", "errors", "labelled", "accuracy", "tie_credit", "ties", "parsed")
SETTINGS = ("model", "template", "k", "temperature", "seed")  # of the line about a run
ERROR_SIDE: dict[str, Any] = {
    "scores": [],
    "best": None,
    "tie": False,
    "credit": None,
    "margin": 0,
    "flip": None,
    "unparsed": 0,
    "all_unparsed": False,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """The rows of one output of `grm judge`.

    name: of its file.  state: what the file lacks, in words.  records: the input's records of error
    rows, by line.
    """

    rows: Sequence[OutputRow]
    name: str = ""
    state: str = ""
    records: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def scales(self) -> dict[tuple[str, bool], tuple[float, float]]:
        """The scale of the scores by template, and by whether there is a single response."""
        scores: dict[tuple[str, bool], set[float]] = {}
        for row in self.rows:
            known = scores.setdefault(scale_key(row), set())
            known.update(*(critique["scores"] or () for critique in row["critiques"]))
        return {key: scale_of(*key, known) for key, known in scores.items()}


def page_data(runs: Sequence[Run], title: str, limit: int | None = None) -> dict[str, Any]:
    """Returns the page's data for one run, or for two runs of one input.

    Rates are over all rows. limit: the page holds the texts of the first rows only.

    Raises:
      ValueError: two runs without a common comparison, or a NaN or infinite number in a row.
    """
    for run in runs:
        check_rows(run)
    first, *others = (run.rows for run in runs)
    matched: list[Pair] = [(row,) for row in first]
    if others:
        matched = pairs.match(first, others[0])
    groups = [group_values(rows) for rows in matched]
    keys = group_keys(groups)
    shown = matched[:limit]
    names = unique_keys([_some(rows) for rows in shown])
    details = [detail(rows, runs) for rows in shown]
    parts, places = pack(details)
    return {
        "title": title,
        "runs": [
            {
                "name": run.name,
                "settings": settings(run.rows),
                "state": run.state,
                "scalar": any(map(is_scalar, run.rows)),
                "summary": summary.summarise(run.rows),
                "curve": summary.accuracy_by_k(run.rows),
            }
            for run in runs
        ],
        "pair": pairs.agreement(matched) if others else None,
        "breakdown": {key: breakdown(key, groups, matched) for key in keys},
        "labels": {name: rule.label for name, rule in VOTES.items()},
        "total": len(matched),
        "rows": [
            entry(rows, name, place, {key: group[key] for key in keys if key in group})
            for rows, name, place, group in zip(shown, names, places, groups)
        ],
        "parts": parts,
    }


def check_rows(run: Run) -> None:
    """Raises ValueError for the first row with fields that `grm judge` does not write.

    A page shows what the rows of a file have in common with those of `row_schema`, and the settings
    of the run; JSON has no NaN.
    """
    for row in run.rows:
        judged = not row.get("error")
        fields = SETTINGS[:1] if is_scalar(row) else SETTINGS
        absent = [name for name in fields if judged and name not in row]
        problem = row_problem(row) or (f"no field {absent[0]!r}" if absent else "")
        if number := strict_json.problem(row, numbers_only=True):
            problem = problem or f"a number that is NaN or infinite ({number.partition(':')[0]})"
        if problem:
            raise ValueError(
                f"{run.name or 'the rows'}: row {row.get('id')!r:.60} (line {row.get('line')!r:.20}"
                f") has {problem}: remove the row, or judge it again"
            )


def _some(rows: Pair) -> OutputRow:
    """Returns the row with the most: a judged one, else an error row with texts, else any."""
    known = [row for row in rows if row is not None]
    return min(known, key=lambda row: (bool(row.get("error")), not row.get("responses")))


def unique_keys(rows: Sequence[OutputRow]) -> list[str]:
    """Returns what a link to each row contains: its id, with the line where an id occurs twice.

    Rows of one id and line, as of files that were joined, are numbered.
    """
    counts = Counter(str(row["id"]) for row in rows)
    numbers, keys = Counter[str](), dict[str, None]()
    for row in rows:
        name = key = str(row["id"])
        if counts[name] > 1:
            name = key = f"{name} (line {row['line']})"
        while key in keys:
            numbers[name] += 1
            key = f"{name}, {numbers[name] + 1}"
        keys[key] = None
    return list(keys)


def entry(
    rows: Pair, key: str, place: tuple[int, int], groups: Mapping[str, str]
) -> dict[str, Any]:
    """Returns a row of the index: what the list, the filters and the orders need."""
    row = _some(rows)
    return {
        "id": str(row["id"]),
        "key": key,
        "line": row["line"],
        "text": opening(row),
        "place": place,
        "groups": groups,
        "sides": [None if row is None else side(row) for row in rows],
    }


def opening(row: OutputRow) -> str:
    """Returns the beginning of the query, or of an error row without one its reason."""
    query = row.get("query") or ""
    if not isinstance(query, str):
        query = "\n".join(str(turn["content"]) for turn in query)
    if not query and row.get("error"):
        query = row["error"]["reason"]
    return query[:OPENING]


def side(row: OutputRow) -> dict[str, Any]:
    """Returns the verdict of one run with its grade, flip and margin."""
    if row.get("error"):
        return ERROR_SIDE | {"error": row["error"]["reason"]}
    all_unparsed = summary.all_unparsed(row)
    ranked = sorted(row["scores"], reverse=True)
    return {name: row.get(name) for name in ("scores", "best", "tie", "unparsed")} | {
        "credit": None if all_unparsed and row["n"] == 1 else summary.grade(row),
        "flip": summary.flipped(row),
        "margin": ranked[0] - ranked[1] if len(ranked) > 1 else ranked[0],
        "all_unparsed": all_unparsed,
        "error": None,
    }


def detail(rows: Pair, runs: Sequence[Run]) -> dict[str, Any]:
    """Returns what the page of one comparison shows beside its index row."""
    row = _some(rows)
    labelled = set(summary.best_labels(row)) if not row.get("error") else set()
    records = (run.records.get(str(row["line"])) for run in runs)
    return {
        "query": row.get("query"),
        "responses": row.get("responses") or [],
        "reference": row.get("reference"),
        "meta": row.get("meta") or None,
        "record": next((record for record in records if record is not None), None),
        "labelled_best": [i in labelled for i in range(row["n"])],
        "sides": [
            None if row is None or row.get("error") else votes_of(row, run.scales[scale_key(row)])
            for row, run in zip(rows, runs)
        ],
    }


def votes_of(row: OutputRow, scale: tuple[float, float]) -> dict[str, Any]:
    """Returns the votes and critiques of one run."""
    return {
        "scalar": is_scalar(row),
        "votes": row.get("votes") or {},
        "vote": row.get("vote"),
        "kept": row.get("kept"),
        "votes_by_k": summary.votes_by_k(row),
        "scale": scale,
        "critiques": row["critiques"],
    }


def scale_key(row: OutputRow) -> tuple[str, bool]:
    """Returns what rows with scores on one scale share."""
    return str(row.get("template")), row["n"] == 1


def scale_of(template: str, single: bool, scores: Collection[float]) -> tuple[float, float]:
    """Returns the scale of a template: of a shipped one its own, else as the scores suggest.

    scores: of all rows of the template. single: of one response, which can be right in all rows.
    """
    name = rendering.canonical_name(template).partition("@")[0]
    if name in rendering.names():
        shipped = rendering.load(name)
        return (0, 1) if shipped.output == "choice" else (shipped.low, shipped.high)
    return (0, 1) if {*scores} <= {0, 1} and (single or 0 in scores) else (1, 10)


def settings(rows: Sequence[OutputRow]) -> str:
    """Returns one line about a run: model, template, k, temperature, seed."""
    judged = next((row for row in rows if not row.get("error")), None)
    if judged is None:
        return ""
    if is_scalar(judged):
        return f"scalar reward model {judged['model']}"
    parts = [
        f"model {judged['model']}",
        f"template {judged['template']}",
        f"meta {judged['meta_rm']}" if judged.get("meta_rm") else "",
        f"k = {judged['k']}",
        f"temperature {judged['temperature']}",
        f"seed {judged['seed']}",
    ]
    return " · ".join(filter(None, parts))


# ---------------------------------------------------------------- rates by subset


def group_values(rows: Pair) -> dict[str, str]:
    """Returns the fields to break rates down by: short values of `meta`, number of responses.

    A field of an object in `meta` is named with a dot: "world.family".
    """
    row, values = _some(rows), {}
    for name, value in (row.get("meta") or {}).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in inner:
            if isinstance(item, (str, int)) and len(str(item)) <= 60:
                values[f"{name}.{key}" if key else name] = str(item)
    if row["n"]:
        values["responses"] = str(row["n"])
    return values


def group_keys(groups: Iterable[Mapping[str, str]]) -> list[str]:
    """Returns the fields with several values, and on average two or more rows for each."""
    counts: dict[str, Counter[str]] = {}
    for group in groups:
        for key, value in group.items():
            counts.setdefault(key, Counter())[value] += 1
    return [
        key
        for key, values in counts.items()
        if 2 <= len(values) <= min(MAX_GROUPS, values.total() / 2)
    ]


def breakdown(
    key: str, groups: Sequence[Mapping[str, str]], matched: Sequence[Pair]
) -> list[dict[str, Any]]:
    """Returns the rates of each run for each value of a field: [{"value", "rates", "pair"}]."""
    members: dict[str, list[Pair]] = {}
    for group, rows in zip(groups, matched):
        if key in group:
            members.setdefault(group[key], []).append(rows)
    table = []
    for value in sorted(members, key=lambda v: (0, int(v), v) if v.isdecimal() else (1, 0, v)):
        columns = [[row for row in column if row] for column in zip(*members[value])]
        rates = [summary.summarise(column) for column in columns]
        table.append(
            {
                "value": value,
                "rates": [{name: rate[name] for name in GROUP_RATES} for rate in rates],
                "pair": pairs.agreement(members[value]) if len(columns) > 1 else None,
            }
        )
    return table


# ---------------------------------------------------------------- parts


def pack(details: Sequence[dict[str, Any]]) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns parts, each base64 of a zlib-compressed JSON array, and each row's (part, place)."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    texts: list[str] = []
    for item in details:
        texts.append(embedded_json(item))
        places.append((len(parts), len(texts) - 1))
        if sum(map(len, texts)) >= PART_CHARACTERS:
            parts.append(_compressed(texts))
            texts = []
    if texts:
        parts.append(_compressed(texts))
    return parts, places


def embedded_json(value: Any) -> str:
    """Returns ASCII JSON without spaces. Raises ValueError for NaN and infinity."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _compressed(texts: Sequence[str]) -> str:
    return base64.b64encode(zlib.compress(f"[{','.join(texts)}]".encode())).decode()
