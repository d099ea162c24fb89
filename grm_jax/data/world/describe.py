"""Prints statistics of the judging world: lengths, label balance, content-blind policies, teacher.

python -m grm_jax.data.world.describe [ITEMS]
"""

import collections
import random
import sys

import numpy as np

from grm_jax.data import world
from grm_jax.data.world import teacher
from grm_jax.data.world.controls import CONTROLS
from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.text import parse, rendering, tokenizer
from grm_jax.types import Comparison


def lengths(items: list[Comparison], family: str = "compact") -> dict[int, np.ndarray]:
    """Returns {number of responses: (items, 3) tokens of prompt, critique and meta RM input}."""
    tok = tokenizer.load(vocabulary_path())
    tokens = collections.defaultdict(list)
    for i, c in enumerate(items):
        name = rendering.single_binary(family) if c.n == 1 else family
        text = teacher.critique(c, range(c.n), i)
        meta = tok.encode_chat(rendering.render(f"{family}/meta_rm", c, critique=text))
        prompt = tok.encode_chat(rendering.render(name, c))
        tokens[c.n].append((len(prompt), len(tok.encode(text)) + 1, len(meta)))
    return {n: np.array(counts) for n, counts in sorted(tokens.items())}


def controls(items: list[Comparison]) -> dict[str, float]:
    """Returns the accuracy of chance and each policy on comparisons of two or more responses."""
    many = [c for c in items if c.n >= 2]
    accuracy = {"chance": sum(1 / c.n for c in many) / len(many)}
    for name, policy in CONTROLS.items():
        accuracy[name] = sum(policy(c) == c.rewards for c in many) / len(many)
    return accuracy


def teacher_rates(items: list[Comparison], accuracy: float, shortcut: float) -> tuple[float, float]:
    """Returns the teacher's accuracy by the strict rule and its share of ties with the best."""
    right = tied = 0
    for i, c in enumerate(items):
        order = random.Random(i).sample(range(c.n), c.n)
        text = teacher.critique(c, order, i, accuracy, shortcut=shortcut)
        scores = parse(text, c.n, 0 if c.n == 1 else 1, 1 if c.n == 1 else 10).scores or ()
        if c.n == 1:
            right += scores == c.rewards
            continue
        rewards = [(c.rewards or ())[i] for i in order]
        is_top = [float(score == max(scores)) for score in scores]
        right += is_top == rewards
        tied += is_top != rewards and is_top[rewards.index(1.0)] == 1.0
    return right / len(items), tied / len(items)


def main(count: int = 4000) -> None:
    """Prints the statistics of the first `count` items."""
    items = world.make_items("train", 0, count)
    print(f"{count} items of split train, seed 0\n")
    print("tokens (p50 p95 max): prompt, critique, meta RM input")
    by_size = lengths(items)
    for n, rows in [*by_size.items(), ("all", np.concatenate(list(by_size.values())))]:
        cells = [
            " ".join(f"{v:3.0f}" for v in np.percentile(rows[:, j], (50, 95, 100)))
            for j in range(3)
        ]
        print(f"  {n} responses ({len(rows)}): " + "   ".join(cells))
    print("\nposition of the best response")
    for n in (2, 3, 4):
        places = collections.Counter(c.label for c in items if c.n == n)
        shares = " ".join(f"{places[i] / places.total():.3f}" for i in range(n))
        print(f"  {n} responses: {shares}")
    print("\naccuracy of content-blind policies, two or more responses")
    for name, value in controls(items).items():
        print(f"  {name:9s} {value:.3f}")
    print("\nteacher: set accuracy, shortcuts -> measured accuracy, ties with the best")
    rates = ((1, 0), (0.9, 0), (0.75, 0), (0.75, 0.25), (0.75, 0.5), (0.5, 0), (0.5, 0.5))
    for accuracy, shortcut in rates:
        right, tied = teacher_rates(items, accuracy, shortcut)
        print(f"  {accuracy:.2f} {shortcut:.2f} -> {right:.3f} {tied:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
