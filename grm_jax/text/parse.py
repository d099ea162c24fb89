r"""Parses a critique: weighted principles, analysis, and the scores in its last \boxed{...}.

A box is \boxed{a, b, ...} with one or two backslashes and nothing but plain ASCII numbers between
commas, one for each response. The last such box holds the scores. Lists, citations and fractions
never count.

A box inside a code block, inline code, a block quote, quotation marks or an echoed response is a
quotation. It does not count, unless it is in the scores section and that section has no other
box. In a text that reached its token limit, scores count only at the very end or in their section.

`parse` never raises. A critique without scores has one of these statuses:
  no_scores     no box of numbers            wrong_count  no box has one number per response
  out_of_range  a number beyond the scale    truncated    the text ended before its scores
"""

import dataclasses
import re

from grm_jax.text.sections import Sections, find_sections, parse_principles
from grm_jax.types import Critique

BOX = re.compile(r"\\{1,2}boxed[ \t]*\{([^{}]*)\}")
# An unfinished box at the end of a text: "...\boxed{7, " or "...\box".
OPEN_BOX = re.compile(r"\\{1,2}(?:b|bo|box|boxe|boxed[ \t]*(?:\{[^{}]*)?)$")
NUMBER = re.compile(r"[+-]?\d{1,6}(?:\.\d{1,6})?", re.ASCII)
# Allowed after the scores of a complete text: closing signs, no words.
TAIL = re.compile(r"[\s$*_`.)\]}\\>]*")


@dataclasses.dataclass(frozen=True)
class Box:
    """A box of numbers: its span in the text, its values, and its context."""

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
    """Parses one generated text about n responses. Never raises.

    Args:
      text: what the model wrote.
      n: the number of responses in the prompt.
      low, high: the scale. On the binary scale 0 to 1, only exactly 0 and 1 are in range.
      output: "scores", one number per response; or "choice", the number of the best response,
        which becomes a score of 1 for it and 0 for the others.
      finish: "length" if the text reached its token limit, "stop" if it ended, None if unknown.

    Returns:
      A Critique with scores in prompt order and order (0, ..., n - 1).
    """
    sections = find_sections(text)
    boxes = _boxes(text, sections)
    box, status = _pick(text, boxes, 1 if output == "choice" else n, finish)
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


def find_box(text: str, count: int, finish: str | None = None) -> Box | None:
    """Returns the box of `count` numbers from which `parse` takes the scores, or None."""
    return _pick(text, _boxes(text, find_sections(text)), count, finish)[0]


def _boxes(text: str, sections: Sections) -> list[Box]:
    boxes = []
    for hit in BOX.finditer(text):
        tokens = [token.strip(" \t\n") for token in hit.group(1).split(",")]
        if all(NUMBER.fullmatch(token) for token in tokens):
            values = tuple(float(token) for token in tokens)
            in_section = sections.scores_start is not None and hit.start() >= sections.scores_start
            boxes.append(Box(*hit.span(), values, sections.is_quoted(hit.start()), in_section))
    return boxes


def _pick(text: str, boxes: list[Box], count: int, finish: str | None) -> tuple[Box | None, str]:
    """Returns the box that holds the scores and "ok", or None and the status."""
    plain = [box for box in boxes if not box.quoted]
    if not any(box.in_section for box in plain):
        # In the scores section a quoted box counts if all quoted boxes there agree.
        wrapped = [box for box in boxes if box.in_section and box.quoted]
        plain += wrapped if len({box.values for box in wrapped}) == 1 else []
    cut = finish == "length" or OPEN_BOX.search(text[-200:]) is not None
    fitting = [box for box in plain if len(box.values) == count]
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
    """The scores in a box; None if one is off the scale."""
    if output == "choice":
        best = values[0]
        return tuple(float(i + 1 == best) for i in range(n)) if best in range(1, n + 1) else None
    if not all(low <= value <= high for value in values):
        return None
    if (low, high) == (0, 1) and not all(value in (0, 1) for value in values):
        return None
    return values
