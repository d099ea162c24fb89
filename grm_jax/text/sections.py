"""Splits a critique into principles, analysis and scores.

Headings are recognised in any markup: "### Principles", "**Specific Criteria:**", "2) Analysis",
"Final scores:". A section without a heading is the text between its neighbours.
Every function accepts any text and takes time linear in its length.
"""

import bisect
import dataclasses
import re
from collections.abc import Iterator, Sequence

from grm_jax.text.quotations import Span, inside, quoted_spans
from grm_jax.types import Principle

# Every repetition is bounded or has characters of its own, so that no text makes the search
# quadratic.
EMOJI = "\u2600-\u27bf\ufe0f\U0001f300-\U0001faff"
DRESS = (
    rf"(?:<(?:h[1-6]|b|strong)>[ \t]{{0,4}})?[ \t#*_=>~\-【{EMOJI}]{{0,16}}"
    r"(?:(?:(?:step|part|section)[ \t]+)?\(?(?:[0-9]{1,2}(?:\.[0-9]{1,2})?|[ivx]{1,4}|[a-d])[.):]"
    rf"[ \t]{{0,4}})?[*_ \t{EMOJI}]{{0,4}}"
)
END = rf"[*_#~=】 \t\r{EMOJI}]{{0,16}}(?::|：|</(?:h[1-6]|b|strong)>|[-–—][ \t]*$|$)"
_SCORE_WORDS = (
    r"(?:the[ \t]+)?(?:(?:final|overall|assigned|numerical|individual|resulting|evaluation|quality|"
    r"total|my)[ \t]+){0,3}(?:(?:response[ \t]+)?(?:scores?|ratings?|grades?|marks)|scoring)"
    r"(?:[ \t]+(?:summary|table|assignments?))?"
    r"(?:[ \t]+(?:for|of)[ \t]+(?:(?:each|all|both|every|the|responses)\b[ \t\w]{0,30}"
    r"|response[ \t]+[0-9]{1,2}[ \t\w,&]{0,30}\b(?:and|&)[ \t]+(?:response[ \t]+)?[0-9]{1,2}))?"
    r"(?:[ \t]+are(?:[ \t]+as[ \t]+follows)?)?"
    r"(?:[ \t]*\([^()\n]{1,40}\))?"
    r"|(?:最终|总体|综合)?(?:评分|得分|分数|打分)"
)
_CHOICE_WORDS = (
    r"|best(?:[ \t]+response)?|winner|(?:final[ \t]+)?(?:verdict|judge?ment|decision|answer|choice)"
)
HEADINGS = {
    "principles": r"(?:(?:specific|general|judging|evaluation|weighted|my)[ \t]+){0,2}"
    r"(?:principles?|criteria|criterion)"
    r"(?:[ \t]+(?:and|with|&)[ \t]+(?:their[ \t]+)?weights?)?",
    "analysis": r"(?:(?:step[- ]by[- ]step|detailed|comparative|overall)[ \t]+)?"
    r"(?:analysis|analyses|critiques?|evaluation|comparison)",
}


def _headings(score_words: str) -> re.Pattern[str]:
    names = {**HEADINGS, "scores": score_words}
    words = "|".join(f"(?P<{name}>{pattern})" for name, pattern in names.items())
    return re.compile(f"^{DRESS}(?:{words}){END}", re.IGNORECASE | re.MULTILINE)


# By the output of the template: the number of the best response is no score.
HEADING = {"scores": _headings(_SCORE_WORDS), "choice": _headings(_SCORE_WORDS + _CHOICE_WORDS)}
# Each heading has one of these words. They limit the search to the lines that contain one.
HEADING_WORDS = (
    "principle", "criteri", "analys", "critique", "evaluation", "comparison", "scor", "rating",
    "grade", "marks", "best", "winner", "verdict", "judg", "decision", "answer", "choice",
    "评分", "得分", "分数", "打分",
)  # fmt: skip
LABEL_WORDS = (
    "response", "answer", "assistant", "candidate", "option", "completion", "reply", "output",
    "model", "solution", "回答", "回复", "响应", "答案", "模型", "助手",
)  # fmt: skip
MAX_HEADING = 80
ALONE = re.compile(r"[ \t\r*_#=:：】-]*+(?:\n|\Z)")
MARKDOWN_HEADING = re.compile(r"^[ \t]{0,3}(#{1,6})(?!#)", re.MULTILINE)

