r"""Sanitises the texts of a prompt, so that none can end its own block or supply the scores.

A response may contain the string that ends a response, or a \boxed{10, 1} for the judge to copy.
Both are defused when a prompt is put together:
 - A string beside a text in the template is a marker ("[/Response 1]"). Look-alikes of a marker
   inside a text get a hyphen: "[-/Response 1]".
 - \boxed{...} becomes \fbox{...} in every text, the query included, so that an instruction "put
   the answer in a box" still fits the answers. A critique that copies it copies no score.

Look-alikes are found in a folded copy of the prompt, in time linear in its length. Folding removes
what a reader does not see or may ignore, by the properties of the characters in Unicode:
 - compatibility forms (full-width, mathematical, circled) become plain characters, in lower case;
 - spacing, invisible characters, combining marks and unassigned code points are dropped;
 - letters, slashes and dashes of other scripts become the ASCII characters that they look like;
 - brackets become [ ] or < >, and every number becomes 0.
"""

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence

LINE_END = re.compile("[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
# Drawn as nothing, though Unicode lists them as letters or symbols.
_BLANK = re.compile("FILLER|BLANK|NULL NOTEHEAD|OBJECT REPLACEMENT")
_SAME = str.maketrans({"l": "i", "|": "i", "\\": "/"})  # "[\Response l]" is "[/Response 1]"


class _Folds(dict):
    """{code point: its folded form}, each computed once: a table for `str.translate`."""

    def __missing__(self, code: int) -> str:
        plain = unicodedata.normalize("NFKD", chr(code)).casefold()
        self[code] = "".join(map(_fold_char, unicodedata.normalize("NFKD", plain)))
        return self[code]


_FOLDS = _Folds()


def _fold_char(char: str) -> str:
    """The folded form of one character of a compatibility decomposition."""
    category, name = unicodedata.category(char), unicodedata.name(char, "")
    if category[0] in "CMZ" or _BLANK.search(name):
        return ""
    if unicodedata.numeric(char, None) is not None:
        return "0"
    if not char.isascii():
        char = _bracket(category, name) or _look_alikes().get(char, char)
    return char.casefold().translate(_SAME)


def _bracket(category: str, name: str) -> str:
    """The ASCII bracket or dash of the same kind; "" for any other character."""
    is_left = "LEFT" in name or category == "Ps"
    if category == "Pd":
        return "-"
    if "ANGLE" in name and category in ("Ps", "Pe", "Pi", "Pf"):
        return "<" if is_left else ">"
    if category in ("Ps", "Pe") and "QUOTATION" not in name or "SQUARE BRACKET" in name:
        kind = "()" if "PARENTHES" in name else "{}" if "CURLY" in name else "[]"
        return kind[not is_left]
    return ""


@functools.cache
def _look_alikes() -> dict[str, str]:
    """{character: the ASCII character that it looks like}, from the data of Unicode TR 39."""
    from confusable_homoglyphs.confusables import confusables_data

    return {
        char: found["c"]
        for char, similar in confusables_data.items()
        if len(char) == 1 and not char.isascii()
        for found in similar
        if len(found["c"]) == 1 and found["c"].isascii()
    }


def fold(text: str) -> str:
    """Returns a text as a lenient reader sees it; "[ /Ｒesponse １ ]" becomes "[/response0]"."""
    return text.translate(_FOLDS)


# ---------------------------------------------------------------- markers

# Markers of other templates, always broken: [Response 1], [/Query],
# [The End of Response 1].
WORDS = ("response", "reference", "query", "principles", "conversation")
COMMON_MARKERS = (
    "[Response 1]",
    *(
        f"[{slash}{word}]"
        for word in WORDS
        for slash in ("", "/")
        if (slash, word) != ("", WORDS[0])
    ),
)
_EDGES = f"(?:the)?(?:beginning|begin|start|end)of(?:the)?(?:{'|'.join(WORDS)})"
# A bare word such as [User] is common in code (`rows[user]`): only broken at a line's start.
_BARE = re.compile(r"\[[^\W\d_]+\]")
_SIGNS = "-_~^+*=:"


@functools.lru_cache(maxsize=256)
def compile_markers(markers: tuple[str, ...]) -> tuple[re.Pattern, str]:
    """Returns an expression for all look-alikes in a folded text, and the sign that breaks them.

    A hit is the first character of a look-alike; its last group ends where the look-alike does.
    The last group of the expression is for those that count at a line's start only.
    """
    folded = {re.sub("0+", "0", fold(marker)) for marker in (*markers, *COMMON_MARKERS)}
    sign = next((s for s in _SIGNS if not any(s in marker for marker in folded)), None)
    if sign is None:
        raise ValueError(f"the markers use all the signs {_SIGNS}: use [Response 1] as a marker")
    number = rf"(?:0+?|[io](?![^\W_]|{re.escape(sign)}))"  # or one letter: "[Response l]"
    tails: dict[str, list[str]] = {"[": [_EDGES.replace("l", "i")]}
    bare: list[str] = []
    for marker in sorted(folded - {""}, key=len, reverse=True):  # longest first
        tail = number.join(map(re.escape, marker[1:].split("0")))
        (bare if _BARE.fullmatch(marker) else tails.setdefault(marker[0], [])).append(tail)
    groups = [(head, "|".join(any_of)) for head, any_of in (*tails.items(), ("[", bare))]
    return re.compile("|".join(f"{re.escape(head)}(?=({any_of}))" for head, any_of in groups)), sign


def is_bare_word(marker: str) -> bool:
    """Whether a marker is one word in square brackets: its look-alikes count at a line's start."""
    return _BARE.fullmatch(fold(marker)) is not None


# ---------------------------------------------------------------- sanitising


def fence(text: str, markers: Sequence[str]) -> str:
    """Sanitises one text that stands between markers, as `join` does."""
    return join([(text, True)], markers)


def join(pieces: Sequence[tuple[str, bool]], markers: Sequence[str]) -> str:
    r"""Joins the pieces of a prompt, (string, is_text), and sanitises those that are texts.

    \boxed{ becomes \fbox{, which draws the same frame and which the parser ignores. A look-alike of
    a marker gets a sign after its first character. If it begins in the template's own words and
    extends into a text, the sign is put where the text begins.
    """
    pieces = [(_unbox(piece) if is_text else piece, is_text) for piece, is_text in pieces]
    folded = [fold(piece) for piece, _ in pieces]
    ends_folded = list(itertools.accumulate(map(len, folded)))
    expression, sign = compile_markers(tuple(markers))

    def is_own(hit: re.Match) -> bool:  # found in every prompt, so decided before `_places`
        i = bisect.bisect_right(ends_folded, hit.start())
        return not pieces[i][1] and hit.end(hit.lastindex or 0) <= ends_folded[i]

    hits = [hit for hit in expression.finditer("".join(folded)) if not is_own(hit)]
    prompt = "".join(piece for piece, _ in pieces)
    if not hits:
        return prompt
    place_of = _places(prompt)
    ends = itertools.accumulate(len(piece) for piece, _ in pieces)
    texts = [(end - len(piece), end) for (piece, is_text), end in zip(pieces, ends) if is_text]
    cuts = [0]
    for hit in hits:
        first, last = place_of(hit.start()), place_of(hit.end(hit.lastindex or 0) - 1)
        if hit.lastindex != expression.groups or _starts_line(prompt, first):
            cuts += _cut(texts, first, last)
    cuts = [*dict.fromkeys(cuts), len(prompt)]
    return sign.join(prompt[a:b] for a, b in itertools.pairwise(cuts))


def _cut(texts: list[tuple[int, int]], first: int, last: int) -> list[int]:
    """Returns where to break a look-alike: nowhere if it lies in the template's own words.

    texts: the spans of the texts in the prompt.  first, last: positions of the look-alike.
    """
    i = bisect.bisect_right(texts, first, key=lambda span: span[0]) - 1
    if i >= 0 and first < texts[i][1]:
        return [first + 1]
    return [start for start, _ in texts[i + 1 : i + 2] if start <= last]


def _starts_line(prompt: str, place: int) -> bool:
    """Whether only invisible characters and spacing precede the place on its line."""
    while place and not LINE_END.match(prompt, place - 1) and not _FOLDS[ord(prompt[place - 1])]:
        place -= 1
    return not place or LINE_END.match(prompt, place - 1) is not None


def _unbox(text: str) -> str:
    r"""Writes \boxed{ and its look-alikes as \fbox{."""
    hits = list(re.finditer(r"boxed(?=\{)", fold(text)))
    if not hits:
        return text
    place_of, cuts = _places(text), [0]
    for hit in hits:
        cuts += [place_of(hit.start()), place_of(hit.end() - 1) + 1]
    return "fbox".join(text[a:b] for a, b in zip(cuts[::2], [*cuts[1::2], len(text)]))


def _places(text: str) -> Callable[[int], int]:
    """Returns the function from positions in the folded text to positions in the text."""
    starts = list(itertools.accumulate((len(_FOLDS[ord(c)]) for c in text), initial=0))
    return lambda place: bisect.bisect_right(starts, place) - 1
