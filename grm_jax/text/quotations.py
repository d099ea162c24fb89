"""Finds what a critique quotes, and where its thinking ends.

A box in a quotation is not the judge's own, and a box in the thinking is not yet its verdict.
Every function accepts any text and takes time linear in its length.
"""

import bisect
import collections
import re
from collections.abc import Sequence

Span = tuple[int, int]

FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
WRAPPER = re.compile(r"\s*+(?:`{3,}|~{3,})(?:markdown|md)[ \t\r]*+\n", re.IGNORECASE)
# Lines that Markdown takes as code: indented, below a blank line.
INDENTED = re.compile(r"^[ \t]*+\n((?:(?: {4}|\t)[^\n]*+(?:\n|\Z))++)", re.MULTILINE)
LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\(?[0-9]{1,2}[.):])[ \t]|[ \t]{4}")
QUOTE_LINES = re.compile(
    r"(?:^[ \t]{0,8}(?:(?:[-*+]|[0-9]{1,2}[.)])[ \t]{1,4})?>[^\n]*+(?:\n|\Z))++", re.MULTILINE
)
# A quotation ends with its line or its paragraph, so that one mark does not swallow the text.
NOT = r"[^{}\n]"
PARAGRAPH = r"(?:[^\n{}]|\n(?![ \t]*+(?:\n|\Z)))*+"
PAIRS = (
    ("“„〝", "”“〞〟"), ("«", "»"), ("»", "«"), ("‹", "›"), ("›", "‹"), ("「", "」"), ("『", "』"),
    ("｢", "｣"), ("《", "》"), ("〈", "〉"),
)  # fmt: skip
MARKS = re.compile(
    "|".join(
        [
            # After a digit and before spacing it is an inch sign, and opens nothing.
            *(rf"(?:(?<![0-9]){a}|{a}(?![\s.,;:)])){NOT.format(a)}*+{a}" for a in '"＂″'),
            *(f"[{a}]{PARAGRAPH.format(a + b)}[{b}]" for a, b in PAIRS),
            # An apostrophe has a letter on both sides.
            r"[‘‛‚](?:[^‘’‛‚\n]|’(?=\w))*+[’‘]",
            r"(?<!\w)'(?:[^'\n]|(?<=\w)'(?=\w))*+'(?!\w)",
            r"``[^`'\n]*+''|`[^`´\n]*+´",
            r"\\verb\*?(?:\|[^|\n]*+\||\+[^+\n]*+\+|![^!\n]*+!)",
        ]
    )
)
LONG_MARKS = re.compile(
    r'(?:^|(?<=[\s(\[:]))"(?=[^\s"])' + PARAGRAPH.format('"') + r'"(?<=\S")(?=[\s.,;:!?)\]]|\Z)',
    re.MULTILINE,
)
TICKS = re.compile(r"`+|\n[ \t]*+(?=\n)")
_NAME = (
    r"((?:response|answer|assistant|candidate|model)\s++(?:[0-9]{1,2}|[a-h])(?:['’]s\s++\w{1,16})?)"
    r"\s*+\]"
)
PROMPT_MARKERS = (
    re.compile(rf"\[\s*+(?:the\s++(?:begin(?:ning)?|start)\s++of\s++)?-?{_NAME}", re.IGNORECASE),
    re.compile(rf"\[\s*+(?:/|the\s++end\s++of\s++)-?\s*+{_NAME}", re.IGNORECASE),
)
_ELEMENT = (
    r"(code|pre|blockquote|q|samp|cite|response[\w-]{0,8}"
    r"|(?:answer|assistant|candidate|output)[_-]?(?:[0-9]{1,2}|[a-h]))"
)
ENVIRONMENT = r"\{(verbatim|lstlisting|minted|quotation|quote)\*?\}"
LATEX_TAGS = (re.compile(r"\\begin" + ENVIRONMENT), re.compile(r"\\end" + ENVIRONMENT))
HTML_TAGS = (
    re.compile(rf"<{_ELEMENT}(?:\s[^<>]{{0,80}})?>|<!(--)", re.IGNORECASE),
    re.compile(rf"</{_ELEMENT}\s{{0,4}}>|(--)>", re.IGNORECASE),
)


def inside(spans: Sequence[Span], position: int) -> bool:
    """Returns whether one of the sorted, disjoint spans contains a position."""
    return containing(spans, position) is not None


