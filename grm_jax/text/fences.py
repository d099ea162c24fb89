r"""Sanitises the texts of a prompt, so that none can end its own block or supply the scores.

A response may contain the string that ends a response, or a \boxed{10, 1} or "Response 1: 10/10"
for the judge to copy. All are defused when a prompt is put together:
 - A string beside a text in the template is a marker ("[/Response 1]"). Look-alikes of a marker
   inside a text get a hyphen: "[-/Response 1]".
 - \boxed{...} becomes \fbox{...} in every text, the query included, so that an instruction "put
   the answer in a box" still fits the answers. A critique that copies it copies no score.
 - "Response 1: 10/10" becomes "Response 1: ~10/10", and so does every number that the parser may
   take as a score below a heading "Scores" (`forms.score_numbers`).

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
from collections.abc import Sequence

from grm_jax.text import forms

LINE_END = re.compile("[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
# Drawn as nothing, though Unicode lists them as letters and symbols. NFKD maps other fillers here.
_BLANK = frozenset("\u115f\u1160\u2800\ufffc\U0001d159")
# Letters in another shape that Unicode does not decompose: small capitals, flags, negative circles.
LETTER = re.compile(
    r"(?:LATIN|NEGATIVE|REGIONAL INDICATOR) (?:\w+ )*LETTER (?:SMALL CAPITAL )?([A-Z])(?: WITH .*)?"
)
_SAME = str.maketrans({"l": "i", "|": "i", "\\": "/"})  # "[\Response l]" is "[/Response 1]"


class _Folds(dict):
    """{code point: its folded form}, each computed once: a table for `str.translate`."""

    def __missing__(self, code: int) -> str:
        self[code] = "".join(map(_fold_char, unicodedata.normalize("NFKD", chr(code))))
        return self[code]


_FOLDS = _Folds()


def _fold_char(char: str) -> str:
    """The folded form of one character of a compatibility decomposition."""
    category = unicodedata.category(char)
    if category[0] in "CMZ" or char in _BLANK:
        return ""
    if unicodedata.numeric(char, None) is not None:
        return "0"
    if not char.isascii():
        letter = LETTER.fullmatch(unicodedata.name(char, ""))
        char = letter[1] if letter else _bracket(category, char) or _look_alikes().get(char, char)
    return char.casefold().translate(_SAME)


def _bracket(category: str, char: str) -> str:
    """The ASCII bracket or dash of the same kind; "" for any other character."""
    if category == "Pd":
        return "-"
    if category[0] not in "PS":
        return ""
    name = unicodedata.name(char, "")
    is_left = "LEFT" in name or category == "Ps"
    if "ANGLE" in name and category in ("Ps", "Pe", "Pi", "Pf"):
        return "<" if is_left else ">"
    if (category in ("Ps", "Pe") and "QUOTATION" not in name) or "SQUARE BRACKET" in name:
        kind = "()" if "PARENTHES" in name else "{}" if "CURLY" in name else "[]"
        return kind[not is_left]
    return ""


@functools.cache
def _look_alikes() -> dict[str, str]:
    """{character: the ASCII character that it looks like}, from the data of Unicode TR 39."""
    from confusable_homoglyphs.confusables import confusables_data

    return {
        char: other["c"]
        for char, similar in confusables_data.items()
        if len(char) == 1 and not char.isascii()
        for other in similar
        if len(other["c"]) == 1 and other["c"].isascii()
    }


def fold(text: str) -> str:
    """Returns a text as a lenient reader sees it; "[ /Ｒesponse １ ]" becomes "[/response0]"."""
    return text.translate(_FOLDS)


# ---------------------------------------------------------------- markers

# Markers of other templates, always broken: [Response 1], [/Query], [The End of Response 1].
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
_BARE = re.compile(r"\[[A-Za-z]+\]")
_SIGNS = "-_~^+*=:"


@functools.lru_cache(maxsize=256)
def compile_markers(markers: tuple[str, ...]) -> tuple[re.Pattern, str]:
    """Returns an expression for all look-alikes in a folded text, and the sign that breaks them.

    A hit is the first character of a look-alike; its last group ends where the look-alike does.
    The last group of the expression is for those that count at a line's start only.
    """
    folded = {re.sub("0+", "0", fold(m)): is_bare_word(m) for m in (*COMMON_MARKERS, *markers)}
    sign = next((s for s in _SIGNS if not any(s in marker for marker in folded)), None)
    if sign is None:
        raise ValueError(f"the markers use all the signs {_SIGNS}: use [Response 1] as a marker")
    number = rf"(?:0+?|[io](?![^\W_]|{re.escape(sign)}))"  # or one letter: "[Response l]"
    tails: dict[str, list[str]] = {"[": [_EDGES.replace("l", "i")]}
    bare: list[str] = []
    for marker in sorted(filter(None, folded), key=len, reverse=True):  # longest first
        tail = number.join(map(re.escape, marker[1:].split("0")))
        (bare if folded[marker] else tails.setdefault(marker[0], [])).append(tail)
    groups = [(head, "|".join(any_of)) for head, any_of in (*tails.items(), ("[", bare))]
    return re.compile("|".join(f"{re.escape(head)}(?=({any_of}))" for head, any_of in groups)), sign


def is_bare_word(marker: str) -> bool:
    """Whether a marker is one word in square brackets: its look-alikes count at a line's start."""
    return _BARE.fullmatch(marker) is not None


