r"""Final answers of mathematical solutions: the last \boxed{...}, and their equality.

The rules are those by which MATH is graded (hendrycks/math), and stricter in one point: two
answers that both name a unit, or a variable, must name the same.
"""

import fractions
import re

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{|[{}]")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")
_DROPPED = re.compile(
    r"\\(?:left|right|,|;|:|!|quad|qquad|displaystyle)(?![a-zA-Z])|\\[ $]|[$\s]|\^\{?\\circ\}?"
)
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|textrm|mbox)\{([^{}]*)\}")
# 5.4\text{ cents}, 3\sqrt{2}\mbox{ cm}^2: a unit begins with a space or follows a number.
_UNIT = re.compile(
    r"(.*?\S)\s*(?:\\[,; ]\s*|~)?\\(?:text|mathrm|textrm|mbox)\{(\s*)([^{}]*)\}(\^\{?\d\}?)?\.?\s*"
)
_VARIABLE = re.compile(r"([a-zA-Z]\w?|\\[a-z]{2,8})=(.+)")
_BARE_FRACTION = re.compile(r"\\frac(\d|\{[^{}]*\})(\d|\{[^{}]*\})")
_BARE_ROOT = re.compile(r"\\sqrt(\d)")
_BARE_POINT = re.compile(r"(?<![\d.])\.(?=\d)")


def boxed_answer(text: str) -> str | None:
    r"""Returns the content of the last \boxed{...} or \fbox{...} with balanced braces, or None."""
    opened: list[int | None] = []  # where the content of each box begins, None for other braces
    start, end = -1, -1
    for brace in _BOX.finditer(text):
        if brace[0] != "}":
            opened.append(None if brace[0] == "{" else brace.end())
        elif opened and (begin := opened.pop()) is not None and begin > start:
            start, end = begin, brace.start()
    return text[start:end] if start >= 0 else None


def normalise(answer: str) -> str:
    r"""Returns an answer without spacing, wrappers and spellings that do not change its value."""
    answer = _WRAPPED.sub(r"\1", answer)
    answer = re.sub(r"\\[dtc]frac", r"\\frac", answer).replace("\\%", "").replace("%", "")
    answer = _DROPPED.sub("", answer).replace("{,}", ",").rstrip(".")
    answer = _BARE_FRACTION.sub(lambda hit: f"\\frac{_braced(hit[1])}{_braced(hit[2])}", answer)
    answer = _BARE_POINT.sub("0.", _BARE_ROOT.sub(r"\\sqrt{\1}", answer))
    # 1,234,567 is one number; (1,2) and 1,2 are not.
    is_number = re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", answer)
    return answer.replace(",", "") if is_number else answer


def _braced(argument: str) -> str:
    return argument if argument.startswith("{") else f"{{{argument}}}"


def _parts(answer: str) -> tuple[str, str, str]:
    """Returns (variable, value, unit) of an answer, normalised; "" for a part that is absent."""
    unit = ""
    if len(answer) <= 1000 and (hit := _UNIT.fullmatch(answer)):  # it takes quadratic time
        if hit[2] or _value(normalise(hit[1])) is not None:
            singular = re.sub(r"e?s?$", "", normalise(hit[3]).lower())  # inches, inch; minutes
            answer, unit = hit[1], singular + normalise(hit[4] or "")
    value = normalise(answer)
    variable = ""
    if (hit := _VARIABLE.fullmatch(value)) and "=" not in hit[2]:
        variable, value = hit[1], hit[2]
    return variable, value, unit


def _value(answer: str) -> fractions.Fraction | None:
    hit = _FRACTION.fullmatch(answer)
    try:
        if hit:
            return fractions.Fraction(int(hit[2]), int(hit[3])) * (-1 if hit[1] else 1)
        return fractions.Fraction(answer) if _NUMBER.fullmatch(answer) else None
    except (ZeroDivisionError, ValueError):  # ValueError: numbers of thousands of digits
        return None


def same_answer(first: str, second: str) -> bool:
    r"""Whether two answers are equal after normalisation, or as numbers (0.5, 1/2, \frac{1}{2}).

    A variable (x=5), a unit (5\text{ cm}) or a dollar sign that only one of them has is ignored.
    """
    if normalise(first) == normalise(second):
        return True
    (name, value, unit), (other_name, other_value, other_unit) = _parts(first), _parts(second)
    if (name and other_name and name != other_name) or (unit and other_unit and unit != other_unit):
        return False
    a, b = _value(value), _value(other_value)
    return value == other_value or (a is not None and a == b)
