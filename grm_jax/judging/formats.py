"""Reads input files: our comparisons, RewardBench 1 and 2, TRL preferences, and RMB. One row of any of them becomes a Comparison.

  comparison   {"query": text or turns, "responses": [text, ...], "reference"?, "label"?, "id"?, "meta"?}
  rewardbench  {"prompt", "chosen": text or [text, ...], "rejected": the same, "id"?, "subset"?}
  trl          {"prompt": text or turns, "chosen": text or turns, "rejected": the same}; without a prompt, the turns that
               chosen and rejected share are the prompt
  rmb          {"conversation_input": turns, "bon_best": {"answer"}, "loser_list": [{"answer"}, ...], "bon_uid"}, or a pair:
               {"conversation_input", "chosen": {"answer"}, "reject": {"answer"}, "pair_uid"}
The better response comes first in the last three; the judge's orders do not depend on where it stands.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class Line:
    """One input row: its number (1 for the first), and a comparison or the reason why there is none."""

    number: int
    comparison: Comparison | None
    reason: str | None = None
    id: str | None = None


def read(path: str | Path, format: str | None = None) -> Iterator[Line]:
    """The rows of a JSONL file, or of a file that holds one JSON array. Blank lines are skipped but counted.

    format: one of FORMATS, found out per row when None. A row that cannot be read becomes a Line with its reason.
    Raises ValueError for an unknown format, OSError where the file cannot be read.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r}: use one of {', '.join(FORMATS)}")
    with open(path, "rb") as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        file.seek(0)
        if first == b"[" and (array := _array(file.read())) is not None:
            for number, row in enumerate(array, start=1):
                yield _line(number, row, format)
            return
        file.seek(0)
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if raw.strip():
                yield _parsed(number, raw, format)


def _array(content: bytes) -> list | None:
    """A file that is one JSON array of objects; None where it is not (a JSONL file may start with a bracket by mistake)."""
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        return None
    return rows if isinstance(rows, list) else None


def _parsed(number: int, raw: bytes, format: str | None) -> Line:
    try:
        row = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, None, f"not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}")
    except json.JSONDecodeError as error:
        return Line(number, None, f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Line(number, None, "not JSON that can be read: nested too deep")
    return _line(number, row, format)


def _line(number: int, row, format: str | None) -> Line:
    if not isinstance(row, dict):
        return Line(number, None, f"a {type(row).__name__} where an object of fields was expected")
    id = next(
        (
            str(row[key])
            for key in ("id", "bon_uid", "pair_uid", "prompt_id")
            if row.get(key) is not None
        ),
        None,
    )
    try:
        _check_text(row)
        comparison = FORMATS[format or detect(row)](row)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        return Line(number, None, reason, id)
    return Line(number, dataclasses.replace(comparison, id=id), None, id)


def _check_text(row: dict) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"half a surrogate pair (\\u{ord(error.object[error.start]):04x}) is no character"
        ) from None


def detect(row: dict) -> str:
    """The format of a row, from its fields. Raises ValueError where none or several fit."""
    fitting = []
    if "responses" in row:
        fitting.append("comparison")
    if "conversation_input" in row:
        fitting.append("rmb")
    elif "chosen" in row and "rejected" in row:
        turns = isinstance(row["chosen"], list) and all(
            isinstance(turn, dict) for turn in row["chosen"]
        )
        fitting.append("trl" if turns or not isinstance(row.get("prompt"), str) else "rewardbench")
    if len(fitting) == 1:
        return fitting[0]
    problem = f"both {' and '.join(fitting)}" if fitting else "no format"
    raise ValueError(
        f"the fields {', '.join(map(str, list(row)[:8]))} fit {problem}: name one with --format"
    )


def _comparison(row: dict) -> Comparison:
    responses = row["responses"]
    if not isinstance(responses, list):
        raise ValueError(f"responses is a {type(responses).__name__}: give a list of texts")
    label = row.get("label")
    return Comparison(
        query=row["query"],
        responses=tuple(responses),
        reference=row.get("reference"),
        label=tuple(label) if isinstance(label, list) else label,
        meta=row.get("meta") or {},
    )


def _preference(query, chosen: list[str], rejected: list[str], row: dict) -> Comparison:
    """The better ones first. One of them is an index label, several are rewards of 1 and 0."""
    label: int | tuple[float, ...] = 0
    if len(chosen) != 1:
        label = (1.0,) * len(chosen) + (0.0,) * len(rejected)
    meta = {key: row[key] for key in ("subset", "category_path", "section") if key in row}
    return Comparison(query, tuple(chosen + rejected), label=label, meta=meta)


def _rewardbench(row: dict) -> Comparison:
    return _preference(
        row["prompt"], _texts(row["chosen"], "chosen"), _texts(row["rejected"], "rejected"), row
    )


def _texts(value, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{name} holds a {type(value).__name__} that is not text: for chat turns use --format trl"
        )
    return texts


def _trl(row: dict) -> Comparison:
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise ValueError(
                "chosen and rejected are texts without a prompt: where the query ends cannot be known"
            )
        return _preference(prompt, [chosen], [rejected], row)
    if not (isinstance(chosen, list) and isinstance(rejected, list) and chosen and rejected):
        raise ValueError("chosen and rejected must both be texts, or both be lists of turns")
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise ValueError("chosen and rejected share no first turn: there is no query")
    return _preference(prompt, [_last(chosen, "chosen")], [_last(rejected, "rejected")], row)


def _last(turns: list, name: str) -> str:
    if len(turns) != 1 or not isinstance(turns[0], dict):
        raise ValueError(
            f"{name} holds {len(turns)} turns after the prompt: one answer was expected"
        )
    return turns[0]["content"]


def _rmb(row: dict) -> Comparison:
    if "bon_best" in row:
        best, others = row["bon_best"], row["loser_list"]
    else:
        best, others = row["chosen"], [row["reject"]]
    return _preference(
        row["conversation_input"], [best["answer"]], [other["answer"] for other in others], row
    )


FORMATS: dict[str, Callable[[dict], Comparison]] = {
    "comparison": _comparison,
    "rewardbench": _rewardbench,
    "trl": _trl,
    "rmb": _rmb,
}