# The number of a response, as prompts and critiques write it. A letter is no label of a prompt.
LABEL = (
    rf"(?:{'|'.join(LABEL_WORDS)})"
    r"[ \t]{0,4}(?:#|no\.?|number|_|-)?[ \t]{0,4}[\[(]?(?:([0-9]{1,2})|(?-i:[A-H]))"
    r"(?!\w|\.[0-9])"
)
LABELS = re.compile(LABEL, re.IGNORECASE)
# "### Response 1", "**Response 1: concise**", "#### Analysis of Response 1", "Response 1:"
_OF = r"(?:(?:(?:analysis|evaluation|critique|review|scores?|ratings?)[ \t]+(?:of|for)|for)[ \t]+)?"
_PART = r"(?:[ \t]+(?:analysis|evaluation|critique|review))?"
RESPONSE_HEADING = re.compile(
    rf"^(?:(?=[ \t]{{0,3}}(?:#|[-+*]?[ \t]{{0,3}}(?:\*\*|__))){DRESS}{_OF}{LABEL}[^\n]{{0,120}}"
    rf"|{DRESS}{_OF}{LABEL}{_PART}[*_#=:：\])】 \t\r]{{0,16}})$",
    re.IGNORECASE | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Sections:
    """The sections of one text.

    scores: span from the scores heading to the next section, None without a heading.
    quoted: sorted, disjoint spans (start, end) of quotations, code and echoes of the prompt.
    labels: headings of single responses, (start, end, number of the response, end of its part).
    """

    principles: str
    analysis: str
    scores: Span | None
    quoted: tuple[Span, ...]
    labels: tuple[tuple[int, int, int, int], ...]

    def is_quoted(self, position: int) -> bool:
        """Whether the character at `position` is quoted."""
        return inside(self.quoted, position)

    def label_at(self, position: int, since: int = 0) -> int | None:
        """The response whose heading a position is below; None without one after `since`."""
        i = bisect.bisect_right(self.labels, (position, position)) - 1
        if i < 0 or self.labels[i][0] < since or self.labels[i][3] <= position:
            return None
        return self.labels[i][2]


def find_sections(text: str, output: str = "scores") -> Sections:
    """Splits a text into its sections. Never raises.

    output: "scores" or "choice", as of a template.
    """
    quoted = quoted_spans(text)
    starts: dict[str, list[Span]] = {name: [] for name in (*HEADINGS, "scores")}
    heading = HEADING["choice" if output == "choice" else "scores"]
    for start in _lines_with(HEADING_WORDS, text):
        hit = heading.match(text, start)
        if hit and hit.end() - start <= MAX_HEADING and not inside(quoted, start):
            starts[hit.lastgroup or ""].append(hit.span())
    starts["analysis"] = _without_items(text, starts["analysis"])
    labels = _response_headings(text, quoted)
    scores = _scores_section(text, starts, labels)
    limit = scores[0] if scores is not None else len(text)
    analysis = next((span for span in starts["analysis"] if span[0] < limit), None)
    principles = next(
        (span for span in starts["principles"] if span[0] < (analysis or (limit,))[0]), None
    )
    start = principles[1] if principles else 0
    if analysis is None:
        # Without a heading, the analysis starts after the last line that states a principle.
        cut = start + _principles_end(text[start:limit])
        analysis = (cut, cut)
    principles_text, analysis_text = text[start : analysis[0]], text[analysis[1] : limit]
    return Sections(principles_text.strip(), analysis_text.strip(), scores, quoted, labels)


def _lines_with(words: Sequence[str], text: str) -> Iterator[int]:
    """Start positions of the lines with a word within their first MAX_HEADING characters."""
    lowered = text.lower()
    words = [word for word in words if word in lowered]
    pattern = re.compile("|".join(words), re.IGNORECASE)
    position = 0
    while words and (hit := pattern.search(text, position)):
        start = text.rfind("\n", max(0, hit.start() - MAX_HEADING), hit.start()) + 1
        if start or hit.start() < MAX_HEADING:
            yield start
        position = text.find("\n", hit.end())
        if position < 0:
            return


def _without_items(text: str, headings: list[Span]) -> list[Span]:
    """The headings that are no list items such as "2. **Analysis**: its depth (30%)"."""
    kept = []
    for start, end in headings:
        stop = text.find("\n", end)
        line = HASHES.sub("", text[start : stop if stop >= 0 else len(text)])
        if ALONE.match(text, end) or not (BULLET.match(line) and _last_weight(line)):
            kept.append((start, end))
    return kept


def _scores_section(
    text: str, starts: dict[str, list[Span]], labels: Sequence[tuple[int, int, int, int]]
) -> Span | None:
    """The span of the section that decides.

    That is the one of the last heading on a line of its own. "Scores: ..." starts a section only
    without such a heading. Where each response has its own "Score:", they are one section.
    """
    scores = starts["scores"]
    if not scores:
        return None
    events = sorted([(*span, False) for span in scores] + [(*x[:2], True) for x in labels])
    i = max(i for i, event in enumerate(events) if not event[2])
    first = i
    while first >= 1 and not events[first][2] and events[first - 1][2]:
        first -= 2
    if i - first >= 4:
        start, end = events[first + 1][:2]
    else:
        alone = [span for span in scores if _level(text, span) or ALONE.match(text, span[1])]
        start, end = (alone or scores)[-1]
    level = _level(text, (start, end))
    own = {span[0] for span in scores} | {label[0] for label in labels}
    stops = [s for name in HEADINGS for s, e in starts[name] if ALONE.match(text, e)]
    if level:
        headings = MARKDOWN_HEADING.finditer(text, end)
        stops += [hit.start() for hit in headings if len(hit.group(1)) <= level]
    return start, min((s for s in stops if s > start and s not in own), default=len(text))


def _level(text: str, span: Span) -> int:
    """The number of # before a heading, 0 for other headings."""
    hit = MARKDOWN_HEADING.match(text, span[0])
    return len(hit.group(1)) if hit else 0


def first_response_heading(text: str) -> int:
    """The start of the first heading with the number of a response, else the end of the text."""
    hits = (RESPONSE_HEADING.match(text, start) for start in _lines_with(LABEL_WORDS, text))
    return next((hit.start() for hit in hits if hit and (hit[1] or hit[2])), len(text))


def _response_headings(text: str, quoted: Sequence[Span]) -> tuple[tuple[int, int, int, int], ...]:
    """Headings of single responses; the part of one ends at the next heading not below it."""
    headings = []
    for start in _lines_with(LABEL_WORDS, text):
        hit = RESPONSE_HEADING.match(text, start)
        if hit and not inside(quoted, start) and len(LABELS.findall(hit.group())) == 1:
            headings.append((*hit.span(), int(hit.group(1) or hit.group(2) or 0)))
    if not headings:
        return ()
    marks = [(hit.start(), len(hit.group(1))) for hit in MARKDOWN_HEADING.finditer(text)]
    above = {level: [s for s, depth in marks if depth <= level] for level in range(1, 7)}
    labels = []
    for i, (start, end, label) in enumerate(headings):
        stops = above[_level(text, (start, end)) or 6]
        after = bisect.bisect_right(stops, start)
        nearest = [*stops[after : after + 1], *(x[0] for x in headings[i + 1 : i + 2]), len(text)]
        labels.append((start, end, label, min(nearest)))
    return tuple(labels)


_WEIGHT_WORD = r"(?:weight(?:ed|ing|age)?|权重)[ \t]*[:：=]?[ \t]*"
_NUMBER = r"([0-9]{1,3}(?:\.[0-9]{1,6})?)[ \t]*"
# "(40%)", "weight: 40%", or in brackets "(weight: 40)".
WEIGHT = re.compile(
    rf"[(\[（]?[ \t]*(?:{_WEIGHT_WORD})?(?<![0-9.]){_NUMBER}[%％][ \t]*(?:weight)?[ \t]*[)\]）]?"
    rf"|[(\[（][ \t]*{_WEIGHT_WORD}{_NUMBER}(?:/[ \t]*100[ \t]*)?[)\]）]",
    re.IGNORECASE,
)
PERCENT = re.compile("[%％]")
MAY_HAVE_WEIGHT = re.compile("[%％]|weight|权重", re.IGNORECASE)
BULLET = re.compile(
    r"^[ \t]{0,6}(?:[-*+•‣·]|[a-z][.)]|(?:\*\*|__)?(?:\(|principle )?[0-9]{1,2}[.):])[ \t]+",
    re.IGNORECASE,
)
HASHES = re.compile(r"^[ \t]{0,3}#{1,6}(?=[ \t])[ \t]*")
NAME_END = re.compile(r"(?<![0-9]):|:(?![0-9])|：|[ \t][-–—][ \t]")  # not the colon of 16:9
MAX_NAME = 120
MAX_PRINCIPLES = 200


def parse_principles(text: str) -> tuple[Principle, ...]:
    """Parses a list of principles, one a line: "1. **Accuracy** (40%): the facts are right".

    A line states a principle if it is a list item with a name before a colon or dash, or if it has
    a weight: "40%", or "(weight: 40)". Other lines below it continue its description.
    """
    principles: list[list] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        principle = _principle(line)
        if principle:
            principles.append(principle)
            if len(principles) == MAX_PRINCIPLES:
                break
        elif principles and not line.lstrip().startswith("#"):
            principles[-1].append(line.strip().lstrip("-*+• "))
    return tuple(
        Principle(name, weight, " ".join(filter(None, description)))
        for name, weight, *description in principles
    )


def _principles_end(text: str) -> int:
    """The end position of the last line that states a principle with a weight, or 0."""
    end = len(text)
    for line in reversed(text.splitlines(keepends=True)):
        if MAY_HAVE_WEIGHT.search(line):
            principle = _principle(line.rstrip("\n"))
            if principle and principle[1] is not None:
                return end
        end -= len(line)
    return 0


def _weight(item: str) -> re.Match[str] | None:
    """The weight of a list item: a percentage in or after its name, or at its end, or any."""
    every, end = list(WEIGHT.finditer(item[:400])), NAME_END.search(item)
    text = len(item) - len(item[end.end() :].lstrip()) if end else -1  # start of the description
    named = [hit for hit in every if hit.start() <= text]
    return next(iter([*named, *_last_weight(item), *every]), None)


def _last_weight(item: str) -> list[re.Match[str]]:
    """The weight in brackets at the end of a list item, if any."""
    hits = WEIGHT.finditer(item, max(0, len(item) - 40))
    return [x for x in hits if x[0][0] in "([（" and not item[x.end() :].strip(" \t.*_")]


def _principle(line: str) -> list | None:
    """[name, weight, description] if the line states a principle, else None."""
    heading = HASHES.match(line)
    line = line[heading.end() :] if heading else line
    bullet = BULLET.match(line)
    # "(weight 40)" may stand in a sentence: of other lines, only headings and bold names have it.
    may_have_weight = MAY_HAVE_WEIGHT if heading or line.lstrip().startswith("**") else PERCENT
    if bullet is None and not may_have_weight.search(line):
        return None
    rest = (line[bullet.end() :] if bullet else line).replace("**", "").replace("__", "").strip()
    weight = _weight(rest)
    if not rest or (bullet is None and weight is None) or len(line) - len(line.lstrip()) > 6:
        return None
    percent, start = None, 0
    if weight:
        percent = float(weight[1] or weight[2])
        if weight[2] and percent < 1:
            percent = round(100 * percent, 6)  # a share: "(weight: 0.4)"
        if percent > 100:
            return None
        before, after = rest[: weight.start()].rstrip(" \t-–—,;"), rest[weight.end() :]
        glue = "" if weight.start() == 0 else " "
        rest = (before + glue + after.lstrip(" \t,;")).strip()
        if weight[0][0] in "([（" and after.lstrip(" \t").startswith((":", "：")):
            start = len(before)  # "Ratio: 16 to 9 (40%): the format"
    end = NAME_END.search(rest, start)
    # A long item states its weight in brackets, or has a number.
    stated = weight[0][0] in "([（" if weight else bullet and bullet[0].strip() not in "-*+•‣·"
    if end and (end.start() <= MAX_NAME or (bullet and stated)):
        name, description = rest[: end.start()], rest[end.end() :]
    elif len(rest) <= MAX_NAME or (bullet and stated):
        name, description = rest, ""
    else:
        name, description = "", rest
    name = name.strip(" \t*_:.-–—")
    # Without a weight, a list item needs the form "name: description"; a heading is none.
    if not name or (percent is None and (heading or not (end and description.strip()))):
        return None
    return [name, percent, description.strip(" \t:-–—")]
