r"""Final answers of mathematical solutions: the last \boxed{...}, and their equality."""

import fractions
import re

_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")
_DROPPED = re.compile(
    r"\\(?:left|right|,|;|:|!|quad|qquad|displaystyle)(?![a-zA-Z])|\\ |[$\s]|\^\{?\\circ\}?"
)
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}")
_BARE_FRACTION = re.compile(r"\\frac(\d)(\d)")


def boxed_answer(text: str) -> str | None:
    r"""Returns the content of the last \boxed{...} or \fbox{...} with balanced braces, or None."""
    for start in reversed([hit.end() for hit in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth = 1
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start:i]
    return None


def normalise(answer: str) -> str:
    r"""Returns an answer without spacing, wrappers and spellings that do not change its value."""
    answer = _WRAPPED.sub(r"\1", answer)
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer).replace("\\%", "").replace("%", "")
    answer = _DROPPED.sub("", answer).rstrip(".")
    answer = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", answer)
    # 1,234,567 is one number; (1,2) and 1,2 are not.
    is_number = re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", answer)
    return answer.replace(",", "") if is_number else answer


def _value(answer: str) -> fractions.Fraction | None:
    hit = _FRACTION.fullmatch(answer)
    try:
        if hit:
            return fractions.Fraction(int(hit[2]), int(hit[3])) * (-1 if hit[1] else 1)
        return fractions.Fraction(answer) if _NUMBER.fullmatch(answer) else None
    except ZeroDivisionError:
        return None


def same_answer(first: str, second: str) -> bool:
    r"""Whether two answers are equal after normalisation, or as numbers (0.5, 1/2, \frac{1}{2})."""
    first, second = normalise(first), normalise(second)
    if first == second:
        return True
    a, b = _value(first), _value(second)
    return a is not None and a == b
