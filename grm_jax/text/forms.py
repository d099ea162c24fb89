r"""Finds the forms in which critiques state scores: boxes, and lines such as "Response 1: 8/10".

No form is guessed: what looks like a score and is not parsed is returned as such, without values.
Every function accepts any text and takes time linear in its length.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from grm_jax.text.quotations import Span, end_lines_at_closing_tags
from grm_jax.text.sections import LABEL, LABELS, Sections, first_response_heading

NUMBER = r"[+-]?[0-9]{1,6}(?:\.[0-9]{1,6})?"
# A box may have two levels of braces in it.
BOX = re.compile(
    r"\\{1,2}boxed\s{0,8}+\{((?:[^{}\\]|\\.|\{(?:[^{}\\]|\\.|\{[^{}]*+\})*+\})*+)\}", re.DOTALL
)
OPENING = re.compile(r"\\{1,2}boxed\s{0,8}+\{")
PLAIN = re.compile(
    rf"\\{{1,2}}boxed[ \t]*+\{{[ \t\n]*+{NUMBER}(?:[ \t\n]*+,[ \t\n]*+{NUMBER})*+[ \t\n]*+\}}"
)
# Full-width signs and digits, one character each, so that positions stay.
NARROW = {0xFEE0 + ord(sign): sign for sign in "0123456789,:;/.()[]%=+-#"}
NARROW |= {ord("\u3000"): " ", ord("\u00a0"): " ", ord("、"): ",", ord("،"): ","}
NARROW |= {ord("⁄"): "/", ord("∕"): "/"}
FLAT = NARROW | {ord("*"): " ", ord("$"): " "}
FRACTION = re.compile(
    rf"\\{{1,2}}[dt]?frac\s{{0,4}}\{{\s{{0,4}}({NUMBER})\s{{0,4}}\}}"
    r"\s{0,4}\{\s{0,4}([0-9]{1,4})\s{0,4}\}"
)
# LaTeX around a number becomes a space, so that no two numbers become one.
LATEX = re.compile(
    r"\\{1,2}(?:(?:text|math)(?:bf|it|rm|tt|sf|normal|up|md)?|boldsymbol|bm|bf|rm|mbox|hbox|emph"
    r"|underline|displaystyle|left|right|[Ll]arge|LARGE|huge|Huge|q?quad)(?![a-zA-Z])"
    r"|\\{1,2}[,;:! {}]|[{}$~\u00ad\u200b-\u200f\u2060-\u2064\ufeff]|\*\*|__"
)
TITLE = re.compile(r"\A(?:(?:final|overall) )?(?:scores?|ratings?) ?[:=] ?", re.IGNORECASE)
SEPARATOR = re.compile(r" ?(?:[,;] ?(?:and\b|&)?|\band\b|&) ?", re.IGNORECASE)
SCALE = r"[ \t]{0,4}\(?[ \t]{0,4}(?:/|out[ \t]{1,4}of)[ \t]{0,4}([0-9]{1,4})\b[ \t]{0,4}\)?"
ITEM = re.compile(
    rf"(?:(?:{LABEL}(?: (?:score|rating))?|(?:score|[rs])?[ _#]{{0,3}}([0-9]{{1,2}}))[\])]?"
    rf" ?[:=] ?)?({NUMBER})(?:{SCALE})?",
    re.IGNORECASE,
)
AFTER_BOX = re.compile(
    r"[ \t$\\)\]}*_]{0,8}(?:(?:/|／|out[ \t]{1,4}of)[ \t$\\({]{0,4}([0-9]{1,4})|%)"
)

# "Response 1: ", "2. **Score for Response 2** = ", "| Response 1 | "
_BEFORE = (
    r"[ \t\r>#|,;./&()\[\]+–—•:_-]{0,24}+(?:[0-9]{1,2}[.)][ \t]{0,4})?(?:and[ \t]{1,4})?"
    r"(?:(?:the[ \t]{1,4})?(?:(?:final|overall)[ \t]{1,4})?(?:scores?|ratings?|grades?)[ \t]{0,4}"
    r"(?:(?:for|of)[ \t]{1,4}|[:=-]+[ \t]{0,4}))?"
)
_GLUE = (
    r"(?:'s|’s)?[\])]?((?:[ \t:=–—>→|$\\(\[_-]|(?:final|overall|score|rating|grade|is|gets|receives"
    r"|earns)\b)*+)"
)
BOX_LABEL = re.compile(rf"{_BEFORE}{LABEL}{_GLUE}", re.IGNORECASE)
BEFORE = re.compile(rf"(?:^|[,;|&]){_BEFORE}$", re.IGNORECASE)
_LABEL_LIST = rf"{LABEL}(?:(?:[ ,;&/|]|and){{1,8}}{LABEL}){{1,20}}"
LABEL_LIST = re.compile(rf"{_LABEL_LIST}{_GLUE}$", re.IGNORECASE)
# "(Response 2, Response 1)" or "for Response 2 and Response 1 respectively", and no more words.
LABEL_LIST_AFTER = re.compile(
    rf"[ \t$\\)\]}}*_(—–-]{{0,8}}(?:(?:for|of)[ \t]{{1,4}})?({_LABEL_LIST})"
    r"[ \t,)\]*_]{0,8}(?:respectively|[.)]|$)",
    re.IGNORECASE,
)
# A line that is nothing but a list, such as "### Scores for Response 2 and Response 1".
LABEL_LIST_LINE = re.compile(
    r"[ \t\r>#|_(•–—-]{0,16}(?:(?:the|final|overall|my)[ \t]{1,4}){0,2}"
    rf"(?:(?:scores?|ratings?|grades?)[ \t]{{0,4}}(?:for|of|:)?[ \t(]{{0,8}})?({_LABEL_LIST})"
    r"[ \t\r)\]:=_]{0,16}",
    re.IGNORECASE,
)
LIKE_A_SCORE = re.compile(rf"{LABEL}{_GLUE}(?=[+-]?[0-9])", re.IGNORECASE)
SCORE = re.compile(
    rf"(?<![–—+-])({NUMBER})(?:{SCALE})?(?:[ \t]{{0,2}}(?:points?|pts\b|分))?"
    r"(?=[ \t]{0,8}(?:$|[\r.,;:!)\]|(–—-]|and\b))(?![ \t.,;:!)\]|(–—>-]{0,8}[0-9/%])",
    re.IGNORECASE | re.MULTILINE,
)
LISTED = re.compile(r"[\s$*_\\()]{0,8}(?:[,;&]|and\b)[\s$*_\\()]{0,8}", re.IGNORECASE)
MAX_FORMS = 400
MAX_PARSED = 100  # lines of a prompt's text that are parsed to find out whether they state scores
UNEQUAL = -1  # the scale of values with different denominators
NUMBERS = re.compile(rf"[0-9](?!\w){_GLUE}(?=[+-]?[0-9])", re.IGNORECASE)  # in LIKE_A_SCORE
FIRST = re.compile(rf"[\[( ]*+({NUMBER})")
OVER = re.compile("/|of|frac", re.IGNORECASE)  # in every value with a denominator
SCORING = re.compile(
    r"scor|rat(?:e|ing)|grade|give|award|assign|deserve|earn|get|分", re.IGNORECASE
)
STATES = re.compile(r"[:=|–—>→-]|is|gets|receives|earns", re.IGNORECASE)
VALUE_LINE = re.compile(
    r"^[ \t>#|+–—•-]{0,16}(?:(?:(?:final|overall|total)[ \t]{1,4})?(?:scores?|ratings?|grades?)"
    r"[ \t]{0,4}(?:\([^()\n]{1,40}\))?[ \t]{0,4}[:=]?[ \t]{0,4})?([0-9\[(][^\n]{0,200})$",
    re.IGNORECASE | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Form:
    r"""A box, or a line of scores: its span, its values, and its context.

    values: None if the content is no list of scores.
    scale: the denominator of the values ("8/10"), None without one.
    labels: the number of the response of each value, 0 for an ambiguous one; None without labels.
    plain: a box of ASCII numbers between commas, the form that templates prescribe.
    """

    start: int
    end: int
    values: tuple[float, ...] | None
    scale: int | None = None
    labels: tuple[int, ...] | None = None
    plain: bool = False
    quoted: bool = False
    content: str = ""

    def in_order(self, n: int) -> tuple[float, ...] | None:
        """Returns n values in the order of the responses; None if count or labels do not fit."""
        if self.values is None or len(self.values) != n:
            return None
        if self.labels is None:
            return self.values
        by_label = dict(zip(self.labels, self.values))
        return tuple(by_label[i + 1] for i in range(n)) if _complete(self.labels, n) else None


def _complete(labels: Sequence[int], n: int) -> bool:
    return sorted(labels) == list(range(1, n + 1))


def find_boxes(text: str, sections: Sections, span: Span) -> list[Form]:
    """Returns the last MAX_FORMS boxes of a span in order, quoted ones included.

    Of nested boxes the inner one is returned. An opening without an end is a box without values.
    """
    hits: list[re.Match[str]] = []
    position = span[0]
    while hit := BOX.search(text, position, span[1]):
        nested = "boxed" in hit.group(1) and OPENING.search(hit.group(1))
        position = hit.start(1) if nested else hit.end()
        hits += [] if nested else [hit]
    boxes = [_box(text, hit, sections) for hit in hits[-MAX_FORMS:]]
    opening = text.rfind("boxed", hits[-1].end() if hits else span[0], span[1])
    if opening > 0 and (hit := OPENING.match(text, opening - 1)):
        content = text[hit.end() : hit.end() + 40]
        boxes.append(
            Form(*hit.span(), None, quoted=sections.is_quoted(opening - 1), content=content)
        )
    return boxes


def _box(text: str, hit: re.Match[str], sections: Sections) -> Form:
    form = _form(hit.group(1), *hit.span(), text[hit.end() : hit.end() + 24])
    plain = PLAIN.fullmatch(hit.group()) is not None
    return dataclasses.replace(form, plain=plain, quoted=sections.is_quoted(hit.start()))


def _form(content: str, start: int, end: int, after: str = "") -> Form:
    """Parses a list of scores, with or without labels and denominators."""
    text = LATEX.sub(" ", FRACTION.sub(r"\1/\2", content.translate(NARROW)))
    text = TITLE.sub("", _one_line(text))
    for _ in range(2):
        if text[:1] + text[-1:] in ("[]", "()"):
            text = text[1:-1].strip()
    failed = Form(start, end, None, content=content)
    if label := LABELS.fullmatch(text):
        return dataclasses.replace(failed, labels=(int(label.group(1) or 0),))
    items = [ITEM.fullmatch(item) for item in SEPARATOR.split(text)]
    parsed = [item for item in items if item is not None]
    scales = {item.group(4) for item in parsed}
    labelled = {item.start(3) > 0 for item in parsed}
    if len(parsed) < len(items) or len(scales) > 1 or len(labelled) > 1:
        return failed
    scale = int(next(iter(scales)) or 0) or None
    if scale is None and (hit := AFTER_BOX.match(after)):
        scale = int(hit.group(1) or 100)
    labels = tuple(int(item.group(1) or item.group(2) or 0) for item in parsed)
    values = tuple(float(item.group(3)) for item in parsed)
    return Form(start, end, values, scale, labels if labelled == {True} else None, content=content)


def _one_line(text: str) -> str:
    """Joins lines by commas, unless they have some."""
    joined = ""
    for line in filter(None, (" ".join(line.split()) for line in text.split("\n"))):
        comma = joined and joined[-1] not in ",;[(" and line[0] not in ",;])"
        joined += (", " if comma else " ") + line
    return joined.strip()


def join_boxes(text: str, boxes: Sequence[Form], sections: Sections, since: int) -> Form | None:
    """Joins boxes of one value each: "Response 1: \\boxed{3}", or a box below each heading.

    Args:
      boxes: unquoted boxes.
      since: headings before this position do not label a box.

    Returns:
      One form with all values and labels; without labels if the boxes are a list without any. None
      if the boxes are not of one value each, or no list.
    """
    if not boxes or any(box.values is None or len(box.values) != 1 for box in boxes):
        return None
    labels, end = [], 0
    for i, box in enumerate(boxes):
        next_start = boxes[i + 1].start if i + 1 < len(boxes) else len(text)
        labels.append(
            box.labels[0]
            if box.labels is not None
            else _label(text, end, box, next_start, sections, since)
        )
        end = box.end
    if set(labels) == {None}:
        gaps = [text[a.end : b.start] for a, b in zip(boxes, boxes[1:])]
        if not all(map(LISTED.fullmatch, gaps)):
            return None
    first = next((i for i, label in enumerate(labels) if label is not None), 0)
    labels, boxes = labels[first:], boxes[first:]  # the boxes before may hold anything
    scales = {box.scale for box in boxes if box.scale is not None}
    values = tuple(box.values[0] for box in boxes if box.values)
    known = None if set(labels) == {None} else tuple(label or 0 for label in labels)
    scale = max(scales, default=None) if len(scales) < 2 else UNEQUAL
    return Form(boxes[0].start, boxes[-1].end, values, scale, known)


def is_labelled_in_another_order(text: str, box: Form) -> bool:
    """Whether as many labels stand beside several values without labels, in another order.

    On their line, such as "Response 2, Response 1: ", or as the whole line above.
    """
    if box.labels is not None or len(set(box.values or ())) < 2:
        return False
    *above, before = text[max(0, box.start - 300) : box.start].translate(FLAT).split("\n")
    after = text[box.end : box.end + 300].translate(FLAT).partition("\n")[0]
    places = [LABEL_LIST.search(before[-200:]), LABEL_LIST_AFTER.match(after[:200])]
    if not re.search(r"\w", before):
        line = next((line for line in reversed(above) if line.strip()), "")
        places.append(LABEL_LIST_LINE.fullmatch(line))
    for listed in filter(None, places):
        hits = LABELS.finditer(listed[0])
        labels = [int(hit[1]) if hit[1] else ord(hit[0][-1]) - 64 for hit in hits]
        if len(labels) == len(box.values or ()) and labels != sorted(labels):
            return True
    return False


def label_before(text: str, end: int, box: Form) -> int | None:
    """The response that the line of a box names before it. 0 if ambiguous, None without one.

    end: of the box before; its line may be the same.
    """
    before = _line_before(text, end, box)
    if not LABELS.search(before):
        return None
    hit = BOX_LABEL.fullmatch(before)
    one = hit is not None and len(LABELS.findall(before)) == 1
    return int(hit.group(1) or 0) if hit is not None and one else 0


def _line_before(text: str, end: int, box: Form) -> str:
    start = max(end, box.start - 200)
    start = max(start, text.rfind("\n", start, box.start) + 1)
    return text[start : box.start].translate(FLAT)


def _label(
    text: str, end: int, box: Form, next_start: int, sections: Sections, since: int
) -> int | None:
    """The response of a box: on its line, else by the heading above. 0 if ambiguous."""
    if (named := label_before(text, end, box)) is not None:
        return named
    before = _line_before(text, end, box)
    label = sections.label_at(box.start, since)
    if sections.scores is None and re.search(r"\w", before) and not SCORING.search(before):
        label = label and 0  # "It computes 7" below a heading states no score
    after = text[box.end : min(next_start, box.end + 120)].partition("\n")[0]
    others = [other for other in LABELS.findall(after.translate(FLAT)) if other != str(label)]
    return 0 if label is not None and others else label


def find_lines(text: str, span: Span, sections: Sections) -> Form | None:
    """Joins lines of a scores section: "Response 1: 8/10", or "8/10" below each heading.

    A line without a label needs a denominator. Returns None without lines that state a score.
    """
    flat = text[: span[1]].translate(FLAT)
    forms: list[Form] = []
    end = span[0]
    for hit in LIKE_A_SCORE.finditer(flat, span[0]):
        if not STATES.search(hit.group(2)) or sections.is_quoted(hit.start()):
            continue
        form = _score_line(flat, hit, end)
        end = form.end
        forms.append(form)
        if form.values is None or len(forms) > MAX_FORMS:
            return dataclasses.replace(form, values=None)
    for count, hit in enumerate(VALUE_LINE.finditer(flat, span[0])):
        if count > MAX_FORMS:
            return Form(*hit.span(), None)
        form = _form(hit.group(1).strip(" .\r"), *hit.span())
        label = sections.label_at(hit.start(), span[0])
        if form.values is None or sections.is_quoted(hit.start(1)):
            continue
        if form.labels is not None:  # "1: 8" may number a criterion
            return dataclasses.replace(form, values=None)
        if label is not None and len(form.values) == 1:
            forms.append(dataclasses.replace(form, labels=(label,)))
        elif form.scale is not None:
            forms.append(form)
    if len(forms) == 1:
        return forms[0]
    return join_boxes(text, sorted(forms, key=lambda form: form.start), sections, len(text))


def score_numbers(text: str, low: float, high: float) -> list[int]:
    """Returns where the numbers start that `find_lines` takes as scores in some lines of a text.

    Any run of whole lines counts, with or without a heading above it, also after a closing tag of
    thinking. After MAX_PARSED lines, every number on the scale that looks like a score counts.
    """
    text = end_lines_at_closing_tags(text)
    flat = text.translate(FLAT)
    stated, late = list[tuple[int, Form]](), list[int]()
    end = count = 0
    for hit in _like_scores(flat):
        if len(stated) < MAX_PARSED:
            stated.append((hit.end(), _score_line(flat, hit, end)))
            end = stated[-1][1].end
        else:
            late.append(hit.end())
    below = None
    for hit in VALUE_LINE.finditer(flat):
        content = hit.group(1).strip(" .\r")
        if not OVER.search(content):
            if below is None:
                below = first_response_heading(text)
            if hit.start() < below:
                continue
        count += 1
        if count > MAX_PARSED:
            late.append(hit.start(1))
            continue
        form = _form(content, *hit.span())
        if form.labels is None and (form.scale or len(form.values or ()) == 1):
            stated.append((hit.start(1), form))
    numbers = {
        number
        for number, form in stated
        if form.values and all(low <= value <= high for value in form.values)
        if form.scale in (None, high)
    }
    firsts = ((number, FIRST.match(flat, number)) for number in late)
    numbers |= {number for number, first in firsts if not first or low <= float(first[1]) <= high}
    return sorted(numbers)


def _like_scores(flat: str) -> Iterator[re.Match[str]]:
    """Hits of LIKE_A_SCORE with a number as label, in lines that may have one."""
    position = 0
    while hit := NUMBERS.search(flat, position):
        start = flat.rfind("\n", position, hit.start()) + 1
        position = flat.find("\n", hit.end())
        position = len(flat) if position < 0 else position
        for like in LIKE_A_SCORE.finditer(flat, start, position):
            if like.group(1) and STATES.search(like.group(2)):
                yield like


def _score_line(flat: str, hit: re.Match[str], end: int) -> Form:
    """The form of "Response 1: 8/10 ..."; without values if it can have another meaning."""
    start = max(end, hit.start() - 80)
    start = max(start, flat.rfind("\n", start, hit.start()) + 1)
    failed = Form(*hit.span(), None, content=hit.group())
    score = SCORE.match(flat, hit.end(2))
    if score is None or not BEFORE.search(flat[start : hit.start()]):
        return failed
    value, scale = (float(score[1]),), int(score[2] or 0) or None
    return Form(hit.start(), score.end(), value, scale, (int(hit.group(1) or 0),))
