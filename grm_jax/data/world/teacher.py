"""A scripted critic for the judging world: the sampling model of rejective fine-tuning.

It writes weighted principles, computes the result, compares each response with it, and scores. At
adjustable rates it makes the errors of models: an improper principle, a slip in the working, a
misread response, a tie, or a shortcut that judges by manner ("sounds sure") without working. Errors
propagate: after a slip, verdicts and scores follow the wrong result.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from grm_jax.data.world.families import FAMILIES, TRAINED_NAMES
from grm_jax.data.world.responses import EMPTY, HEDGED, RIGHT, WRONG
from grm_jax.types import Comparison

# Main principle by family: it is specific to the query, and the working follows from it.
AIMS = {
    "add": "the sum is right",
    "largest": "the largest item",
    "smallest": "the smallest item",
    "sort": "the items go up",
    "descend": "the items go down",
    "reverse": "the items turned round",
    "repeat": "the same items",
    "count": "the count is right",
    "member": "whether it is there",
    "first": "the first item",
    "last": "the last item",
    "replace": "one item is changed",
    "remove": "one item is gone",
    "capitals": "all in capitals",
    "length": "the number of words",
    "ending": "the last word",
    "opening": "the first word",
}
_RULED = ("length", "ending", "opening", "capitals")  # instruction-following families
_SECOND = (("Clarity", "one clear answer"), ("Brevity", "no idle talk"))
_SHALLOW = ("Tone", "it sounds sure")  # principle of a shortcut
NAMES = ("Accuracy", "Instruction", *(name for name, _ in _SECOND), _SHALLOW[0])
DESCRIPTIONS = (*AIMS.values(), *(text for _, text in _SECOND), _SHALLOW[1])

WEIGHTS = (60, 70, 80, 40, 30, 20)  # percent: of main principles, then the rest for the second

# Scores by grade, one digit (one token) each; a single response is scored 0 or 1.
_SCORES = {RIGHT: (8, 9), HEDGED: (5, 6), WRONG: (2, 3, 4), EMPTY: (1,)}
_VERDICTS = {RIGHT: "right", HEDGED: "unclear", WRONG: "wrong", EMPTY: "empty"}
# The other fixed words of a critique, for the vocabulary.
PHRASES = (
    *(f" {verdict}" for verdict in (*_VERDICTS.values(), "both", "nothing")),
    *("result", " sounds sure.", " sounds unsure.", " yes", " no", ",", "}"),
)


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative weights of the errors in a text with an error."""

    slip: float = 0.4  # the working ends at a wrong result
    principle: float = 0.1  # the main principle is another family's, and the result is wrong
    misread: float = 0.25  # one verdict is inverted
    tie: float = 0.25  # the best shares its score with another


def critique(
    comparison: Comparison,
    order: Sequence[int],
    rng: random.Random | int,
    accuracy: float = 0.75,
    *,
    shortcut: float = 0.25,
    hint: int | None = None,
    errors: Errors = Errors(),
    principles: bool = True,
) -> str:
    """Writes one critique.

    Args:
      comparison: from `world.make_items`.
      order: order[j] is the caller's index of the response shown at position j.
      rng: a generator, or a seed for one.
      accuracy: probability that a text with working has no error.
      shortcut: share of texts that skip the working and judge by manner; they are correct about as
        often as chance.
      hint: caller's index of the best response, for a hinted text. Its working has no slip, and a
        shortcut follows the hint.
      errors: distribution of the errors.
      principles: whether the text starts with principles.

    Returns:
      Principles, analysis, and the boxed scores in prompt order.

    Raises:
      ValueError: the comparison is not from the world, or `order` is not a permutation.
    """
    world = comparison.meta.get("world")
    if world is None:
        raise ValueError(
            f"comparison {comparison.id!r} has no meta['world']: the teacher needs world items"
        )
    if sorted(order) != list(range(comparison.n)):
        raise ValueError(f"order {tuple(order)} is not a permutation of {comparison.n} responses")
    rng = random.Random(rng) if isinstance(rng, int) else rng
    short, error = rng.random() < shortcut, ""
    if short:
        analysis, scores = _by_manner(world, order, rng, hint)
    else:
        if hint is None and rng.random() >= accuracy:
            weights = dataclasses.asdict(errors)
            error = rng.choices(tuple(weights), tuple(weights.values()))[0]
        analysis, scores = _by_working(world, order, rng, error)
    head = _principles(world, rng, short, error == "principle") + "\n\n" if principles else ""
    return f"{head}{analysis}\n\n\\boxed{{{', '.join(map(str, scores))}}}"


