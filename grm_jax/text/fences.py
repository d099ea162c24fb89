r"""Keeps the texts of a prompt inside their places.

A response may hold the very words that mark where a response ends, or a \boxed{10, 1} for the judge to copy. Both are
broken here before a template is filled:
 - whatever stands next to a text in the template is a marker ("[/Response 1]"); look-alikes of a marker inside a text
   get a hyphen: "[-/Response 1]". Case, spacing, invisible characters, full-width letters and other numbers do not
   hide a look-alike.
 - \boxed{...} becomes \fbox{...} in every text, query included, so that "put the answer in a box" and the answers
   still agree. A critique that copies it word for word copies no score.
The markers are found by rendering the template with placeholders, so this holds for templates by other people too.
"""

from __future__ import annotations

import functools
import re

# Characters that are drawn as nothing: they may stand anywhere inside a look-alike.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufe00-\ufe0f\ufeff"
)
GAP = f"[{INVISIBLE}]*"
SPACE = f"[\\s\u00a0\u3000{INVISIBLE}]*"
BRACKETS = {
    "[": "[\\[\uff3b\u3010\u3014\u27e6\u301a\u298b]",
    "]": "[\\]\uff3d\u3011\u3015\u27e7\u301b\u298c]",
    "/": "[/\uff0f\u2044\u2215\u29f8]",
    "<": "[<\uff1c\u2039\u27e8\u3008]",
    ">": "[>\uff1e\u203a\u27e9\u3009]",
}
LONGEST_MARKER = 80  # a longer line beside a text is prose, not a marker

BOXED = re.compile(rf"b{GAP}o{GAP}x{GAP}e{GAP}d(?={SPACE}[{{\uff5b])", re.IGNORECASE)


def _char(c: str) -> str:
    if c in BRACKETS:
        return BRACKETS[c]
    wide = chr(ord(c) + 0xFEE0) if 0x21 <= ord(c) <= 0x7E else ""
    return f"[{re.escape(c)}{wide}]" if wide else re.escape(c)


def _pattern(marker: str) -> str:
    """A regular expression for a marker and its look-alikes: numbers stand for any number, spaces for any spacing."""
    parts = []
    for token in re.findall(r"\d+|\s+|.", marker):
        if token.isdigit():
            parts.append(r"\d+")
        elif token.isspace():
            parts.append(SPACE)
        else:
            parts.append(_char(token))
    # Spacing is free around every sign, so that "[ / Response 1 ]" is a look-alike of "[/Response 1]".
    out = parts[0]
    for before, part, token in zip(parts, parts[1:], re.findall(r"\d+|\s+|.", marker)[1:]):
        loose = (
            before != SPACE
            and part != SPACE
            and (not token.isalnum() or before in BRACKETS.values())
        )
        out += (SPACE if loose else GAP) + part
    # One bare word, such as [User], is too common in code (`rows[user]`) to be broken anywhere but at the start of a
    # line.
    return rf"(?m:^)[^\S\n]*{out}" if re.fullmatch(r"[^\w/]*[^\W\d]+[^\w/]*", marker) else out


# The usual ways to mark a text, whatever the template's own way is: [Response 1], [/Query], [The End of Response 1].
WORDS = ("response", "reference", "query", "principles", "conversation")
USUAL = (
    "[Response 1]",
    "[/Response 1]",
    *(f"[{slash}{word}]" for word in WORDS[1:] for slash in ("", "/")),
)


def _edges() -> str:
    """ "[The End of Response" with or without its articles."""
    any_of = lambda *words: "(?:" + "|".join(map(_pattern_of_word, words)) + ")"  # noqa: E731
    the = f"(?:{any_of('the')}{SPACE})?"
    edge = any_of("beginning", "begin", "start", "end")
    return f"{_char('[')}{SPACE}{the}{edge}{SPACE}{any_of('of')}{SPACE}{the}{any_of(*WORDS)}"


def _pattern_of_word(word: str) -> str:
    return GAP.join(map(_char, word))


@functools.lru_cache(maxsize=256)
def compile_markers(markers: tuple[str, ...]) -> re.Pattern:
    """One expression that finds every look-alike of the given markers and of the usual ones, longest first."""
    unique = {
        re.sub(r"\d+", "0", marker.strip()).lower(): None
        for marker in (*markers, *USUAL)
        if marker.strip()
    }
    patterns = [_edges(), *map(_pattern, sorted(unique, key=len, reverse=True))]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def markers_beside(rendered: str, placeholders: list[str]) -> tuple[str, ...]:
    """What stands directly before and after each placeholder in a rendered template: on its line, else the next one.

    Example: "[Query]\\nQ0\\n[/Query]" with placeholder Q0 gives ("[Query]", "[/Query]").
    """
    found = []
    for placeholder in placeholders:
        for piece in re.finditer(re.escape(placeholder), rendered):
            before, after = rendered[: piece.start()], rendered[piece.end() :]
            for text, pick in ((before, -1), (after, 0)):
                lines = text.split("\n")
                line = lines[pick]
                if not line.strip() and len(lines) > 1:
                    line = lines[-2 if pick == -1 else 1]
                line = line.strip()
                if (
                    3 <= len(line) <= LONGEST_MARKER
                    and re.search(r"\w{3}", line)
                    and placeholder not in line
                ):
                    found.append(line)
    return tuple(dict.fromkeys(found))


def break_markers(text: str, markers: tuple[str, ...]) -> str:
    """The text with a hyphen inside every look-alike of a marker: "[/Response 1]" becomes "[-/Response 1]"."""
    # A hyphen after the first character leaves no look-alike: no marker allows one there. Twice, because the
    # remainder of a long look-alike may hold a shorter one.
    expression = compile_markers(markers)
    for _ in range(4):
        broken = expression.sub(_hyphenate, text)
        if broken == text:
            return text
        text = broken
    return text


def _hyphenate(hit: re.Match) -> str:
    found = hit.group()
    first = len(found) - len(found.lstrip()) + 1
    return f"{found[:first]}-{found[first:]}"


def break_boxes(text: str) -> str:
    r"""The text with \boxed{ written as \fbox{, the same frame in LaTeX, which the parser does not read."""
    return BOXED.sub("fbox", text)


def fence(text: str, markers: tuple[str, ...]) -> str:
    """A text made safe to stand between markers in a prompt."""
    return break_boxes(break_markers(text, markers))
