"""Writes the training files of experiments/spct_gsm8k.py from published GSM8K model solutions.

    python studies/gsm8k_critiques.py DATA/example_model_solutions.jsonl data/gsm8k

Writes to data/gsm8k:

    train.jsonl, held_out.jsonl   pairs of a right and a wrong solution; the problems are disjoint
    critiques.jsonl               3 plain and 1 hinted critique per training pair, template `grm`
    general.jsonl                 the training problems with their worked solutions

No model that can judge these pairs fits the machines that this is for, so a script plays the
sampling model. It has the worked solution, derives the result, compares final answers, and errs at
a given rate; RFT rejects its errors like those of any sampler.
"""

import argparse
import contextlib
import dataclasses
import random
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from grm_jax import strict_json
from grm_jax.data.comparisons import read_comparisons
from grm_jax.types import Comparison

HELD_OUT_SHARDS = 4  # of 16, by a hash of the question
PRINCIPLES = (
    ("Correct result", "the final answer is the number that the problem asks for"),
    ("Sound steps", "every step follows from the problem"),
    ("Right quantities", "each number of the problem is used for what it stands for"),
    ("Complete work", "no condition of the problem is left out"),
)


def final_answer(solution: str) -> str:
    """Returns the text after the last "A:" of a solution, else its last number."""
    if "A:" in solution:
        return solution.rsplit("A:", 1)[1].strip()
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", solution)
    return numbers[-1] if numbers else "nothing"


def critique(
    pair: Comparison, order: Sequence[int], rng: random.Random, accuracy: float, hinted: bool
) -> str:
    """Writes one critique of a pair, shown in `order`.

    An unhinted critique errs with probability 1 - accuracy: its derivation ends at a wrong result,
    mostly that of the wrong response, and its verdicts follow.
    """
    solution = pair.meta["reference"]
    answers = [final_answer(pair.responses[i]) for i in order]
    best = order.index(pair.best)
    result = final_answer(solution)
    if not hinted and rng.random() > accuracy:
        result = answers[1 - best] if rng.random() < 0.7 else answers[best] + "0"
    first, second = rng.sample(PRINCIPLES, 2)
    weight = rng.choice((60, 70, 80))
    lines = [
        "### Principles",
        f"1. {first[0]} ({weight}%): {first[1]}",
        f"2. {second[0]} ({100 - weight}%): {second[1]}",
        "",
        "### Analysis",
        solution.rsplit("A:", 1)[0].strip(),
        f"So the answer is {result}.",
    ]
    scores = []
    for number, answer in enumerate(answers, 1):
        right = answer == result
        verdict = "right" if right else "wrong"
        lines.append(f"Response {number} ends with {answer}, which is {verdict}.")
        scores.append(rng.choice((8, 9) if right else (2, 3)))
    return "\n".join([*lines, "", "### Scores", f"\\boxed{{{', '.join(map(str, scores))}}}"])


def rows_of(pair: Comparison, accuracy: float, seed: int) -> list[tuple[str, dict]]:
    """Returns (file, row) for all rows that one pair contributes."""
    fields = ("query", "responses", "label", "id", "meta")
    row = {field: getattr(pair, field) for field in fields}
    if zlib.crc32(pair.query.encode()) % 16 < HELD_OUT_SHARDS:
        return [("held_out", row)]
    rows = [("train", row), ("general", {"query": pair.query, "answer": pair.meta["reference"]})]
    rng = random.Random(f"gsm8k/{seed}/{pair.id}")
    for hinted in (False, False, False, True):
        order = tuple(rng.sample(range(pair.n), pair.n))
        text = critique(pair, order, rng, accuracy, hinted)
        rows.append(("critiques", {"id": pair.id, "text": text, "order": order, "hinted": hinted}))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("solutions", help="example_model_solutions.jsonl of grade-school-math")
    parser.add_argument("out", help="folder for the files")
    parser.add_argument("--accuracy", type=float, default=0.6, help="of an unhinted critique")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(("train", "held_out", "critiques", "general"), 0)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context((out / f"{name}.jsonl").open("w", encoding="utf-8"))
            for name in counts
        }
        for pair in read_comparisons(args.solutions, "gsm8k_pairs"):
            # Pairs keep the worked solution in their metadata, hidden from the judge.
            hidden = dataclasses.replace(pair, meta={"reference": pair.reference})
            for name, row in rows_of(hidden, args.accuracy, args.seed):
                files[name].write(strict_json.dumps(row) + "\n")
                counts[name] += 1
    print(", ".join(f"{count} {name}" for name, count in counts.items()), "in", out)


if __name__ == "__main__":
    main()