def _principles(world: Mapping, rng: random.Random, short: bool, improper: bool) -> str:
    family = world["family"]
    if improper:
        family = rng.choice([name for name in TRAINED_NAMES if name != family])
    main = _SHALLOW if short else ("Instruction" if family in _RULED else "Accuracy", AIMS[family])
    weight = rng.choice(WEIGHTS[:3])
    lines = [(main, weight), (rng.choice(_SECOND), 100 - weight)]
    return "\n".join(f"{name} ({share}%): {text}" for (name, text), share in lines)


def _by_manner(
    world: Mapping, order: Sequence[int], rng: random.Random, hint: int | None
) -> tuple[str, list[int]]:
    """A shortcut: the best is the response that sounds surest, or the hinted one."""
    if len(order) == 1:
        good = world["grades"][0] == RIGHT if hint is not None else rng.random() < 0.5
        return ("1 sounds sure." if good else "1 sounds unsure."), [int(good)]
    sure = {"sure": 3, "wordy": 2, "plain": 1, "terse": 0}
    appeal = [sure[world["manners"][i]] + rng.random() * 1.5 for i in order]
    chosen = (
        order.index(hint) if hint is not None else max(range(len(order)), key=appeal.__getitem__)
    )
    scores = [
        rng.choice((8, 9)) if j == chosen else rng.choice((3, 4, 5)) for j in range(len(order))
    ]
    return f"{chosen + 1} sounds sure.", scores


def _by_working(
    world: Mapping, order: Sequence[int], rng: random.Random, error: str
) -> tuple[str, list[int]]:
    """Computes the result, compares each response with it, and scores by verdict."""
    result = world["result"]
    readings, grades = ([world[name][i] for i in order] for name in ("readings", "grades"))
    if error in ("slip", "principle"):
        result = _slipped(world, readings, rng)
        # Hedged and empty responses keep their grade under the wrong result.
        grades = [
            g if g in (HEDGED, EMPTY) else RIGHT if reading == result else WRONG
            for g, reading in zip(grades, readings)
        ]
    elif error == "misread":
        j = rng.randrange(len(grades))
        grades[j] = WRONG if grades[j] == RIGHT else RIGHT
    lines = [f"result {result}"]
    lines += [
        f"{j + 1}: {reading} {_VERDICTS[g]}" for j, (reading, g) in enumerate(zip(readings, grades))
    ]
    scores = [rng.choice(_SCORES[g]) for g in grades]
    if len(order) == 1:
        scores = [int(grades[0] == RIGHT) if error != "tie" else 1 - int(grades[0] == RIGHT)]
    elif error == "tie":
        rivals = sorted(range(len(scores)), key=scores.__getitem__)
        scores[rivals[-2]] = scores[rivals[-1]]
    return "\n".join(lines), scores


def _slipped(world: Mapping, readings: Sequence[str], rng: random.Random) -> str:
    """A wrong result: half the time that of a response, which then appears correct."""
    shown = [r for r in readings if r not in (world["result"], "both", "nothing")]
    if shown and rng.random() < 0.5:
        return rng.choice(shown)
    return FAMILIES[world["family"]].slip(rng, tuple(world["args"]), world["result"])
