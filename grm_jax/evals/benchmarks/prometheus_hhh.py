"""HHH alignment pairs, extracted from prometheus-eval's rating prompts (arXiv 2112.00861)."""

from collections.abc import Iterator

from grm_jax.data.comparisons import placed
from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source, records
from grm_jax.types import Comparison

_INSTRUCTION = "###The instruction to evaluate:\n"
_RESPONSE = "\n\n###Response to evaluate:\n"
_RUBRIC = "\n\n###Score Rubrics"


def unwrap(text: str) -> tuple[str, str]:
    """Returns (instruction, response) of a rating prompt. Raises ValueError without headings."""
    try:
        _, rest = text.split(_INSTRUCTION, 1)
        instruction, rest = rest.split(_RESPONSE, 1)
        response, _ = rest.rsplit(_RUBRIC, 1)
    except ValueError:
        raise ValueError(f"no instruction, response and rubric headings in {text!r:.80}") from None
    return instruction, response


def read(source: Source) -> Iterator[Comparison]:
    """Reads `chosen_instruction`, `rejected_instruction`, `source` (honest, helpful, ...)."""
    for number, record in enumerate(records(source.require("hhh_alignment_eval.json")[0])):
        query, chosen = unwrap(record["chosen_instruction"])
        _, rejected = unwrap(record["rejected_instruction"])
        pair, meta = (chosen, rejected), {"subset": record["source"]}
        yield placed(Comparison(query, pair, None, 0, f"hhh-{number}", meta))


PROMETHEUS_HHH = bm.Benchmark(
    name="prometheus_hhh",
    title="HHH alignment",
    order=160,
    read=read,
    grade=bm.grade_credit,
    aggregate=bm.accuracy_by_subset,
    headline="accuracy",
    rules=bm.CREDIT_RULES | {"official": "a tie or an unparseable judgement counts 1/2"},
    files="eval/benchmark/data/hhh_alignment_eval.json of "
    "github.com/prometheus-eval/prometheus-eval, as prometheus_hhh/",
    chance="0.5",
    bars=("subset/",),
    aliases=("prometheus-eval",),
)
