"""The one JSON form of critiques and verdicts, and the rows of `grm judge` that consist of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.judging.row_schema import SCALAR, row_problem
from grm_jax.run_store import verified
from grm_jax.types import Comparison, Critique, Principle, Verdict

OutputRow = dict[str, Any]  # one line of an output file

_TEXT_FIELDS = ("query", "responses", "reference", "meta")  # absent from private rows


def critique_to_json(critique: Critique) -> dict[str, Any]:
    """Returns a critique as a JSON object; the seed is not in it, the row has it."""
    by_endpoint = {"prompt_tokens": critique.prompt_tokens, "error": critique.error}
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
    } | {name: value for name, value in by_endpoint.items() if value is not None}


def critique_from_json(fields: dict[str, Any], with_text: bool = True) -> Critique:
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
        prompt_tokens=fields.get("prompt_tokens"),
        error=fields.get("error"),
    )


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
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


def judged_row(
    comparison: Comparison, verdict: Verdict, line: int | str, run: dict[str, Any]
) -> OutputRow:
    """Returns the output row of a judged comparison.

    Scores are in the caller's order; nothing in a row depends on time or machine.

    Args:
      line: number of the input row, from 1.
      run: the fields that the rows of a run share (`identity.row_fields`).
    """
    label = list(comparison.label) if isinstance(comparison.label, tuple) else comparison.label
    row = _verdict_row(verdict, line, comparison.n, label)
    return row | _texts(comparison) | run | {"error": None}


def _texts(comparison: Comparison) -> dict[str, Any]:
    return {
        "query": comparison.query,
        "responses": list(comparison.responses),
        "reference": comparison.reference,
        "meta": comparison.meta,
    }


def error_row(
    line: int | str,
    reason: str,
    run: dict[str, Any],
    id: str | None = None,
    comparison: Comparison | None = None,
    no_reply: bool = False,
) -> OutputRow:
    """Returns the output row of an input row that could not be judged.

    comparison: what was parsed of the input row; the row has its texts.
    no_reply: an endpoint answered none of its requests.
    """
    row = _verdict_row(Verdict(id, (), None, (), unparsed=0), line, 0, None)
    texts = _texts(comparison) if comparison else {}
    error = {"line": line, "reason": reason} | ({"no_reply": True} if no_reply else {})
    return row | texts | run | {"template": None, "error": error}


def counts(row: OutputRow) -> dict[str, int]:
    """Returns the tokens, critiques and prompt tokens of a row, which the cost of a run adds up."""
    critiques = row["critiques"]
    return {
        "tokens": sum(critique["tokens"] for critique in critiques),
        "critiques": len(critiques),
        "prompt_tokens": sum(critique.get("prompt_tokens", 0) for critique in critiques),
    }


def is_scalar(row: OutputRow) -> bool:
    """Returns whether a row has the rewards of a scalar reward model, and no critiques."""
    return row.get("kind") == SCALAR


def has_no_reply(row: OutputRow) -> bool:
    """Returns whether an endpoint answered none of a row's requests."""
    return bool((row.get("error") or {}).get("no_reply"))


def _verdict_row(verdict: Verdict, line: int | str, n: int, label: Any) -> OutputRow:
    verdict = dataclasses.replace(verdict, id=str(line) if verdict.id is None else verdict.id)
    return {"id": verdict.id, "line": line, "n": n, "label": label} | verdict_to_json(verdict)


def without_texts(row: OutputRow) -> OutputRow:
    """Returns a row without the texts of comparison and critiques, for private benchmarks."""
    without = {"text": "", "analysis": "", "principles": []}
    kept = {name: value for name, value in row.items() if name not in _TEXT_FIELDS}
    return kept | {"critiques": [critique | without for critique in row["critiques"]]}


def read_judged_rows(path: str | Path, check: bool = False) -> Iterator[OutputRow]:
    """Yields the rows of an output of `grm judge`, or of the OUT.part of an unfinished run.

    check: whether the fields of every row are checked as well (`row_schema`).

    Raises:
      ValueError: names the file, and the first line that is damaged or no such row.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _row_of(path, number, line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise
                return  # the last line of a run that is being written, or of a file that was cut
            if row is not None:
                if problem := row_problem(row) if check else "":
                    raise ValueError(
                        f"{path}: row {row.get('id')!r:.60} (line {number}) has {problem}: remove "
                        "the row, or judge it again"
                    )
                yield row


def _row_of(path: str | Path, number: int, line: bytes) -> OutputRow | None:
    """Returns the row of a line; None for the header of OUT.part."""
    place, text = f"{path}, line {number}", verified(line)
    if text is None:
        raise ValueError(f"{place} is damaged: its checksum differs; judge again with --resume")
    try:
        row = strict_json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{place}: {error}: name an output of `grm judge`, or judge again with --overwrite"
        ) from None
    is_row = isinstance(row, dict) and "line" in row and "critiques" in row
    if number == 1 and isinstance(row, dict) and "line" not in row and "input" in row:
        return None
    if not is_row:
        raise ValueError(f"{place} is not a row of `grm judge`: name its output, not its input")
    return row


def _list(values: tuple | None) -> list | None:
    return None if values is None else list(values)


def as_tuple(values: Sequence | None) -> tuple | None:
    """Returns a list of JSON as a tuple; None for null."""
    return None if values is None else tuple(values)
