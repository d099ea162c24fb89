"""Verdicts and critiques as plain text for the terminal, and as HTML for notebooks.

Responses are numbered from 1, as in the prompts and in the report page. The HTML has no style
sheet and no script: notebooks that remove its style attributes still show every text and number.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grm_jax.types import Critique, Principle, Ranking, Verdict

UNPARSED_CHARS = 400  # of an unparsed critique's text that are shown
REPR_CHARS = 60  # of a text that are shown in a repr
# Both colours and the grey tint are readable on white and on the dark themes of notebooks.
BAR, BEST_BAR, TINT = "#4a8fd4", "#3c9d6b", "rgba(128,128,128,0.18)"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def verdict_text(verdict: Verdict, width: int) -> str:
    """Returns the vote, the score of each response, and every critique, wrapped at `width`."""
    lines = textwrap.wrap(headline(verdict), width)
    if len(verdict.scores) > 1:
        numbers = [_score(verdict, score) for score in verdict.scores]
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
    if verdict.is_scalar:
        basis = "(scalar reward model)"
        if len(scores) == 1:
            return f"Reward {reward(scores[0])} {basis}."
        return _winner(verdict, basis)
    voters = k - verdict.unparsed - verdict.failed if verdict.kept is None else len(verdict.kept)
    if not voters:
        return f"No verdict: 0 of {k} critiques have scores."
    rule = next((name for name, votes in verdict.votes.items() if votes == scores), "vote")
    of = f"{rule} of {voters} critiques" if voters > 1 else "one critique"
    notes = [of] if verdict.kept is None else [f"{of}, kept by the meta reward model"]
    if verdict.unparsed:
        notes.append(f"{verdict.unparsed} of {k} without scores")
    if verdict.failed:
        notes.append(f"{verdict.failed} of {k} requests failed")
    basis = f"({'; '.join(notes)})"
    if len(scores) == 1:
        return f"Score {number(scores[0])} {basis}."
    return _winner(verdict, basis)


def _winner(verdict: Verdict, basis: str) -> str:
    return f"{'Tie' if verdict.best is None else f'Response {verdict.best + 1} is best'} {basis}."


def _score(verdict: Verdict, value: float) -> str:
    return reward(value) if verdict.is_scalar else number(value)


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
    text = critique.error or critique.analysis or (critique.text if critique.scores is None else "")
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


# ---------------------------------------------------------------- pieces of a repr


def number(value: float) -> str:
    """Returns a score with at most two decimals: "7", "7.5", "0.33"."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def reward(value: float) -> str:
    """Returns a reward with four significant digits: "13.25", "-0.001234"."""
    return f"{value:.4g}"


def printable(text: str) -> str:
    """Returns a text without the characters that control a terminal or the writing direction."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def outside_text(value: object, most: int = 200) -> str:
    """Returns a text of a server or a program as one line of at most `most` characters.

    Characters that are not printable become "?".
    """
    line = " ".join(str(value)[: 4 * most].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= most else line[: most - 3] + "..."


def shortened(text: str) -> str:
    """Returns the repr of a text's first characters, on one line."""
    return repr(text if len(text) <= REPR_CHARS else f"{text[: REPR_CHARS - 3]}...")


def shown(value: Any) -> str:
    """Returns the beginning of any value's repr on one line, for errors."""
    try:
        return " ".join(f"{value!r:.60}".split())
    except (RecursionError, ValueError):  # of 5,000 digits
        return f"a value of type {type(value).__name__}"


def tuple_text(values: Iterable[float] | None) -> str:
    """Returns scores as "(9, 3.5)"; "None" for None."""
    return "None" if values is None else f"({', '.join(map(number, values))})"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun: "1 response", "2 responses"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---------------------------------------------------------------- HTML


def verdict_html(verdict: Verdict) -> str:
    """Returns the vote with a bar for each response, and each critique folded."""
    top = max((abs(score) for score in verdict.scores), default=0)
    rows = [
        (
            f"Response {i + 1}",
            _score(verdict, score),
            _bar(score, top, i == verdict.best),
            "best" * (i == verdict.best),
        )
        for i, score in enumerate(verdict.scores)
    ]
    return _box(f"<b>{_escape(headline(verdict))}</b>", _table(rows), _critiques_html(verdict))


def ranking_html(ranking: Ranking) -> str:
    """Returns the responses, best first, with their scores as bars, and each critique folded."""
    verdict, top = ranking.verdict, max(map(abs, ranking.scores))
    rows = [
        (f"{rank}.", _score(verdict, score), _bar(score, top, i == verdict.best), _escape(response))
        for rank, score, i, response in zip(
            ranking.ranks, ranking.scores, ranking.order, ranking.responses
        )
    ]
    return _box(f"<b>{_escape(headline(verdict))}</b>", _table(rows), _critiques_html(verdict))


def critique_html(critique: Critique) -> str:
    """Returns scores, principles as bars, and the analysis."""
    return _box(f"<b>{_escape(critique_headline(critique))}</b>", _critique_body(critique))


def _critiques_html(verdict: Verdict) -> str:
    parts = []
    for i, critique in enumerate(verdict.critiques):
        title = f"Critique {i + 1}: {critique_headline(critique)}"
        if verdict.kept is not None:
            title += ", votes" if i in verdict.kept else ", does not vote"
        parts.append(
            f"<details><summary>{_escape(title)}</summary>{_critique_body(critique)}</details>"
        )
    return "".join(parts)


def _critique_body(critique: Critique) -> str:
    top = max([100, *(principle.weight or 0 for principle in critique.principles)])
    rows = [
        (
            _escape(principle.name),
            "" if principle.weight is None else f"{principle.weight:g}%",
            _bar(principle.weight or 0, top),
            _escape(principle.description),
        )
        for principle in critique.principles
    ]
    text = critique.error or critique.analysis or (critique.text if critique.scores is None else "")
    style = "white-space:pre-wrap;margin:0.4em 0 0.8em"
    return f'{_table(rows)}<div style="{style}">{_escape(text)}</div>'


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """A table of label, number, bar and text; the cells are HTML."""
    cell = "text-align:left;vertical-align:top;padding:2px 8px;background:none"
    body = "".join(
        f'<tr style="background:none">'
        f'<td style="{cell}">{label}</td>'
        f'<td style="{cell};text-align:right;white-space:nowrap">{value}</td>'
        f'<td style="{cell};min-width:6em;width:10em">{bar}</td>'
        f'<td style="{cell};white-space:pre-wrap">{text}</td></tr>'
        for label, value, bar, text in rows
    )
    return f'<table style="border-collapse:collapse;margin:0.4em 0">{body}</table>' if rows else ""


def _bar(value: float, top: float, is_best: bool = False) -> str:
    share = 100 * max(0.0, value) / top if top > 0 else 0
    colour = BEST_BAR if is_best else BAR
    bar = f"width:{share:.0f}%;height:0.7em;background-color:{colour};border-radius:2px"
    return (
        f'<div style="background-color:{TINT};border-radius:2px;margin-top:0.3em">'
        f'<div style="{bar}"></div></div>'
    )


def _box(*parts: str) -> str:
    return f'<div style="max-width:60em;overflow-wrap:break-word">{"".join(parts)}</div>'


def _escape(text: str) -> str:
    return html.escape(printable(text))
