"""The judging world: comparisons whose labels follow from rules.

Item i of a split is a pure function of the seed, the split's name and i. So a position is all the
state there is, hosts can read disjoint ranges, and an item is the same on every machine.

    items = make_items("train", start=0, count=64, seed=0)      # trained families
    items = make_items("test", 0, 64, families=HELD_OUT_NAMES)  # families not judged in training
    chats = general_items("train", 0, 64)                       # query -> correct answer
"""

import dataclasses
import hashlib
import math
import random
from collections.abc import Mapping, Sequence

from grm_jax.data.world.families import FAMILIES, LEVELS, TRAINED_NAMES, Args, Family
from grm_jax.data.world.responses import (
    EMPTY,
    HEDGED,
    RIGHT,
    WRONG,
    draw_opening,
    grade,
    manner_of,
    reading_of,
    write_response,
)
from grm_jax.types import Comparison

# Tenths of the hash space of queries that belong to each split.
SPLITS = {"train": range(0, 8), "validation": range(8, 9), "test": range(9, 10)}
_MAX_TRIES = 200


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The distribution of items.

    Attributes:
      levels: difficulty level -> weight.
      sizes: number of responses -> weight.
      best_hedged: share of comparisons whose best response is hedged (a correct result and a wrong
        one).
      distractors: weight of each lower grade (HEDGED, WRONG, EMPTY) among the other responses.
      reference: whether comparisons have a correct answer as reference. Off by default: a template
        may show it to the judge.
    """

    levels: Mapping[int, float] = dataclasses.field(
        default_factory=lambda: {0: 0.4, 1: 0.4, 2: 0.2}
    )
    sizes: Mapping[int, float] = dataclasses.field(
        default_factory=lambda: {1: 0.1, 2: 0.55, 3: 0.2, 4: 0.09, 5: 0.03, 6: 0.03}
    )
    best_hedged: float = 0.06
    distractors: Mapping[int, float] = dataclasses.field(
        default_factory=lambda: {HEDGED: 0.12, WRONG: 0.76, EMPTY: 0.12}
    )
    reference: bool = False

    def __post_init__(self) -> None:
        for name in ("levels", "sizes", "distractors"):
            weights = getattr(self, name)
            is_valid = all(math.isfinite(w) and w >= 0 for w in weights.values())
            if not is_valid or not sum(weights.values()):
                raise ValueError(
                    f"{name} {dict(weights)}: weights are 0 or more, not all of them 0"
                )
        if not 0 <= self.best_hedged <= 1:
            raise ValueError(f"best_hedged {self.best_hedged}: use a share from 0 to 1")
        if unknown := set(self.levels) - set(LEVELS):
            raise ValueError(f"levels {sorted(unknown)} do not exist: use {LEVELS}")
        if bad := [n for n in self.sizes if not isinstance(n, int) or n < 1]:
            raise ValueError(f"sizes {bad}: a comparison has at least one response")
        lower = {HEDGED, WRONG, EMPTY}
        if unknown := set(self.distractors) - lower:
            raise ValueError(f"distractors {sorted(unknown)} are no grades: use {sorted(lower)}")
        if not any(self.distractors.get(grade) for grade in (WRONG, EMPTY)):
            raise ValueError(
                f"distractors {dict(self.distractors)}: weigh {WRONG} or {EMPTY} above 0, the "
                f"grades below a hedged best response"
            )


DEFAULT = WorldConfig()


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A general instruction with a correct answer."""

    query: str
    answer: str
    id: str
    meta: dict = dataclasses.field(default_factory=dict)


def make_items(
    split: str,
    start: int,
    count: int,
    seed: int = 0,
    families: Sequence[str] | None = None,
    config: WorldConfig = DEFAULT,
) -> list[Comparison]:
    """Returns comparisons start ... start + count - 1 of a split.

    Args:
      split: "train", "validation" or "test". No item, and no query of a family that is not closed,
        is in two splits.
      start: index of the first item, 0 or more.
      count: number of items.
      seed: of the world.
      families: names of the families to draw from, equally often; the trained ones by default.
      config: distribution of levels, sizes and grades.

    Returns:
      Comparisons. `label` is the index of the single best response; of a single response (1.0,) or
      (0.0,). `meta["world"]` has family, level, arguments, result, and the grade, reading and
      manner of each response.

    Raises:
      ValueError: unknown split or family, or a negative range.
    """
    names = checked_families(split, start, count, families, TRAINED_NAMES)
    return [_comparison(split, i, seed, names, config) for i in range(start, start + count)]


def general_items(
    split: str,
    start: int,
    count: int,
    seed: int = 0,
    families: Sequence[str] | None = None,
    config: WorldConfig = DEFAULT,
) -> list[Instruction]:
    """Returns general instructions start ... start + count - 1 of a split, with correct answers.

    They cover all families: of the held-out ones only the judging is held out. Arguments as in
    `make_items`.
    """
    names = checked_families(split, start, count, families, tuple(FAMILIES))
    return [_instruction(split, i, seed, names, config) for i in range(start, start + count)]


