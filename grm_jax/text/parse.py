r"""Reads a critique: weighted principles, analysis, and the scores of its last \boxed{...}.

What counts as scores. A box is \boxed{a, b, ...} with one or two backslashes; its content must be plain ASCII numbers
between commas, one for each response. The last such box is taken.
Brackets of lists, citations and fractions are never read. A box inside a code block, inline code, a block quote,
quotation marks or an echoed response of the prompt is a quotation and does not count, unless it stands in the section
of scores and nothing else does there. A text that ran into its token limit counts only if its scores are its end or
stand in their section.
`parse` never raises and every critique without scores says why by its status:
  no_scores     no box of numbers                      wrong_count   boxes of numbers, none with one per response
  out_of_range  a number beyond the scale              truncated     the text ended before its scores
"""

from __future__ import annotations

import dataclasses
import re

from grm_jax.text.sections import Sections, find_sections, parse_principles
from grm_jax.types import Critique

BOX = re.compile(r"\\{1,2}boxed[ \t]*\{([^{}]*)\}")
# A box that the text did not get to close: "...\boxed{7, " or "...\box" as its last characters.
OPEN_BOX = re.compile(r"\\{1,2}(?:b|bo|box|boxe|boxed[ \t]*(?:\{[^{}]*)?)$")
NUMBER = re.compile(r"[+-]?\d{1,6}(?:\.\d{1,6})?", re.ASCII)
# What may follow the scores of a text that has ended: closing signs, no words.
TAIL = re.compile(r"[\s$*_`.)\]}\\>]*")


@dataclasses.dataclass(frozen=True)
class Box:
    """A box of numbers: where it stands, its values, whether it is quoted, whether it is in the section of scores."""

    start: int
    end: int
    values: tuple[float, ...]
    quoted: bool
    in_section: bool


def parse(
    text: str,
    n: int,
    low: float = 1,
    high: float = 10,
    output: str = "scores",
    finish: str | None = None,
) -> Critique:
    """Reads one generated text about n responses.

    low, high: the scale (0, 1 for the binary template, where only exactly 0 and 1 are in range).
    output: "scores", one number per response; or "choice", one number that names the best response, read as scores of
    1 for it and 0 for the others.
    finish: "length" if the text ran into its token limit, "stop" if it ended by itself, None if unknown.
    Returns a Critique with scores in prompt order and order (0..n-1). Never raises for any text.
    """
    sections = find_sections(text)
    boxes = _boxes(text, sections)
    wanted = 1 if output == "choice" else n
    box, status = _pick(text, boxes, wanted, finish)
    scores = None
    if box is not None:
        scores = _scores(box.values, n, low, high, output)
        status = "ok" if scores is not None else "out_of_range"
    return Critique(
        text=text,
        principles=parse_principles(sections.principles),
        analysis=sections.analysis,
        scores=scores,
        order=tuple(range(n)),
        status=status,
        finish=finish,
    )


def find_box(text: str, wanted: int, finish: str | None = None) -> Box | None:
    """The box of `wanted` numbers that `parse` reads the scores from; None where it reads none."""
    return _pick(text, _boxes(text, find_sections(text)), wanted, finish)[0]


def _boxes(text: str, sections: Sections) -> list[Box]:
    found = []
    for hit in BOX.finditer(text):
        tokens = [token.strip(" \t\n") for token in hit.group(1).split(",")]
        if all(NUMBER.fullmatch(token) for token in tokens):
            values = tuple(float(token) for token in tokens)
            in_section = sections.scores_start is not None and hit.start() >= sections.scores_start
            found.append(
                Box(hit.start(), hit.end(), values, sections.is_quoted(hit.start()), in_section)
            )
    return found


def _pick(text: str, boxes: list[Box], wanted: int, finish: str | None) -> tuple[Box | None, str]:
    """The box that holds the scores, or None with the reason."""
    plain = [box for box in boxes if not box.quoted]
    if not any(box.in_section for box in plain):
        # In the section of scores a box may be set in code or quotation marks, provided there is only one reading.
        wrapped = [box for box in boxes if box.in_section and box.quoted]
        plain += wrapped if len({box.values for box in wrapped}) == 1 else []
    cut = finish == "length" or OPEN_BOX.search(text[-200:]) is not None
    fitting = [box for box in plain if len(box.values) == wanted]
    if cut:
        fitting = [box for box in fitting if box.in_section or TAIL.fullmatch(text, box.end)]
        if not fitting:
            return None, "truncated"
    if fitting:
        return fitting[-1], "ok"
    return None, "wrong_count" if plain else "no_scores"


def _scores(
    values: tuple[float, ...], n: int, low: float, high: float, output: str
) -> tuple[float, ...] | None:
    """The scores that a box states, None where one is off the scale."""
    if output == "choice":
        best = values[0]
        return tuple(float(i + 1 == best) for i in range(n)) if best in range(1, n + 1) else None
    if not all(low <= value <= high for value in values):
        return None
    if (low, high) == (0, 1) and not all(value in (0, 1) for value in values):
        return None
    return values
