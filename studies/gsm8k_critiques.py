"""Makes the files that experiments/spct_gsm8k.py trains on, from the published GSM8K groups of four model solutions.

    python studies/gsm8k_critiques.py DATA/example_model_solutions.jsonl data/gsm8k

Writes train.jsonl and held_out.jsonl (pairs of a right and a wrong solution; a problem is on one side only), critiques.jsonl (three plain and
one hinted critique of each training pair, in the `grm` form) and general.jsonl (the problems of the training side with their worked solutions).
No model that could judge these fits the machines this is for, so a script plays the sampling model: it knows the worked solution, works it out,
compares final answers, and errs at a given rate; what it gets wrong is rejected as any sampler's errors are.
"""

import argparse
import json
import random
import re
import zlib
from pathlib import Path

from grm_jax.data.comparisons import read_comparisons

HELD_OUT = 4  # of 16 parts, by hash of the question
PRINCIPLES = (
    ("Correct result", "the final answer is the number that the problem asks for"),
    ("Sound steps", "every step follows from the problem"),
    ("Right quantities", "each number of the problem is used for what it stands for"),
    ("Complete work", "no condition of the problem is left out"),
)


def final_answer(solution: str) -> str:
    """What a solution ends with: the text after its last "A:", else its last number."""
    if "A:" in solution:
        return solution.rsplit("A:", 1)[1].strip()
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", solution)
    return numbers[-1] if numbers else "nothing"


def critique(comparison, order, rng: random.Random, accuracy: float, hinted: bool) -> str:
    """One critique in prompt order. After an error the working ends at a wrong response's answer, and the verdicts follow it."""
    shown = [final_answer(comparison.responses[i]) for i in order]
    best = order.index(comparison.best)
    working = comparison.meta["reference"].rsplit("A:", 1)[0].strip()
    result = final_answer(comparison.meta["reference"])
    if not hinted and rng.random() > accuracy:
        result = shown[1 - best] if rng.random() < 0.7 else shown[best] + "0"
    first, second = rng.sample(PRINCIPLES, 2)
    weight = rng.choice((60, 70, 80))
    lines = [
        "### Principles",
        f"1. {first[0]} ({weight}%): {first[1]}",
        f"2. {second[0]} ({100 - weight}%): {second[1]}",
        "",
    ]
    lines += ["### Analysis", working, f"So the answer is {result}."]
    scores = []
    for place, answer in enumerate(shown, 1):
        fits = answer == result
        lines.append(
            f"Response {place} ends with {answer}, which is {'right' if fits else 'wrong'}."
        )
        scores.append(rng.choice((8, 9) if fits else (2, 3)))
    return "\n".join([*lines, "", "### Scores", f"\\boxed{{{', '.join(map(str, scores))}}}"])


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("solutions")
    parser.add_argument("out")
    parser.add_argument("--accuracy", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    pairs = list(read_comparisons(options.solutions, "gsm8k_pairs"))
    names = ("train", "held_out", "critiques", "general")
    files = {name: (out / f"{name}.jsonl").open("w", encoding="utf-8") for name in names}
    counts = dict.fromkeys(names, 0)

    def write(name, row):
        files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        counts[name] += 1

    for pair in pairs:
        held = zlib.crc32(pair.query.encode()) % 16 < HELD_OUT
        reference = pair.meta["reference"] if "reference" in pair.meta else pair.reference
        row = {
            "query": pair.query,
            "responses": pair.responses,
            "label": pair.label,
            "id": pair.id,
            "meta": {"reference": reference},
        }
        write("held_out" if held else "train", row)
        if held:
            continue
        object.__setattr__(pair, "meta", {"reference": reference})
        write("general", {"query": pair.query, "answer": reference})
        rng = random.Random(f"gsm8k/{options.seed}/{pair.id}")
        for hinted in (False, False, False, True):
            order = tuple(rng.sample(range(pair.n), pair.n))
            text = critique(pair, order, rng, options.accuracy, hinted)
            write("critiques", {"id": pair.id, "text": text, "order": order, "hinted": hinted})
    for file in files.values():
        file.close()
    print(", ".join(f"{count} {name}" for name, count in counts.items()), "in", out)


if __name__ == "__main__":
    main()