def checked_families(
    split: str, start: int, count: int, families: Sequence[str] | None, default: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the names of the families to draw from; raises ValueError as `make_items`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if start < 0 or count < 0:
        raise ValueError(f"start {start} and count {count} must not be negative")
    names = tuple(families) if families is not None else default
    if not names:
        raise ValueError(
            "families is empty: name at least one family, or pass None for the default ones"
        )
    for name in names:
        FAMILIES[name]  # raises for an unknown one
    return names


def _pick(rng: random.Random, weights: Mapping[int, float]) -> int:
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


def _bucket(*parts: str) -> int:
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % 10


def _in_split(split: str, family: Family, query: str, responses: Sequence[str] = ()) -> bool:
    """Whether the item belongs to the split: by its query, in closed families by its responses."""
    if not family.closed:
        return _bucket(query) in SPLITS[split]
    return not responses or _bucket(query, *sorted(responses)) in SPLITS[split]


def _comparison(
    split: str, index: int, seed: int, names: tuple[str, ...], config: WorldConfig
) -> Comparison:
    rng = random.Random(f"judging/{seed}/{split}/{index}")
    family = FAMILIES[rng.choice(names)]
    level, n = _pick(rng, config.levels), _pick(rng, config.sizes)
    for _ in range(_MAX_TRIES):
        args = family.draw(rng, level)
        query = family.ask(args)
        responses = _responses(rng, family, args, n, config)
        if responses and _in_split(split, family, query, responses):
            id = f"world-{seed}-{split}-{index}"
            return _as_comparison(id, family, level, args, responses, config.reference)
    raise ValueError(
        f"no item of family {family.name!r}, level {level}, with {n} responses is in split "
        f"{split!r}: use fewer responses"
    )


def _responses(
    rng: random.Random, family: Family, args: Args, n: int, config: WorldConfig
) -> list[str] | None:
    """n responses in random order, one of them with the highest grade; None if the draw fails."""
    best = RIGHT if rng.random() >= config.best_hedged else HEDGED
    if n == 1:
        targets = [best if rng.random() < 0.5 else _pick(rng, config.distractors)]
    else:
        lower = {g: w for g, w in config.distractors.items() if g < best}
        targets = [best, *(_pick(rng, lower) for _ in range(n - 1))]
    responses: list[str] = []
    for target in targets:
        suitable = None
        for _ in range(12):
            response = write_response(rng, family, args, target)
            if grade(family, args, response) == target:
                suitable = response
                if response not in responses:  # otherwise one that repeats, if all 12 do
                    break
        if suitable is None:
            return None
        responses.append(suitable)
    rng.shuffle(responses)
    return responses


def _as_comparison(
    id: str, family: Family, level: int, args: Args, responses: list[str], with_reference: bool
) -> Comparison:
    grades = [grade(family, args, response) for response in responses]
    result = family.solve(args)
    world = {
        "family": family.name,
        "level": level,
        "args": list(args),
        "result": result,
        "grades": grades,
        "readings": [reading_of(family, args, response) for response in responses],
        "manners": [manner_of(response) for response in responses],
    }
    if len(responses) == 1:
        label: int | tuple[float, ...] = (float(grades[0] == RIGHT),)
    else:
        label = grades.index(max(grades))
    reference = family.write(random.Random(id), args, result) if with_reference else None
    return Comparison(family.ask(args), tuple(responses), reference, label, id, {"world": world})


def believing(truth: Mapping, label: int | tuple[float, ...], rng: random.Random) -> dict:
    """Returns meta["world"] as if `label` were the truth.

    The control with shuffled labels needs it: the teacher must not see the true label.
    """
    grades, readings = list(truth["grades"]), truth["readings"]
    if isinstance(label, int):
        best = grades.index(max(grades))
        grades[best], grades[label] = grades[label], grades[best]
        believed = label if label != best else None
    else:
        right = bool(label[0])
        believed = None if right == (grades[0] == RIGHT) else 0
        if believed == 0:
            grades[0] = RIGHT if right else WRONG
    if believed is None:
        return {**truth}
    result = readings[believed]
    if grades[believed] != RIGHT or result in ("both", "nothing"):
        result = FAMILIES[truth["family"]].slip(rng, tuple(truth["args"]), truth["result"])
    return {**truth, "grades": grades, "result": result}


def _instruction(
    split: str, index: int, seed: int, names: tuple[str, ...], config: WorldConfig
) -> Instruction:
    rng = random.Random(f"general/{seed}/{split}/{index}")
    family, level, args = draw_query(rng, split, names, config)
    answer = draw_opening(rng, brief=True) + family.write(rng, args, family.solve(args))
    meta = {"family": family.name, "level": level}
    return Instruction(family.ask(args), answer, f"general-{seed}-{split}-{index}", meta)


def draw_query(
    rng: random.Random, split: str, names: Sequence[str], config: WorldConfig
) -> tuple[Family, int, Args]:
    """Draws (family, level, arguments) of a query of a split. Raises ValueError without one."""
    family = FAMILIES[rng.choice(names)]
    level = _pick(rng, config.levels)
    for _ in range(_MAX_TRIES):
        args = family.draw(rng, level)
        if _in_split(split, family, family.ask(args)):
            return family, level, args
    raise ValueError(f"no query of family {family.name!r}, level {level}, is in split {split!r}")
