"""JudgeBench: pairs with objective labels, both orders (arXiv 2410.12784; ScalerLab/JudgeBench)."""

from __future__ import annotations

from collections.abc import Sequence

from grm_jax.evals.benchmark import (
    PAPER,
    Benchmark,
    Grades,
    Published,
    accuracy_by_subset,
    columns,
    credit,
    strict,
    winners,
)
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

PARTS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


def read(source: Source) -> list[Comparison]:
    """Pairs of `question`, `response_A`, `response_B`, `label` ("A>B" or "B>A"), in their order, from each response model's file."""
    found = []
    for path in source.require("dataset=judgebench*.jsonl", "judgebench*.jsonl"):
        maker = "claude" if "claude" in path.name else "gpt"
        for record in records(path):
            name = f"judgebench-{maker}-{record['pair_id']}"
            part = next(
                (part for part in PARTS if record["source"].startswith(part)), record["source"]
            )
            meta = {"subset": part, "group": name, "maker": maker}
            label = {"A>B": 0, "B>A": 1}[record["label"]]
            pair = (record["response_A"], record["response_B"])
            found.append(Comparison(record["question"], pair, None, label, name, meta))
    return found


def both_orders(judged: JudgedComparison) -> float:
    """1 where right verdicts outnumber wrong ones over the two orders; a tie or an unreadable verdict counts neither way.

    Right and tie is right; right and wrong is not. A judge that saw one order, or none, gets its one verdict counted.
    """
    balance = 0
    verdicts = [scores for _, scores in judged.views] or [judged.scores]
    for scores in verdicts:
        if scores is not None and len(first := winners(scores)) == 1:
            balance += 1 if first == [judged.comparison.best] else -1
    return float(balance > 0)


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """See the rules."""
    value = {"paper": credit, "single": strict}.get(rule, both_orders)
    return columns(judged, (value(j) for j in judged))


JUDGEBENCH = Benchmark(
    name="judgebench",
    title="JudgeBench",
    read=read,
    grade=grade,
    aggregate=accuracy_by_subset,
    rules={
        "official": "both orders: right when right verdicts outnumber wrong ones; ties and unreadable verdicts count neither way",
        "single": "one verdict (scalar reward models): a tie or an unreadable verdict is wrong",
        "paper": PAPER,
    },
    files="data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl (350 pairs; the claude file adds 270) of "
    "github.com/ScalerLab/JudgeBench, as judgebench/",
    chance="both orders: 0.25 for a coin per order; one verdict: 0.5",
    bars=("subset/",),
    aliases=("JudgeBench",),
    published=(
        Published("o1-mini, both orders", {"accuracy": 65.71}, "stored outputs, gpt-4o file"),
        Published(
            "Skywork-Reward-Gemma-2-27B, single", {"accuracy": 64.29}, "stored outputs, gpt-4o file"
        ),
        Published("GRM-Gemma-2B, single", {"accuracy": 59.43}, "stored outputs, gpt-4o file"),
    ),
    notes="Published numbers differ by protocol; compare only within one rule.",
    both_orders=True,
)
