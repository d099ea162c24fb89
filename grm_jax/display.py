"""Verdicts and critiques as plain text, for the terminal.

Responses are numbered from 1, as in the prompts and in the report page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grm_jax.types import Critique, Principle, Verdict

UNPARSED_CHARS = 400  # of an unparsed critique's text that are shown
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def verdict_text(verdict: Verdict, width: int) -> str:
    """Returns the vote, the score of each response, and every critique, wrapped at `width`."""
    lines = textwrap.wrap(headline(verdict), width)
    if len(verdict.scores) > 1:
        numbers = [number(score) for score in verdict.scores]
        longest = max(map(len, numbers))
        for i, text in enumerate(numbers):
            mark = "  best" if i == verdict.best else ""
            lines.append(f"  Response {i + 1}  {text:>{longest}}{mark}")
    k = len(verdict.critiques)
    for i, critique in enumerate(verdict.critiques):
        title = f"Critique {i + 1} of {k}: {critique_headline(critique)}"
        if verdict.kept is not None:
            title += ", votes" if i in verdict.kept else ", does not vote"
        lines += ["", *textwrap.wrap(title, width), *_critique_lines(critique, width)]
    return "\n".join(lines)


def headline(verdict: Verdict) -> str:
    """Returns the result of a verdict in one line: "Response 2 is best (sum of 8 critiques)"."""
    k, scores = len(verdict.critiques), verdict.scores
    voters = k - verdict.unparsed if verdict.kept is None else len(verdict.kept)
    if not voters:
        return f"No verdict: 0 of {k} critiques have scores."
    rule = next((name for name, votes in verdict.votes.items() if votes == scores), "vote")
    of = f"{rule} of {voters} critiques" if voters > 1 else "one critique"
    notes = [of] if verdict.kept is None else [f"{of}, kept by the meta reward model"]
    if verdict.unparsed:
        notes.append(f"{verdict.unparsed} of {k} without scores")
    basis = f"({'; '.join(notes)})"
    if len(scores) == 1:
        return f"Score {number(scores[0])} {basis}."
    if verdict.best is None:
        return f"Tie {basis}."
    return f"Response {verdict.best + 1} is best {basis}."


def critique_headline(critique: Critique) -> str:
    """Returns scores, response order and status of a critique in one line."""
    if critique.scores is None:
        parts = [f"status {critique.status}"]
    else:
        scores = "scores" if len(critique.scores) > 1 else "score"
        parts = [f"{scores} {', '.join(map(number, critique.scores))}", f"status {critique.status}"]
    if len(critique.order) > 1:
        parts.append(f"order {', '.join(str(i + 1) for i in critique.order)}")
    if critique.meta_score is not None:
        parts.append(f"meta score {number(critique.meta_score)}")
    return ", ".join(parts)


def _critique_lines(critique: Critique, width: int) -> list[str]:
    lines = [line for p in critique.principles for line in _principle_lines(p, width)]
    text = critique.analysis or (critique.text if critique.scores is None else "")
    if critique.scores is None and len(text) > UNPARSED_CHARS:
        text = f"{text[:UNPARSED_CHARS]} ..."
    for paragraph in printable(text).splitlines():
        lines += textwrap.wrap(paragraph, width, initial_indent="  ", subsequent_indent="  ")
    return lines


def _principle_lines(principle: Principle, width: int) -> Sequence[str]:
    weight = "" if principle.weight is None else f"{principle.weight:g}%"
    text = ": ".join(filter(None, (principle.name, principle.description)))
    first, rest = f"  {weight:>4} ", " " * 7
    return textwrap.wrap(printable(text), width, initial_indent=first, subsequent_indent=rest)


def number(value: float) -> str:
    """Returns a score with at most two decimals: "7", "7.5", "0.33"."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def printable(text: str) -> str:
    """Returns a text without the characters that control a terminal or the writing direction."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
