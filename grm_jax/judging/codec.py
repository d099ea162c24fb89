"""The one JSON form of critiques and verdicts, and the rows of `grm judge` that consist of them."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grm_jax.types import Comparison, Critique, Principle, Verdict

Row = dict[str, Any]  # one line of an output file

_TEXT_FIELDS = ("query", "responses", "reference", "meta")  # absent from private rows


def critique_to_json(critique: Critique) -> Row:
    """Returns a critique as a JSON object; the seed is not in it, the row has it."""
    return {
        "text": critique.text,
        "order": list(critique.order),
        "scores": _list(critique.scores),
        "status": critique.status,
        "meta_score": critique.meta_score,
        "expected_scores": _list(critique.expected_scores),
        "tokens": critique.tokens,
        "sample": critique.sample,
        "finish": critique.finish,
        "principles": [dataclasses.asdict(principle) for principle in critique.principles],
        "analysis": critique.analysis,
    }


def critique_from_json(fields: Row, with_text: bool = True) -> Critique:
    """Returns the critique of a JSON object.

    Fields that an earlier version did not write get their defaults. with_text=False leaves text,
    analysis and principles empty, which saves memory where only the scores are used.
    """
    principles = tuple(Principle(**principle) for principle in fields.get("principles", ()))
    return Critique(
        text=fields.get("text", "") if with_text else "",
        principles=principles if with_text else (),
        analysis=fields.get("analysis", "") if with_text else "",
        scores=as_tuple(fields.get("scores")),
        order=tuple(fields["order"]),
        status=fields["status"],
        meta_score=fields.get("meta_score"),
        expected_scores=as_tuple(fields.get("expected_scores")),
        tokens=fields.get("tokens", 0),
        sample=fields.get("sample", 0),
        seed=fields.get("seed", 0),
        finish=fields.get("finish"),
    )


def verdict_to_json(verdict: Verdict) -> Row:
    """Returns a verdict with its critiques as a JSON object."""
    return {
        "id": verdict.id,
        "scores": list(verdict.scores),
        "best": verdict.best,
        "tie": verdict.tie,
        "votes": {rule: list(scores) for rule, scores in verdict.votes.items()},
        "unparsed": verdict.unparsed,
        "kept": _list(verdict.kept),
        "critiques": [critique_to_json(critique) for critique in verdict.critiques],
    }


def judged_row(comparison: Comparison, verdict: Verdict, line: int | str, run: Row) -> Row:
    """Returns the output row of a judged comparison.

    Scores are in the caller's order; nothing in a row depends on time or machine.

    Args:
      line: number of the input row, from 1.
      run: the fields that the rows of a run share (`run.row_fields`).
    """
    label = list(comparison.label) if isinstance(comparison.label, tuple) else comparison.label
    row = _verdict_row(verdict, line, comparison.n, label)
    return row | _texts(comparison) | run | {"error": None}


def _texts(comparison: Comparison) -> Row:
    return {
        "query": comparison.query,
        "responses": list(comparison.responses),
        "reference": comparison.reference,
        "meta": comparison.meta,
    }


def error_row(
    line: int | str,
    reason: str,
    run: Row,
    id: str | None = None,
    comparison: Comparison | None = None,
) -> Row:
    """Returns the output row of an input row that could not be judged.

    comparison: what was parsed of the input row; the row has its texts.
    """
    row = _verdict_row(Verdict(id, (), None, (), unparsed=0), line, 0, None)
    texts = _texts(comparison) if comparison else {}
    return row | texts | run | {"template": None, "error": {"line": line, "reason": reason}}


def _verdict_row(verdict: Verdict, line: int | str, n: int, label: Any) -> Row:
    verdict = dataclasses.replace(verdict, id=str(line) if verdict.id is None else verdict.id)
    return {"id": verdict.id, "line": line, "n": n, "label": label} | verdict_to_json(verdict)


def without_texts(row: Row) -> Row:
    """Returns a row without the texts of comparison and critiques, for private benchmarks."""
    without = {"text": "", "analysis": "", "principles": []}
    kept = {name: value for name, value in row.items() if name not in _TEXT_FIELDS}
    return kept | {"critiques": [critique | without for critique in row["critiques"]]}


def read_judged_rows(path: str | Path) -> Iterator[Row]:
    """Yields the rows of an output of `grm judge`, or of the OUT.part of an unfinished run.

    Raises ValueError that names the first line that is not such a row.
    """
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError:
                if not text.endswith("\n"):
                    return  # the last line of a run that is being written
                raise ValueError(
                    f"{path}, line {number} is not JSON: name an output of `grm judge`, or judge "
                    "again with --overwrite"
                ) from None
            if number == 1 and isinstance(row, dict) and "line" not in row and "input" in row:
                continue  # the header of OUT.part
            if not isinstance(row, dict) or "line" not in row or "critiques" not in row:
                raise ValueError(
                    f"{path}, line {number} is not a row of `grm judge`: name its output, not its "
                    "input"
                )
            yield row


def _list(values: tuple | None) -> list | None:
    return None if values is None else list(values)


def as_tuple(values: Sequence | None) -> tuple | None:
    """Returns a list of JSON as a tuple; None for null."""
    return None if values is None else tuple(values)
