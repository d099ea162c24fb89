"""HumanEvalPack: right against human-bugged code in six languages (arXiv 2308.07124; bigcode-project/octopack)."""

from __future__ import annotations

from collections.abc import Sequence

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Grades,
    accuracy_by_subset,
    columns,
    credit,
    shuffled_comparison,
    strict,
)
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

LANGUAGES = ("python", "js", "java", "go", "cpp", "rust")


def read(source: Source) -> list[Comparison]:
    """Pairs: the declaration with the canonical body against the same with the bugged body."""
    found = []
    for language in LANGUAGES:
        for path in source.files(f"{language}/**/humanevalpack.jsonl"):
            for record in records(path):
                pair = [
                    record["declaration"] + record[body]
                    for body in ("canonical_solution", "buggy_solution")
                ]
                name = f"humanevalpack-{record['task_id']}"
                meta = {"subset": language, "bug": record["bug_type"], "group": name}
                found.append(shuffled_comparison(record["instruction"], pair, (1, 0), name, **meta))
    return found or source.raise_missing("python/data/humanevalpack.jsonl")


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """See the rules."""
    return columns(judged, (strict(j) if rule == "strict" else credit(j) for j in judged))


HUMANEVALPACK = Benchmark(
    name="humanevalpack",
    title="HumanEvalPack pairs",
    read=read,
    grade=grade,
    aggregate=accuracy_by_subset,
    rules={
        "official": "no pairwise scorer is published; a tie or an unreadable judgement counts 1/2",
        "strict": "a tie or an unreadable judgement is wrong",
        "paper": PAPER,
    },
    files="evaluation/create/humaneval-x/data/LANGUAGE/data/humanevalpack.jsonl of github.com/bigcode-project/octopack, as humanevalpack/",
    chance="0.5",
    bars=("subset/",),
    aliases=("octopack",),
    notes="Most bugs change one token: 364 of the 984 pairs have equal length.",
)
