"""Where a prompt template puts the texts, and whether its markers protect them.

A template is rendered with stand-ins, so it cannot depend on what the texts say: a layout, the
template's own words with the places of the texts, is all that a prompt takes from it. A template is
refused at load unless every text has its place, unchanged, between markers that can be protected:
 - each response once, in order; the query; the reference and the principles if it needs them;
 - the lines beside a text, and all lines between two texts, are markers. A marker has at least two
   letters and a sign, such as [Response 1], "### Response 1" or "Response 1:". Lines of signs alone
   (\"\"\", ---, <<<) may stand elsewhere, but not beside a text;
 - a single word in brackets, such as [Query], stands alone on its line.
The start and the end of the prompt need no marker: there the chat template's control tokens are.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from grm_jax.text import fences, sandbox

NEEDS = ("reference", "principles")
# Private-use characters have no meaning in a template; a unit separator is spacing, so it shows
# whether the template trims a text.
_OPEN, _CLOSE, _PAD = "\ue0a0", "\ue0a1", "\x1f"
_STAND_IN = re.compile(f"({_PAD}?){_OPEN}([0-9]{{1,6}}){_CLOSE}({_PAD}?)")
MAX_MARKER = 80  # characters of a line beside a text that count as its marker
_STYLE = "put lines such as [Response 1] and [/Response 1] around every text"


@dataclasses.dataclass(frozen=True)
class Template:
    """A compiled prompt template.

    name: "FAMILY/ROLE" of a shipped template, or the file name of a user's.
    output: what the model writes.  low, high: the scale of its scores.
    n_min, n_max: the number of responses it takes.  needs: inputs that must not be None.
    own: whether it is a user's file, and not a shipped one.
    files: (name, source) of a user's file, and of the files beside it that it includes.
    markers: the strings that enclose texts.
    fingerprint: 12 hex digits of a hash over its source and every file it includes.
    """

    name: str
    output: str
    low: float
    high: float
    n_min: int
    n_max: int
    needs: tuple[str, ...]
    fingerprint: str
    jinja: Any = dataclasses.field(repr=False, compare=False)
    own: bool = True
    files: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False, compare=False)
    markers: tuple[str, ...] = ()


def stand_in(place: int) -> str:
    """A string that stands for a text while a template is rendered; see `split`."""
    return f"{_PAD}{_OPEN}{place}{_CLOSE}{_PAD}"


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of a text: its index, and whether the template trims its start and its end."""

    index: int
    trims: tuple[bool, bool]

    def fill(self, texts: Sequence[str]) -> str:
        text = texts[self.index]
        text = text.lstrip() if self.trims[0] else text
        return text.rstrip() if self.trims[1] else text


@dataclasses.dataclass(frozen=True)
class Layout:
    """words[i] stands before slots[i]; the last of the words stands at the end."""

    words: tuple[str, ...]
    slots: tuple[Slot, ...]

    def fill(self, texts: Sequence[str]) -> list[tuple[str, Slot | None]]:
        """The pieces of the prompt, each with the slot it fills; None for the template's words."""
        pieces: list[tuple[str, Slot | None]] = [(self.words[0], None)]
        for slot, after in zip(self.slots, self.words[1:], strict=True):
            pieces += [(slot.fill(texts), slot), (after, None)]
        return pieces


def split(rendered: str, count: int) -> Layout:
    """Splits a rendered template at its stand-ins. Raises ValueError for one that is none of ours.

    count: the number of texts.
    """
    before, *matches = _STAND_IN.split(rendered)
    words, slots = [before], []
    for left, index, right, after in zip(*[iter(matches)] * 4, strict=True):
        if int(index) >= count:
            raise ValueError("it prints private-use characters (U+E0A0) of its own")
        words.append(after)
        slots.append(Slot(int(index), (not left, not right)))
    return Layout(tuple(words), tuple(slots))


def check_places(
    layout: Layout, names: Sequence[str], needed: Sequence[int], responses: Sequence[int]
) -> None:
    """Raises ValueError unless the texts are shown as they should be.

    Args:
      names: of the texts, for errors.
      needed: indices of the texts that must be shown.
      responses: indices of the responses, in order.
    """
    shown = [slot.index for slot in layout.slots]
    if missing := [names[index] for index in needed if index not in shown]:
        raise ValueError(
            f"it does not show {' and '.join(missing)}: print every text of `turns` (or `query`) "
            "and `responses`"
        )
    order = [index for index in shown if index in responses]
    if order != sorted(set(order)):
        raise ValueError(
            f"it shows {', '.join(names[index] for index in order)}: show each response once, in "
            "the order of `responses`"
        )


def markers(
    layout: Layout, names: Sequence[str], enclosed: Sequence[int], every: bool = True
) -> tuple[str, ...]:
    """Returns the markers of a layout: the lines beside its texts, and between two of them.

    Args:
      names: of the texts, for errors.
      enclosed: indices of the texts that markers enclose; others count as words.
      every: whether all lines between two texts are markers, or only those beside a text.

    Raises:
      ValueError: a marker that cannot be protected in any text.
    """
    words, texts = [layout.words[0]], []
    for slot, after in zip(layout.slots, layout.words[1:], strict=True):
        if slot.index in enclosed:
            texts.append(names[slot.index])
            words.append(after)
        else:
            words[-1] += after
    lines: list[str] = []
    for i, between in enumerate(words):
        before, after = texts[i - 1] if i else "", texts[i] if i < len(texts) else ""
        lines += _markers_of(between, before, after, every)
    return tuple(dict.fromkeys(lines))