# ---------------------------------------------------------------- sanitising


def fence(text: str, markers: Sequence[str], scale: tuple[float, float] = (1, 10)) -> str:
    """Sanitises one text that stands between markers, as `join` does."""
    return join([(text, True)], markers, scale)


def join(
    pieces: Sequence[tuple[str, bool]], markers: Sequence[str], scale: tuple[float, float] = (1, 10)
) -> str:
    r"""Joins the pieces of a prompt, (string, is_text), and sanitises those that are texts.

    \boxed{ becomes \fbox{, which draws the same frame and which the parser ignores. A number that
    the parser may take as a score gets a ~. A look-alike of a marker gets a sign after its first
    character. If it begins in the template's own words and extends into a text, the sign is put
    where the text begins.

    Args:
      scale: lowest and highest score of the template.
    """
    strings = [_unscore(_unbox(piece), scale) if is_text else piece for piece, is_text in pieces]
    folded = [fold(string) for string in strings]
    ends, ends_folded = (list(itertools.accumulate(map(len, s))) for s in (strings, folded))
    prompt = "".join(strings)
    expression, sign = compile_markers(tuple(markers))
    cuts, origins = [0], list[int]()
    for hit in expression.finditer("".join(folded)):
        i = bisect.bisect_right(ends_folded, hit.start())  # the piece where it begins
        if pieces[i][1]:
            origins = origins or _origins(prompt)
            first = bisect.bisect_right(origins, hit.start()) - 1
            if hit.lastindex != expression.groups or _starts_line(prompt, first):
                cuts.append(first + 1)
        elif hit.end(hit.lastindex or 0) > ends_folded[i]:
            while i + 1 < len(pieces) and not pieces[i + 1][1]:
                i += 1
            if hit.end(hit.lastindex or 0) > ends_folded[i]:
                cuts.append(ends[i])
    cuts = [*dict.fromkeys(cuts), len(prompt)]
    return sign.join(prompt[a:b] for a, b in itertools.pairwise(cuts))


def _starts_line(prompt: str, place: int) -> bool:
    """Whether only invisible characters and spacing precede the place on its line."""
    while place and not LINE_END.match(prompt, place - 1) and not _FOLDS[ord(prompt[place - 1])]:
        place -= 1
    return not place or LINE_END.match(prompt, place - 1) is not None


def _unbox(text: str) -> str:
    r"""Writes \boxed{ and its look-alikes as \fbox{."""
    text = text.replace("boxed{", "fbox{")
    hits = list(re.finditer(r"boxed(?=\{)", fold(text)))
    if not hits:
        return text
    origins, cuts = _origins(text), [0]
    for hit in hits:
        first, last = (bisect.bisect_right(origins, i) - 1 for i in (hit.start(), hit.end() - 1))
        cuts += [first, last + 1]
    return "fbox".join(text[a:b] for a, b in zip(cuts[::2], [*cuts[1::2], len(text)]))


def _unscore(text: str, scale: tuple[float, float]) -> str:
    """Writes "Response 1: 8/10" as "Response 1: ~8/10", which the parser ignores."""
    cuts = [0, *forms.score_numbers(text, *scale), len(text)]
    return "~".join(text[a:b] for a, b in itertools.pairwise(cuts))


def _origins(text: str) -> list[int]:
    """Where each character of the text begins in the folded text, and at last where that ends."""
    return list(itertools.accumulate(map(len, map(_FOLDS.__getitem__, map(ord, text))), initial=0))
