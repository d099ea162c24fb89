"""HumanEvalPack: right against human-bugged code in six languages (arXiv 2308.07124; octopack)."""

from collections.abc import Iterator

from grm_jax.data.comparisons import placed
from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison

LANGUAGES = ("python", "js", "java", "go", "cpp", "rust")


def read(source: Source) -> Iterator[Comparison]:
    """Reads pairs: the declaration with the canonical body, and with the bugged body."""
    if not source.files(*(f"{language}/**/humanevalpack.jsonl" for language in LANGUAGES)):
        source.raise_missing("python/data/humanevalpack.jsonl")
    for language in LANGUAGES:
        for path in source.files(f"{language}/**/humanevalpack.jsonl"):
            for record in records(path):
                bodies = (record["canonical_solution"], record["buggy_solution"])
                pair = tuple(record["declaration"] + body for body in bodies)
                name = f"humanevalpack-{record['task_id']}"
                meta = {"subset": language, "bug": record["bug_type"]}
                yield placed(Comparison(record["instruction"], pair, None, 0, name, meta))


HUMANEVALPACK = bm.Benchmark(
    name="humanevalpack",
    title="HumanEvalPack pairs",
    order=140,
    read=read,
    grade=bm.grade_credit,
    aggregate=bm.accuracy_by_subset,
    headline="accuracy",
    rules=bm.CREDIT_RULES,
    files="evaluation/create/humaneval-x/data/LANGUAGE/data/humanevalpack.jsonl of "
    "github.com/bigcode-project/octopack, as humanevalpack/",
    chance="0.5",
    bars=("subset/",),
    aliases=("octopack",),
    notes="Most bugs change one token: 364 of the 984 pairs have equal length.",
)
