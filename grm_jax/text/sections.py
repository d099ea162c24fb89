"""Splits a critique into principles, analysis and scores, and finds its quotations.

Headings are recognised in any markup: "### Principles", "**Specific Criteria:**", "2) Analysis",
"Final scores:". A section without a heading is the text between its neighbours.
Every function accepts any text and takes time linear in its length.
"""

import bisect
import dataclasses
import re
from collections.abc import Iterator, Sequence

from grm_jax.types import Principle

# Every repetition is bounded or has characters of its own, so that no text makes the search
# quadratic.
DRESS = r"[ \t#*_=>~\-]{0,16}(?:\(?[0-9]{1,2}[.):][ \t]{0,4})?[*_ \t]{0,4}"
END = r"[*_ \t]{0,8}(?::|：|$)"
HEADINGS = {
    "principles": r"(?:(?:specific|general|judging|evaluation|weighted|my)[ \t]+){0,2}"
    r"(?:principles?|criteria|criterion)"
    r"(?:[ \t]+(?:and|with|&)[ \t]+(?:their[ \t]+)?weights?)?",
    "analysis": r"(?:(?:step[- ]by[- ]step|detailed|comparative|overall)[ \t]+)?"
    r"(?:analysis|analyses|critiques?|evaluation|comparison)",
    "scores": r"(?:the[ \t]+)?(?:(?:final|overall)[ \t]+)?(?:scores?|ratings?)"
    r"|best(?:[ \t]+response)?",
}
HEADING = re.compile(
    "^"
    + DRESS
    + "(?:"
    + "|".join(f"(?P<{name}>{words})" for name, words in HEADINGS.items())
    + ")"
    + END,
    re.IGNORECASE | re.MULTILINE,
)
MAX_HEADING = 60

FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
QUOTE_LINE = re.compile(r"^[ \t]{0,3}>[^\n]*$", re.MULTILINE)
# A quotation ends with its line, so that a single quotation mark does not swallow the text.
MARKS = re.compile(r"\"[^\"\n]*\"|“[^“”\n]*”|«[^«»\n]*»|「[^「」\n]*」")
TICKS = re.compile(r"`+|\n")
ECHO = re.compile(
    r"\[\s*(?:the\s+(?:begin|start)\s+of\s+)?-?response\s+([0-9]{1,2})\s*\]", re.IGNORECASE
)
ECHO_END = re.compile(
    r"\[\s*(?:/|the\s+end\s+of\s+)-?\s*response\s+([0-9]{1,2})\s*\]", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Sections:
    """The sections of one text.

    scores_start: position of the scores heading, None without one.
    quoted: sorted, disjoint spans (start, end) of quotations, code and echoes of the prompt.
    """

    principles: str
    analysis: str
    scores_start: int | None
    quoted: tuple[tuple[int, int], ...]

    def is_quoted(self, position: int) -> bool:
        """Whether the character at `position` is quoted."""
        return _inside(self.quoted, position)


def _inside(spans: Sequence[tuple[int, int]], position: int) -> bool:
    i = bisect.bisect_right(spans, (position, float("inf"))) - 1
    return i >= 0 and spans[i][0] <= position < spans[i][1]


def find_sections(text: str) -> Sections:
    """Splits a text into its sections. Never raises."""
    quoted = quoted_spans(text)
    starts: dict[str, list[tuple[int, int]]] = {name: [] for name in HEADINGS}
    for hit in HEADING.finditer(text):
        if hit.end() - hit.start() <= MAX_HEADING and not _inside(quoted, hit.start()):
            starts[hit.lastgroup].append(hit.span())
    scores_start = starts["scores"][-1][0] if starts["scores"] else None
    limit = scores_start if scores_start is not None else len(text)
    analysis = next((span for span in starts["analysis"] if span[0] < limit), None)
    principles = next(
        (span for span in starts["principles"] if span[0] < (analysis or (limit,))[0]), None
    )
    start = principles[1] if principles else 0
    if analysis is None:
        # Without a heading, the analysis starts after the last line that states a principle.
        cut = start + max(_principle_ends(text[start:limit]), default=0)
        analysis = (cut, cut)
    principles_text, analysis_text = text[start : analysis[0]], text[analysis[1] : limit]
    return Sections(principles_text.strip(), analysis_text.strip(), scores_start, quoted)


def quoted_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Spans of code, block quotes, quotation marks and echoed responses, merged and sorted."""
    blocks = _code_blocks(text)
    spans = list(blocks)
    spans += [hit.span() for hit in QUOTE_LINE.finditer(text)]
    spans += [hit.span() for hit in MARKS.finditer(text) if not _inside(blocks, hit.start())]
    spans += [span for span in _inline_code(text) if not _inside(blocks, span[0])]
    spans += _echoes(text)
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def _code_blocks(text: str) -> list[tuple[int, int]]:
    """Fenced code blocks. An unclosed block extends to the end of the text."""
    spans, opened = [], None
    for hit in FENCE.finditer(text):
        sign = hit.group(1)
        if opened is None:
            opened = (hit.start(), sign)
        elif (
            sign[0] == opened[1][0] and len(sign) >= len(opened[1]) and hit.group().strip() == sign
        ):
            spans.append((opened[0], hit.end()))
            opened = None
    if opened is not None:
        spans.append((opened[0], len(text)))
    return spans


def _inline_code(text: str) -> list[tuple[int, int]]:
    """Spans between two runs of the same number of back-ticks on one line."""
    line: list[tuple[int, int]] = []
    spans = []
    for hit in [*TICKS.finditer(text), None]:
        if hit is not None and hit.group() != "\n":
            line.append(hit.span())
            continue
        closing: dict[int, int] = {}  # length of a run -> index of the next such run
        partner = [0] * len(line)
        for i in range(len(line) - 1, -1, -1):
            length = line[i][1] - line[i][0]
            partner[i], closing[length] = closing.get(length, -1), i
        i = 0
        while i < len(line):
            if partner[i] >= 0:
                spans.append((line[i][0], line[partner[i]][1]))
                i = partner[i]
            i += 1
        line = []
    return spans


def _echoes(text: str) -> list[tuple[int, int]]:
    """Responses that the critique copied from the prompt, with their markers."""
    ends: dict[str, list[int]] = {}
    for hit in ECHO_END.finditer(text):
        ends.setdefault(hit.group(1), []).append(hit.end())
    spans = []
    for hit in ECHO.finditer(text):
        following = ends.get(hit.group(1), ())
        i = bisect.bisect_right(following, hit.end())
        if i < len(following):
            spans.append((hit.start(), following[i]))
    return spans


WEIGHT = re.compile(
    r"[(\[（]?[ \t]*(?:weight(?:ed|ing)?[ \t]*[:=]?[ \t]*)?([0-9]{1,3}(?:\.[0-9]{1,2})?)[ \t]*[%％]"
    r"[ \t]*(?:weight)?[ \t]*[)\]）]?",
    re.IGNORECASE,
)
BULLET = re.compile(r"^[ \t]{0,6}(?:[-*+•‣·]|\(?[0-9]{1,2}[.):]|[a-z][.)])[ \t]+", re.IGNORECASE)
NAME_END = re.compile(r"[:：]|[ \t][-–—][ \t]")
MAX_NAME = 120


def parse_principles(text: str) -> tuple[Principle, ...]:
    """Parses a list of principles, one a line: "1. **Accuracy** (40%): the facts are right".

    A line states a principle if it is a list item with a name before a colon or dash, or if it has
    a weight in percent. Other lines below it continue its description.
    """
    principles: list[list] = []
    for line in text.splitlines():
        principle = _principle(line)
        if principle:
            principles.append(principle)
        elif principles and line.strip() and not line.lstrip().startswith("#"):
            last = principles[-1]
            last[2] = f"{last[2]} {line.strip().lstrip('-*+• ')}".strip()
    return tuple(Principle(*fields) for fields in principles)


def _principle_ends(text: str) -> Iterator[int]:
    """End positions of the lines that state a principle with a weight."""
    position = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        principle = _principle(line.rstrip("\n"))
        if principle and principle[1] is not None:
            yield position


def _principle(line: str) -> list | None:
    """[name, weight, description] if the line states a principle, else None."""
    bullet = BULLET.match(line)
    rest = (line[bullet.end() :] if bullet else line).replace("**", "").replace("__", "").strip()
    weight = WEIGHT.search(rest[:400])
    if not rest or (bullet is None and weight is None) or len(line) - len(line.lstrip()) > 6:
        return None
    percent = None
    if weight:
        percent = float(weight.group(1))
        if percent > 100:
            return None
        glue = "" if weight.start() == 0 else " "
        rest = (
            rest[: weight.start()].rstrip(" \t-–—,;") + glue + rest[weight.end() :].lstrip(" \t,;")
        ).strip()
    end = NAME_END.search(rest)
    if end and end.start() <= MAX_NAME:
        name, description = rest[: end.start()], rest[end.end() :]
    elif len(rest) <= MAX_NAME:
        name, description = rest, ""
    else:
        name, description = "", rest
    name = name.strip(" \t*_:.-–—")
    # Without a weight, a list item needs the form "name: description".
    if not name or (percent is None and not (end and description.strip())):
        return None
    return [name, percent, description.strip(" \t:-–—")]
