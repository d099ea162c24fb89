r"""Sanitises the texts of a prompt, so that none can end its own block or supply the scores.

A response may contain the string that ends a response, or a \boxed{10, 1} for the judge to copy.
Both are defused before a template is rendered:
 - A string beside a text in the template is a marker ("[/Response 1]"). Look-alikes of a marker
   inside a text get a hyphen: "[-/Response 1]". Case, spacing, invisible characters, full-width
   letters and other numbers do not hide a look-alike.
 - \boxed{...} becomes \fbox{...} in every text, the query included, so that an instruction "put
   the answer in a box" still fits the answers. A critique that copies it copies no score.

The markers are found by rendering the template with placeholders, so users' templates are
protected as well.
"""

import functools
import re

# Characters that are drawn as nothing. A look-alike may contain them anywhere.
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
MAX_MARKER = 80  # A longer line beside a text is prose, not a marker.

BOXED = re.compile(rf"b{GAP}o{GAP}x{GAP}e{GAP}d(?={SPACE}[{{\uff5b])", re.IGNORECASE)


def _char(token: str) -> str:
    """A regular expression for one character, for a number or for spacing."""
    if token.isdigit():
        return r"\d+"
    if token.isspace():
        return SPACE
    if token in BRACKETS:
        return BRACKETS[token]
    wide = chr(ord(token) + 0xFEE0) if 0x21 <= ord(token) <= 0x7E else ""
    return f"[{re.escape(token)}{wide}]" if wide else re.escape(token)


def _pattern(marker: str) -> str:
    """A regular expression for a marker and its look-alikes, with any number and any spacing."""
    tokens = re.findall(r"\d+|\s+|.", marker)
    patterns = [_char(token) for token in tokens]
    # Any spacing is allowed around signs: "[ / Response 1 ]" is a look-alike of "[/Response 1]".
    out = patterns[0]
    for before, pattern, token in zip(patterns, patterns[1:], tokens[1:]):
        is_sign = not token.isalnum() or before in BRACKETS.values()
        out += (SPACE if is_sign and SPACE not in (before, pattern) else GAP) + pattern
    # A bare word such as [User] is common in code (`rows[user]`): only broken at a line's start.
    return rf"(?m:^)[^\S\n]*{out}" if re.fullmatch(r"[^\w/]*[^\W\d]+[^\w/]*", marker) else out


# Markers of other templates, always broken: [Response 1], [/Query],
# [The End of Response 1].
WORDS = ("response", "reference", "query", "principles", "conversation")
COMMON_MARKERS = (
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
    """One expression for all look-alikes of these and the common markers, longest first."""
    unique = {
        re.sub(r"\d+", "0", marker.strip()).lower(): None
        for marker in (*markers, *COMMON_MARKERS)
        if marker.strip()
    }
    patterns = [_edges(), *map(_pattern, sorted(unique, key=len, reverse=True))]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def markers_beside(rendered: str, placeholders: list[str]) -> tuple[str, ...]:
    """The strings directly before and after each placeholder: on its line, else on the next one.

    Example: "[Query]\\nQ0\\n[/Query]" with placeholder Q0 gives ("[Query]", "[/Query]").
    """
    markers = []
    for placeholder in placeholders:
        for piece in re.finditer(re.escape(placeholder), rendered):
            before, after = rendered[: piece.start()], rendered[piece.end() :]
            for lines in (before.split("\n")[::-1], after.split("\n")):
                line = next((line for line in lines[:2] if line.strip()), "").strip()
                if (
                    3 <= len(line) <= MAX_MARKER
                    and re.search(r"\w{3}", line)
                    and placeholder not in line
                ):
                    markers.append(line)
    return tuple(dict.fromkeys(markers))


def break_markers(text: str, markers: tuple[str, ...]) -> str:
    """Puts a hyphen into every look-alike of a marker: "[/Response 1]" becomes "[-/Response 1]"."""
    # No marker has a hyphen after its first character. Repeated, because what remains of a long
    # look-alike may contain a shorter one.
    expression = compile_markers(markers)
    for _ in range(4):
        broken = expression.sub(_hyphenate, text)
        if broken == text:
            return text
        text = broken
    return text


def _hyphenate(hit: re.Match) -> str:
    marker = hit.group()
    first = len(marker) - len(marker.lstrip()) + 1
    return f"{marker[:first]}-{marker[first:]}"


def fence(text: str, markers: tuple[str, ...]) -> str:
    r"""Sanitises a text between markers in a prompt.

    \boxed{ becomes \fbox{, which draws the same frame and which the parser ignores.
    """
    return BOXED.sub("fbox", break_markers(text, markers))
