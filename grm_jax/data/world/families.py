"""Task families of the judging world: their queries, correct results and near misses.

A family is a few small functions over one tuple of arguments. `draw` samples the arguments at a
difficulty level, `ask` writes the query, `solve` computes the result, `write` puts a result into
an answer, and `read` extracts it. An answer is correct if and only if `read(arguments, answer) ==
solve(arguments)`. For most families `write` and `read` are the identity; an instruction-following
one has many correct answers ("write 3 words"), and `read` measures them.
"""

import dataclasses
import random
from collections.abc import Callable

from grm_jax.registry import Registry

LEVELS = (0, 1, 2, 3)  # difficulty: longer lists, larger numbers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Short, common and distinct: each, and its capitals, is one piece of a small vocabulary.
WORDS = (
    "cat",
    "dog",
    "sun",
    "tree",
    "fish",
    "bird",
    "moon",
    "rain",
    "milk",
    "bread",
    "stone",
    "river",
)

Args = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of task.

    Attributes:
      name: unique name.
      draw: (rng, level) -> arguments, a tuple of strings.
      ask: arguments -> query text.
      solve: arguments -> the correct result.
      slip: (rng, arguments, result) -> a near miss, never equal to `result`.
      write: (rng, arguments, result) -> an answer with this result.
      read: (arguments, answer) -> the answer's result.
      closed: whether there are few distinct queries (facts to know). Their queries recur across
        splits; every other family keeps each query in one split.
    """

    name: str
    draw: Callable[[random.Random, int], Args]
    ask: Callable[[Args], str]
    solve: Callable[[Args], str]
    slip: Callable[[random.Random, Args, str], str]
    write: Callable[[random.Random, Args, str], str] = lambda rng, args, result: result
    read: Callable[[Args, str], str] = lambda args, text: text
    closed: bool = False


# ---------------------------------------------------------------- slips: near misses of a result


def _off_by(rng: random.Random, args: Args, result: str) -> str:
    """A number one or two away, never negative."""
    return str(rng.choice([n for d in (-2, -1, 1, 2) if (n := int(result) + d) >= 0]))


def _other_item(rng: random.Random, args: Args, result: str) -> str:
    return rng.choice([item for item in args if item != result])


def _swap_two(rng: random.Random, args: Args, result: str) -> str:
    """Swaps two adjacent unequal items; alters one if all are equal."""
    items = result.split()
    spots = [i for i in range(len(items) - 1) if items[i] != items[i + 1]]
    if not spots:
        return _alter_one(rng, args, result)
    i = rng.choice(spots)
    items[i], items[i + 1] = items[i + 1], items[i]
    return " ".join(items)


def _alter_one(rng: random.Random, args: Args, result: str) -> str:
    """Replaces one item by another of its kind (letter, digit, or word in the same case)."""
    items = result.split()
    i = rng.randrange(len(items))
    items[i] = rng.choice([k for k in _kin(items[i]) if k != items[i]])
    return " ".join(items)


def _kin(item: str) -> tuple[str, ...]:
    if item.isdigit():
        return tuple("0123456789")
    if len(item) == 1:
        return tuple(LETTERS[:12])
    return tuple(w.upper() for w in WORDS) if item.isupper() else WORDS


# ---------------------------------------------------------------- draws: arguments at a level


def _letters(rng: random.Random, count: int) -> tuple[str, ...]:
    return tuple(rng.choice(LETTERS[:12]) for _ in range(count))


def _distinct_letters(rng: random.Random, count: int) -> tuple[str, ...]:
    return tuple(rng.sample(LETTERS[:12], count))


def _numbers(rng: random.Random, level: int) -> tuple[str, ...]:
    """Distinct numbers: 2, 3 or 4 digits, or at level 3 four numbers of two digits."""
    pool = range(10, 100) if level == 3 else range(10)
    return tuple(str(v) for v in rng.sample(pool, min(2 + level, 4)))


def _sum_args(rng: random.Random, level: int) -> Args:
    return tuple(str(rng.randint(0, n)) for n in ((4, 4), (9, 9), (39, 9), (49, 49))[level])


def _count_args(rng: random.Random, level: int) -> Args:
    target = rng.choice(LETTERS[:12])
    others = _letters(rng, 3 + level)
    return (target, *(target if rng.random() < 0.4 else other for other in others))


def _member_args(rng: random.Random, level: int) -> Args:
    items = _distinct_letters(rng, 2 + level)
    if rng.random() < 0.5:
        return (rng.choice(items), *items)
    return (rng.choice([letter for letter in LETTERS[:12] if letter not in items]), *items)


def _edit_args(rng: random.Random, level: int) -> Args:
    """(old, new, *items): old occurs once among the items, new never."""
    old, new, *items = _distinct_letters(rng, 4 + level)
    items.insert(rng.randrange(len(items) + 1), old)
    return (old, new, *items)


def _other_words(rng: random.Random, args: Args, result: str, *, first: bool) -> str:
    """Two or three words of which the first, or the last, is `result`."""
    rest = rng.sample([w for w in WORDS if w not in (result, *args)], rng.choice((1, 2)))
    return " ".join([result, *rest] if first else [*rest, result])


def _other_word(rng: random.Random, args: Args, result: str) -> str:
    return rng.choice([w for w in WORDS if w != result])


# ---------------------------------------------------------------- the families

TRAINED = (
    Family(
        "add",
        _sum_args,
        lambda a: f"add {a[0]} {a[1]}",
        lambda a: str(int(a[0]) + int(a[1])),
        _off_by,
        closed=True,
    ),
    Family(
        "largest",
        _numbers,
        lambda a: "largest of " + " ".join(a),
        lambda a: max(a, key=int),
        _other_item,
    ),
    Family(
        "sort",
        _numbers,
        lambda a: "sort " + " ".join(a),
        lambda a: " ".join(sorted(a, key=int)),
        _swap_two,
    ),
    Family(
        "reverse",
        lambda rng, level: _distinct_letters(rng, 2 + level),
        lambda a: "reverse " + " ".join(a),
        lambda a: " ".join(reversed(a)),
        _swap_two,
    ),
    Family(
        "repeat",
        lambda rng, level: _letters(rng, 2 + level),
        lambda a: "repeat " + " ".join(a),
        " ".join,
        _alter_one,
    ),
    Family(
        "count",
        _count_args,
        lambda a: f"count {a[0]} in " + " ".join(a[1:]),
        lambda a: str(a[1:].count(a[0])),
        _off_by,
    ),
    Family(
        "member",
        _member_args,
        lambda a: f"is {a[0]} in " + " ".join(a[1:]),
        lambda a: "yes" if a[0] in a[1:] else "no",
        lambda rng, a, result: "no" if result == "yes" else "yes",
    ),
    Family(
        "last",
        lambda rng, level: _distinct_letters(rng, 2 + level),
        lambda a: "last of " + " ".join(a),
        lambda a: a[-1],
        _other_item,
    ),
    Family(
        "replace",
        _edit_args,
        lambda a: f"put {a[1]} for {a[0]} in " + " ".join(a[2:]),
        lambda a: " ".join(a[1] if item == a[0] else item for item in a[2:]),
        _alter_one,
    ),
    Family(
        "capitals",
        lambda rng, level: tuple(rng.sample(WORDS, 1 + level)),
        lambda a: "in capitals " + " ".join(a),
        lambda a: " ".join(a).upper(),
        _alter_one,
        closed=True,
    ),
    Family(
        "length",
        lambda rng, level: (str(rng.randint(1, 2 + level)),),
        lambda a: f"write {a[0]} words",
        lambda a: a[0],
        lambda rng, a, result: str(
            rng.choice([v for v in range(1, 7) if 0 < abs(v - int(result)) <= 2])
        ),
        write=lambda rng, a, result: " ".join(rng.sample(WORDS, int(result))),
        read=lambda a, body: str(len(body.split())),
        closed=True,
    ),
    Family(
        "ending",
        lambda rng, level: (rng.choice(WORDS),),
        lambda a: f"end with {a[0]}",
        lambda a: a[0],
        _other_word,
        write=lambda rng, a, result: _other_words(rng, a, result, first=False),
        read=lambda a, body: (body.split() or [""])[-1],
        closed=True,
    ),
)

# In the general instructions, but not judged in training: they measure generalisation of judging.
HELD_OUT = (
    Family(
        "smallest",
        _numbers,
        lambda a: "smallest of " + " ".join(a),
        lambda a: min(a, key=int),
        _other_item,
    ),
    Family(
        "descend",
        _numbers,
        lambda a: "sort down " + " ".join(a),
        lambda a: " ".join(sorted(a, key=int, reverse=True)),
        _swap_two,
    ),
    Family(
        "first",
        lambda rng, level: _distinct_letters(rng, 2 + level),
        lambda a: "first of " + " ".join(a),
        lambda a: a[0],
        _other_item,
    ),
    Family(
        "remove",
        _edit_args,
        lambda a: f"drop {a[0]} from " + " ".join(a[2:]),
        lambda a: " ".join(item for item in a[2:] if item != a[0]),
        _alter_one,
    ),
    Family(
        "opening",
        lambda rng, level: (rng.choice(WORDS),),
        lambda a: f"begin with {a[0]}",
        lambda a: a[0],
        _other_word,
        write=lambda rng, a, result: _other_words(rng, a, result, first=True),
        read=lambda a, body: (body.split() or [""])[0],
        closed=True,
    ),
)

FAMILIES: Registry[Family] = Registry("family")
for _family in (*TRAINED, *HELD_OUT):
    FAMILIES.add(_family.name, _family)
TRAINED_NAMES = tuple(family.name for family in TRAINED)
HELD_OUT_NAMES = tuple(family.name for family in HELD_OUT)