def _markers_of(words: str, before: str, after: str, every: bool) -> list[str]:
    """The markers among the words between two texts, "" for the start or the end of the prompt."""
    lines = fences.LINE_END.split(words)
    visible = [i for i, line in enumerate(lines) if fences.fold(line)]
    if not visible:
        if before and after:
            raise ValueError(f"nothing separates {before} from {after}: {_STYLE}")
        return []
    beside = {visible[0]} if before else set()
    beside |= {visible[-1]} if after else set()
    result = []
    for i in visible if every and before and after else sorted(beside):
        line, folded = lines[i].strip(), fences.fold(lines[i])
        letters = sum(char.isalpha() for char in folded)
        if i not in beside and not letters:
            continue
        if letters < 2 or folded.isalnum():
            text = after if i == visible[-1] and after else before
            raise ValueError(
                f"the line {line!r:.60} beside {text} is not a marker (two letters and a sign), so "
                f"a text can hold it: {_STYLE}"
            )
        shares = (i == 0 and before) or (i == len(lines) - 1 and after)
        if shares and fences.is_bare_word(line):
            raise ValueError(f"the marker {line!r:.60} shares its line with {shares}: {_STYLE}")
        result += [line[:MAX_MARKER], line[-MAX_MARKER:]]
    return result


# ---------------------------------------------------------------- templates


@dataclasses.dataclass(frozen=True)
class Shape:
    """All of a comparison that a template sees, the texts aside.

    roles: of the turns.  n: number of responses.  reference, principles, hint: whether given.
    """

    roles: tuple[str, ...]
    n: int
    reference: bool
    principles: bool
    hint: bool

    @property
    def query(self) -> int:
        """Index of the query among the texts: the last turn of a user, else the last turn."""
        users = [i for i, role in enumerate(self.roles) if role == "user"]
        return users[-1] if users else len(self.roles) - 1

    @property
    def responses(self) -> range:
        """Indices of the responses among the texts. The reference follows them, then the rest."""
        return range(len(self.roles), len(self.roles) + self.n)

    def names(self) -> list[str]:
        """Names of the texts, for errors."""
        turns = ["the query" if i == self.query else f"turn {i}" for i in range(len(self.roles))]
        responses = [f"response {i + 1}" for i in range(self.n)]
        return [*turns, *responses, "the reference", "the principles", "the hint"]

    def variables(self, template: Template, texts: Sequence[str]) -> dict[str, Any]:
        """What the template sees with these texts, in the order of `names`."""
        reference, principles, hint = texts[-3:]
        turns = zip(self.roles, texts, strict=False)
        return {
            "turns": [{"role": role, "content": text} for role, text in turns],
            "query": texts[self.query],
            "responses": [texts[i] for i in self.responses],
            "n": self.n,
            "reference": reference if self.reference else None,
            "principles": principles if self.principles else None,
            "hint": hint if self.hint else None,
            "low": template.low,
            "high": template.high,
        }


def _shapes(template: Template) -> list[Shape]:
    """Shapes on which a template is checked when it is loaded."""
    low, high = max(1, template.n_min), min(template.n_max, max(3, template.n_min))
    chat = ("user", "assistant", "system", "tool", "user")
    full = [
        Shape(roles, n, True, True, False)
        for roles in (("user",), chat)
        for n in dict.fromkeys((low, high))
    ]
    needed = ("reference" in template.needs, "principles" in template.needs)
    return [*full, Shape(("user",), low, *needed, True)]


# Texts of one character, of many, and with all that filters change.
_PROBES = ("x", "Word, " * 1000, "  Aa-b <b>\"c\"</b> & 'd' {{ e }}\\n\té\nhttps://f.g/ \n ")


@functools.lru_cache(maxsize=512)
def layout_of(template: Template, shape: Shape) -> tuple[Layout, tuple[str, ...]]:
    """The layout of a template for a shape, and its markers.

    Raises ValueError if it does not show the texts as it should, or cannot protect its markers.
    """
    names, what = shape.names(), f"template {template.name!r}"

    def filled(texts: list[str]) -> str:
        return sandbox.render(template.jinja, shape.variables(template, texts), what)

    places = split(filled([stand_in(i) for i in range(len(names))]), len(names))
    for probe in _PROBES if template.own else ():
        texts = [f"{probe}{i}{probe}" for i in range(len(names))]
        if filled(texts) != "".join(piece for piece, _ in places.fill(texts)):
            raise ValueError(f"{what} changes a text or depends on it: print texts as they are")
    responses = () if template.output == "principles" else shape.responses
    needed = [len(names) - 3 + NEEDS.index(need) for need in template.needs]
    check_places(places, names, [shape.query, *responses, *needed], shape.responses)
    return places, markers(places, names, range(len(names) - 1), every=template.own)


class MissingTurns(ValueError):
    """A template does not show every turn of a conversation."""


def check_turns(template: Template, turns: Sequence[dict[str, str]], layout: Layout) -> None:
    """Raises MissingTurns if a prompt lacks turns of its conversation that have text."""
    shown = {slot.index for slot in layout.slots}
    lacking = [turn for i, turn in enumerate(turns) if i not in shown]
    if missing := [turn["role"] for turn in lacking if turn["content"].strip()]:
        raise MissingTurns(
            f"template {template.name!r} does not show {len(missing)} of the {len(turns)} "
            f"turns ({', '.join(missing):.60}): print each with "
            "{% for turn in turns %}, as the shipped templates do"
        )


def all_markers(template: Template) -> tuple[str, ...]:
    """The markers of a template in prompts of every kind. Raises ValueError as `layout_of`."""
    result = [marker for shape in _shapes(template) for marker in layout_of(template, shape)[1]]
    fences.compile_markers(unique := tuple(dict.fromkeys(result)))
    return unique
