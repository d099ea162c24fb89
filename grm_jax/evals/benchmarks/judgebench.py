"""JudgeBench: pairs with objective labels, both orders (arXiv 2410.12784; ScalerLab/JudgeBench)."""

import dataclasses
import functools
from collections.abc import Iterator

from grm_jax.evals import benchmark as bm
from grm_jax.evals.files import Source, records
from grm_jax.judging.votes import decided
from grm_jax.types import Comparison

SUBSETS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


def read(source: Source, maker: str) -> Iterator[Comparison]:
    """Reads `question`, `response_A`, `response_B`, `label` ("A>B" or "B>A"); keeps the order.

    maker: "gpt" or "claude", the model that wrote the responses of a file. Published numbers are of
    one file, so the two are not pooled.
    """
    patterns = ("dataset=judgebench*.jsonl", "judgebench*.jsonl")
    paths = source.files(*patterns)
    paths = [path for path in paths if ("claude" in path.name) == (maker == "claude")]
    for path in paths or source.raise_missing(*patterns):
        for record in records(path):
            name = f"judgebench-{maker}-{record['pair_id']}"
            origin = record["source"]
            subset = next((s for s in SUBSETS if origin.startswith(s)), origin)
            meta = {"subset": subset, "maker": maker}
            label = {"A>B": 0, "B>A": 1}[record["label"]]
            pair = (record["response_A"], record["response_B"])
            yield Comparison(record["question"], pair, None, label, name, meta)


def both_orders(judged: bm.JudgedComparison) -> float:
    """Returns 1 if right verdicts outnumber wrong ones over the two orders, else 0.

    A tie or an unparseable verdict counts neither way. With one order its verdict decides.
    """
    verdicts = decided(judged.views or (((0, 1), judged.scores),))
    right = sum(winner == judged.comparison.best for _, winner in verdicts)
    return float(2 * right > len(verdicts))


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Grades each comparison by `both_orders`, by one strict verdict, or with tie credit."""
    value = {"paper": bm.credit, "single": bm.strict}.get(rule, both_orders)
    return bm.columns(judged, (value(j) for j in judged))


JUDGEBENCH = bm.Benchmark(
    name="judgebench",
    title="JudgeBench",
    order=100,
    read=functools.partial(read, maker="gpt"),
    grade=grade,
    aggregate=bm.accuracy_by_subset,
    headline="accuracy over both orders",
    rules={
        "official": "both orders: right if right verdicts outnumber wrong ones; ties and "
        "unparseable verdicts count neither way",
        "single": "one verdict (scalar reward models): a tie or an unparseable verdict is wrong",
        "paper": bm.PAPER_RULE,
    },
    files="data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl (350 pairs) of "
    "github.com/ScalerLab/JudgeBench, as judgebench/",
    beside=("judgebench_claude",),
    chance="both orders: 0.25 for a coin per order; one verdict: 0.5",
    bars=("subset/",),
    aliases=("JudgeBench",),
    published=tuple(
        bm.Published(model, {"accuracy": accuracy}, "stored outputs, gpt-4o file")
        for model, accuracy in (
            ("o1-mini, both orders", 65.71),
            ("Skywork-Reward-Gemma-2-27B, single", 64.29),
            ("GRM-Gemma-2B, single", 59.43),
        )
    ),
    notes="Published numbers differ by protocol; compare only within one rule.",
    both_orders=True,
)

CLAUDE = dataclasses.replace(
    JUDGEBENCH,
    name="judgebench_claude",
    title="JudgeBench, pairs by Claude",
    order=101,
    read=functools.partial(read, maker="claude"),
    files="data/dataset=judgebench,response_model=claude-3-5-sonnet-20240620.jsonl (270 pairs) of "
    "github.com/ScalerLab/JudgeBench, as judgebench/",
    beside=(),
    aliases=("judgebench", "JudgeBench"),
    published=(),
)
