"""The output rows of `grm judge`: one JSON object per comparison."""

from __future__ import annotations

import dataclasses
from typing import Any

from grm_jax.types import Comparison, Critique, Principle, Verdict


def row_of(
    comparison: Comparison, verdict: Verdict, settings: dict, line: int, template: str
) -> dict:
    """The row of a judged comparison: scores in the caller's order, nothing that depends on time or machine.

    settings: what the run has in common (`run.settings_of`).  template: "name@fingerprint".  line: 1 for the first.
    """
    label = list(comparison.label) if isinstance(comparison.label, tuple) else comparison.label
    row: dict[str, Any] = {
        "id": verdict.id if verdict.id is not None else str(line),
        "line": line,
        "n": comparison.n,
        "label": label,
        "scores": list(verdict.scores),
        "best": verdict.best,
        "tie": verdict.tie,
        "votes": {rule: list(scores) for rule, scores in verdict.votes.items()},
        "unparsed": verdict.unparsed,
        "kept": None if verdict.kept is None else list(verdict.kept),
        "critiques": [critique_row(critique) for critique in verdict.critiques],
        "query": comparison.query,
        "responses": list(comparison.responses),
        "reference": comparison.reference,
        "meta": comparison.meta,
    }
    return row | settings | {"template": template, "error": None}


def critique_row(critique: Critique) -> dict:
    """A critique as JSON."""
    return {
        "text": critique.text,
        "order": list(critique.order),
        "scores": None if critique.scores is None else list(critique.scores),
        "status": critique.status,
        "meta_score": critique.meta_score,
        "expected_scores": None
        if critique.expected_scores is None
        else list(critique.expected_scores),
        "tokens": critique.tokens,
        "sample": critique.sample,
        "finish": critique.finish,
        "principles": [dataclasses.asdict(principle) for principle in critique.principles],
        "analysis": critique.analysis,
    }


def critique_of(row: dict) -> Critique:
    """The critique that `critique_row` wrote."""
    fields: dict[str, Any] = {
        name: row[name]
        for name in ("text", "status", "meta_score", "tokens", "sample", "finish", "analysis")
    }
    numbers: dict[str, Any] = {
        name: None if row[name] is None else tuple(row[name])
        for name in ("scores", "expected_scores")
    }
    principles = tuple(Principle(**principle) for principle in row["principles"])
    return Critique(**fields, **numbers, order=tuple(row["order"]), principles=principles)


def error_row(line: int, reason: str, settings: dict, id: str | None = None) -> dict:
    """The row of an input line that could not be judged."""
    row: dict[str, Any] = {
        "id": id if id is not None else str(line),
        "line": line,
        "n": 0,
        "label": None,
        "scores": [],
    }
    row |= {"best": None, "tie": False, "votes": {}, "unparsed": 0, "kept": None, "critiques": []}
    return row | settings | {"template": None, "error": {"line": line, "reason": reason}}