def containing(spans: Sequence[Span], position: int) -> Span | None:
    """Returns the span that contains a position; None without one."""
    i = bisect.bisect_right(spans, (position, float("inf"))) - 1
    return spans[i] if i >= 0 and spans[i][0] <= position < spans[i][1] else None


def quoted_spans(text: str) -> tuple[Span, ...]:
    """Returns spans of code, quotations and echoed responses, merged and sorted."""
    return _quoted(text, _code_blocks(text))


def _quoted(text: str, blocks: list[Span]) -> tuple[Span, ...]:
    spans = [hit.span() for hit in QUOTE_LINES.finditer(text)]
    marks = [hit.span() for hit in MARKS.finditer(text)]
    spans += _outside(blocks, [(start, end) for start, end in marks if end - start > 2])
    spans += [hit.span() for hit in LONG_MARKS.finditer(text) if "\n" in hit.group()]
    spans += _between(text, *PROMPT_MARKERS) + _between(text, *HTML_TAGS)
    spans += _between(text, *LATEX_TAGS)
    first = len(text) - len(text.lstrip())
    if text.startswith("<response>", first):  # around the whole verdict, as Granite writes it
        spans = [span for span in spans if span[0] != first]
    return _merged([*_code(text, blocks), *spans])


def code_spans(text: str) -> tuple[Span, ...]:
    """Returns spans of code blocks and inline code, merged and sorted."""
    return _merged(_code(text, _code_blocks(text)))


def _code(text: str, blocks: list[Span]) -> list[Span]:
    return [*blocks, *_outside(blocks, _inline_code(text)), *_indented_boxes(text)]


def _outside(blocks: list[Span], spans: list[Span]) -> list[Span]:
    return [span for span in spans if not inside(blocks, span[0])] if blocks else spans


