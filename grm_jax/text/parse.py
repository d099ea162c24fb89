r"""Parses a critique: weighted principles, analysis, and scores.

Templates ask for \boxed{a, b, ...}, one number for each response. Other forms that models write
are parsed if they have one meaning: \boxed{\text{8, 3}}, \boxed{8/10, 3/10}, "Response 1:
\boxed{8}" for each response, and in a scores section "Response 1: 8/10". `types.UNPARSED` lists
the statuses of critiques without scores.

 - Nothing before the end of the thinking counts (<think>...</think> and the like).
 - If there is a scores section, nothing before it counts. Else the last scores of the text count.
 - A box inside a code block, inline code, a block quote, quotation marks or an echoed response is
   a quotation. It does not count, unless the scores section is nothing but a code block.
 - In a text that reached its token limit, scores count only at the very end or in their section.
"""

import dataclasses
import re

from grm_jax.text import forms
from grm_jax.text.forms import Form
from grm_jax.text.quotations import Span, code_spans, verdict_start
from grm_jax.text.sections import HEADING, Sections, find_sections, parse_principles
from grm_jax.types import Critique

# An unfinished box at the end of a text: "...\boxed{7, " or "...\box".
OPEN_BOX = re.compile(
    r"\\{1,2}(?:b|bo|box|boxe|boxed[ \t]*(?!.*boxed)"
    r"(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*(?:\{[^{}]*)?)?)$",
    re.DOTALL,
)
# Allowed after the scores of a complete text: closing signs, no words.
TAIL = re.compile(r"[\s$*_`.)\]}\\>]*")
DIGIT = re.compile(r"\d")  # of any script


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
    start = verdict_start(text)
    verdict = text[start:] if start is not None else ""
    sections = find_sections(verdict, output)
    form, status = _find(verdict, sections, n, output, finish)
    scores = None
    if start is None:
        status = "unfinished_thinking"
    elif start > 0 and status == "no_scores":
        status = "only_thinking"
    elif form is not None:
        scores, status = _scores(form, n, low, high, output)
    return Critique(
        text=text,
        principles=parse_principles(sections.principles),
        analysis=sections.analysis,
        scores=scores,
        order=tuple(range(n)),
        status=status,
        finish=finish,
    )


def find_box(text: str, n: int, output: str = "scores", finish: str | None = None) -> Form | None:
    """Returns the plain box from which `parse` takes the scores; None for every other form."""
    start = verdict_start(text)
    verdict = text[start or 0 :]
    form, _ = _find(verdict, find_sections(verdict, output), n, output, finish)
    if start is None or form is None or not form.plain:
        return None
    return dataclasses.replace(form, start=form.start + start, end=form.end + start)


def _find(
    text: str, sections: Sections, n: int, output: str, finish: str | None
) -> tuple[Form | None, str]:
    """Returns the form that holds the scores and "ok", or None and the status."""
    span = sections.scores or (0, len(text))
    section, lines = sections.scores is not None, None
    boxes = forms.find_boxes(text, sections, span)
    is_cut = finish == "length" or OPEN_BOX.search(text[-200:]) is not None
    if section and all(box.quoted for box in boxes):
        if output == "scores" and finish != "length":
            lines = forms.find_lines(text, span, sections)
        if lines is None and not boxes:  # the scores may stand in a later section
            span = (span[0], len(text))
            boxes = forms.find_boxes(text, sections, span)
    plain = [box for box in boxes if not box.quoted]
    if section and not any(box.values for box in plain):
        plain += _wrapped(text, span, boxes)
    form, status = _last(text, plain, sections, span[0] if section else 0, n, output)
    if form is None and status == "no_scores" and section:
        form, status = lines, "malformed_section"
        if form is not None:
            status = "ok" if form.in_order(n) else _misfit(form, n)
            if status == "ok" and forms.is_labelled_in_another_order(text, form):
                status = "wrong_labels"
    if is_cut and not (status == "ok" and form and (section or TAIL.fullmatch(text, form.end))):
        return None, "truncated"
    return (form, "ok") if status == "ok" else (None, status)


def _wrapped(text: str, span: Span, boxes: list[Form]) -> list[Form]:
    """Boxes of a scores section that is nothing but code, if all agree."""
    quoted = [box for box in boxes if box.quoted and box.values]
    if len({box.values for box in quoted}) != 1:
        return []
    heading = HEADING["choice"].match(text, span[0])
    position, others = heading.end() if heading else span[0], ""
    for start, end in [*code_spans(text), (span[1], span[1])]:
        if start >= position:
            others += text[position : min(start, span[1])]
            position = end
    return [] if re.search(r"\w", others) else quoted


def _last(
    text: str, boxes: list[Form], sections: Sections, since: int, n: int, output: str
) -> tuple[Form | None, str]:
    """Returns the last of the unquoted boxes that has all scores, and its status."""
    if output == "choice":
        if boxes and _scores_a_response(text, boxes):
            return None, "wrong_labels"
        boxes, n = [_choice(box) for box in boxes], 1
    fitting = [box for box in boxes if box.in_order(n)]
    last = fitting[-1] if fitting else None
    later = [box for box in boxes if last is None or box.start > last.start]
    if any(box.values is None and DIGIT.search(box.content) for box in later):
        return None, "malformed_box"
    numeric = [box for box in later if box.values]
    singles = [box for box in numeric if box.values and len(box.values) == 1]
    joined = forms.join_boxes(text, singles, sections, since) if n > 1 else None
    if joined is not None and (joined.labels or (last is None and joined.in_order(n))):
        return (joined, "ok") if joined.in_order(n) else (None, "wrong_labels")
    if any(box.labels for box in numeric):
        return None, "wrong_labels"
    if last is not None:
        one = forms.join_boxes(text, [last], sections, since) if n == 1 else None
        other = output == "scores" and one is not None and max(one.labels or (0,)) > 1
        other = other or forms.is_labelled_in_another_order(text, last)
        return (None, "wrong_labels") if other else (last, "ok")
    return None, "wrong_count" if numeric else "no_scores"


def _choice(box: Form) -> Form:
    """A box that names a response: \\boxed{2} or \\boxed{Response 2}."""
    if box.labels is None:
        return box
    named = (float(box.labels[0]),) if box.values is None else None
    return dataclasses.replace(box, values=named, labels=None)


def _scores_a_response(text: str, boxes: list[Form]) -> bool:
    """Whether the last box scores the response that its line names, and chooses none."""
    *others, box = boxes
    label = forms.label_before(text, others[-1].end if others else 0, box)
    return bool(label) and box.labels is None and box.values != (label,)


def _misfit(form: Form, n: int) -> str:
    """The status of lines of scores that do not fit n responses."""
    if form.values is None:
        return "malformed_section"
    return "wrong_labels" if form.labels else "wrong_count"


def _scores(
    form: Form, n: int, low: float, high: float, output: str
) -> tuple[tuple[float, ...] | None, str]:
    """The scores of a form and "ok", or None and the status."""
    if form.scale is not None and (form.scale != high or output == "choice"):
        return None, "wrong_scale"
    if output == "choice":
        best = form.values[0] if form.values else 0
        if best not in range(1, n + 1):
            return None, "out_of_range"
        return tuple(float(i + 1 == best) for i in range(n)), "ok"
    values = form.in_order(n) or ()
    if not all(low <= value <= high for value in values):
        return None, "out_of_range"
    if (low, high) == (0, 1) and not all(value in (0, 1) for value in values):
        return None, "out_of_range"
    return values, "ok"
