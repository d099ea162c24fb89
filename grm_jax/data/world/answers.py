"""Tasks of the judging world for a policy: a query, and the true quality of any answer to it.

    task = answers.task(0, seed=0, split="train")
    task.query                  # "largest of 4 7"
    task.truth("it is: 7")      # 1.0
    task.truth("it is: 4")      # 0.1
    task.demonstrations(4)      # answers of mixed quality

Task i of a split is a pure function of the seed, the split's name and i, as an item of the world.
Its truth is the world's grade of the text, so no judge is involved.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

from grm_jax.data.world.families import FAMILIES, LETTERS, TRAINED_NAMES, WORDS, Args
from grm_jax.data.world.items import DEFAULT, WorldConfig, checked_families, draw_query
from grm_jax.data.world.responses import (
    EMPTY,
    HEDGED,
    OPENINGS,
    RIGHT,
    WRONG,
    answer_of,
    grade,
    write_response,
)
from grm_jax.types import Comparison

WRONG_QUALITY = 0.1  # of an answer with a wrong result: above no answer, below every hedge of two
_MIX = {RIGHT: 0.4, HEDGED: 0.1, WRONG: 0.4, EMPTY: 0.1}  # grades of demonstrations
_ITEMS = {*LETTERS, *WORDS, *(word.upper() for word in WORDS), "yes", "no", "or"}


@dataclasses.dataclass(frozen=True)
class Task:
    """A query of the judging world.

    Attributes:
      query: its text, as comparisons of the world have it.
      family, level, args: the world's parameters of the query.
    """

    query: str
    family: str
    args: Args
    level: int = 0
    id: str | None = None

    @classmethod
    def of(cls, comparison: Comparison) -> "Task":
        """Returns the task whose answers a comparison of the world compares.

        Raises ValueError for a comparison that is not of the world.
        """
        world: Mapping | None = comparison.meta.get("world")
        if world is None or not isinstance(comparison.query, str):
            raise ValueError(
                f"comparison {comparison.id!r} has no meta['world']: only world items have a truth"
            )
        args = tuple(world["args"])
        return cls(comparison.query, world["family"], args, world["level"], comparison.id)

    def truth(self, answer: str) -> float:
        """Returns the true quality of a text as an answer to the query, in [0, 1].

        1 for the correct result; 1/n for a hedge of n results with the correct one among them; 0.1
        for a wrong result; 0 for a text that is no answer: empty, an opening alone, a refusal, or
        with words that no answer of the world has.
        """
        graded = grade(FAMILIES[self.family], self.args, answer)
        if graded == RIGHT:
            return 1.0
        if graded == HEDGED:
            return 1 / len(answer_of(answer).split(" or "))
        return WRONG_QUALITY if graded == WRONG and _is_answer(answer) else 0.0

    def demonstrations(self, n: int) -> list[str]:
        """Returns n answers of mixed quality, for the supervised start of a policy.

        Answer i is a function of the task and i. In expectation 40% are correct, 10% hedged, 40%
        wrong and 10% no answer.
        """
        family, texts = FAMILIES[self.family], []
        for i in range(n):
            rng = random.Random(f"demonstration/{self.id}/{self.query}/{i}")
            target = rng.choices(tuple(_MIX), tuple(_MIX.values()))[0]
            texts.append(write_response(rng, family, self.args, target))
        return texts


def task(
    index: int,
    seed: int,
    split: str,
    families: Sequence[str] | None = None,
    config: WorldConfig = DEFAULT,
) -> Task:
    """Returns task `index` of a split.

    Args:
      index: 0 or more.
      seed: of the world.
      split: "train", "validation" or "test". No query of a family that is not closed is in two
        splits.
      families: names of the families to draw from, equally often; the trained ones by default.
      config: distribution of the levels.

    Raises:
      ValueError: unknown split or family, or a negative index.
    """
    names = checked_families(split, index, 1, families, TRAINED_NAMES)
    rng = random.Random(f"task/{seed}/{split}/{index}")
    family, level, args = draw_query(rng, split, names, config)
    return Task(family.ask(args), family.name, args, level, f"task-{seed}-{split}-{index}")


def _is_answer(text: str) -> bool:
    """Whether a text ends in items of the world: letters, numbers, words, yes or no."""
    items = answer_of(text).split()
    is_opening = any(text.strip() == o.strip() for openings in OPENINGS.values() for o in openings)
    return bool(items) and not is_opening and all(i in _ITEMS or i.isdecimal() for i in items)