def _merged(spans: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def _code_blocks(text: str) -> list[Span]:
    """Fenced code blocks. With an unclosed one, everything after the first fence is code.

    Otherwise a fence without a partner would turn code and text round.
    """
    closed, opened = _fences(text)
    return closed if opened is None else [(closed[0][0] if closed else opened, len(text))]


def _fences(text: str) -> tuple[list[Span], int | None]:
    """Closed code blocks, and the start of an unclosed one."""
    spans, opened = [], None
    fences = list(FENCE.finditer(text))
    if len(fences) > 1 and WRAPPER.match(text) and not text[fences[-1].end() :].strip():
        fences = fences[1:-1]  # around the whole verdict
    for hit in fences:
        sign = hit.group(1)
        if opened is None:
            opened = (hit.start(), sign)
        elif (
            sign[0] == opened[1][0] and len(sign) >= len(opened[1]) and hit.group().strip() == sign
        ):
            spans.append((opened[0], hit.end()))
            opened = None
    return spans, opened and opened[0]


def _indented_boxes(text: str) -> list[Span]:
    """Indented code blocks with a box. The paragraphs of a list item are no code."""
    spans = []
    for hit in INDENTED.finditer(text) if "boxed" in text else ():
        before = text[max(0, hit.start() - 200) : hit.start()].rstrip().rpartition("\n")[2]
        if "boxed" in hit.group(1) and not LIST_ITEM.match(before):
            spans.append(hit.span(1))
    return spans


def _inline_code(text: str) -> list[Span]:
    """Spans between two runs of the same number of back-ticks in one paragraph."""
    line: list[Span] = []
    spans = []
    for hit in [*TICKS.finditer(text), None] if "`" in text else ():
        if hit is not None and hit.group()[0] == "`":
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


def _between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> list[Span]:
    """Spans from each opening marker to the next closing one of the same name."""
    ends: dict[str, list[int]] = {}
    for hit in closing.finditer(text):
        ends.setdefault(hit.group(hit.lastindex or 0).lower(), []).append(hit.end())
    spans = []
    for hit in opening.finditer(text) if ends else ():
        following = ends.get(hit.group(hit.lastindex or 0).lower(), ())
        i = bisect.bisect_right(following, hit.end())
        if i < len(following):
            spans.append((hit.start(), following[i]))
    return spans


# ---------------------------------------------------------------- thinking

# Names of tags, whole or between the signs : _ . -
_STEM = re.compile(
    r"(?:^|[:_.-])(?:\w*think\w*|\w*thoughts?|reason(?:ing)?|(?:self)?reflect(?:ion|ing)?"
    r"|scratch\w*|plan(?:ning)?|drafts?|\w*monologue|deliberat\w+|rationale|ponder\w*|contemplat\w+"
    r"|brainstorm\w*|cot)(?:$|[:_.-])",
    re.IGNORECASE,
)
THINKING = re.compile(
    # The channels of gpt-oss, with and without their special tokens, those of Gemma; Ollama.
    r"(?P<close><\|channel\|>[ ]?final|<channel\|>|<unused95>|(?-i:assistantfinal)"
    r"|\.\.\.done thinking\.)"
    r"|(?P<open><\|channel\|?>[ ]?(?:analysis|commentary|thought)|<unused94>"
    r"|(?-i:\A(?:analysis(?=[A-Z])|Thinking\.\.\.\n)))"
    r"|\[(?P<slash2>/?)think(?:ing)?\]"
    # <think>, </think>, <think/>, ◁/think▷, <|END_THINKING|>
    r"|[<＜◁⟨]\|?[ ]?(?P<slash>[/／]?)[ ]?(?P<name>[\w:.-]{2,40})(?:\s[^<>\n]{0,80})?"
    r"(?P<empty>/?)\|?[>＞▷⟩]",
    re.IGNORECASE,
)
_SIGNS = ("<", "＜", "◁", "⟨", "[", "assistantfinal", "analysis", "hinking.")
MAX_ROUNDS = 8
_MARKS = "`~\"'“”‘’«»「」 \t\n"


def verdict_start(text: str) -> int | None:
    """Returns the position after the thinking; 0 without any, None if the thinking has no end.

    Everything before the last closing tag is thinking, as many chat templates open it in the
    prompt. A tag in a quotation is a mention, unless a closing tag there has no opening one.
    """
    start = 0
    for _ in range(MAX_ROUNDS if any(sign in text for sign in _SIGNS) else 0):
        # What follows the thinking has quotations of its own.
        end, is_open = _thinking(text[start:])
        if end == 0:
            return None if is_open else start
        start += end
    return start


def end_lines_at_closing_tags(text: str) -> str:
    """Returns a text of the same length, with a line end as the last character of closing tags."""
    if not any(sign in text for sign in _SIGNS):
        return text
    return THINKING.sub(
        lambda tag: tag[0][:-1] + "\n" if _is_tag(tag) and _closes(tag) else tag[0], text
    )


def _is_tag(tag: re.Match[str]) -> bool:
    return not tag["name"] or _STEM.search(tag["name"]) is not None


def _thinking(text: str) -> tuple[int, bool]:
    """The end of the last closing tag, or 0, and whether an opening one follows it."""
    tags = list(filter(_is_tag, THINKING.finditer(text)))
    if not tags:
        return 0, False
    blocks, unclosed = _fences(text)  # the thinking may have opened a block without closing it
    if unclosed is not None:
        text = (
            text[:unclosed]
            + re.sub("[`~]", " ", text[unclosed : unclosed + 9])
            + text[unclosed + 9 :]
        )
        blocks = _fences(text)[0]
    quoted = _quoted(text, blocks)
    end, is_open = 0, False
    opened: collections.Counter[Span] = collections.Counter()
    for tag in tags:
        span = containing(quoted, tag.start())
        if _closes(tag):
            alone = span is not None and text[slice(*span)].strip(_MARKS) == tag[0]
            mention = span is not None and (alone or "\n" not in text[slice(*span)])
            if span is None or (opened[span] == 0 and not mention):
                end, is_open = tag.end(), False
            elif opened[span]:
                opened[span] -= 1
        elif span is None or not text[: tag.start()].strip():
            is_open = is_open or _opens(text, tag)
        else:
            opened[span] += 1
    return end, is_open


def _opens(text: str, tag: re.Match[str]) -> bool:
    """Whether a tag opens thinking; List<Thought> and "a <draft> element" are words of a text."""
    before = text[max(0, tag.start() - 200) : tag.start()].rpartition("\n")[2]
    if "think" in (tag["name"] or "think").lower():
        return not tag["name"] or not before[-1:].isalnum()
    return not before.strip()


def _closes(tag: re.Match[str]) -> bool:
    name = (tag["name"] or "").lower()
    return bool(
        tag["slash"] or tag["slash2"] or tag["close"] or tag["empty"] or name.startswith("end")
    )
