"""RMB: helpfulness and harmlessness, pairs and best-of-n (arXiv 2410.09893; Zhou-Zoey/RMB-Reward-Model-Benchmark).

`rmb` hands all responses of a best-of-n group to the judge at once, as the paper does; `rmb_pairs` asks for the best response
against each loser, as the benchmark's own scorers do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grm_jax.evals.benchmark import (
    PAPER,
    STRICT,
    Benchmark,
    Categories,
    Grades,
    Metrics,
    Published,
    column,
    credit,
    mean_by_category,
    nan_mean,
    shuffled_comparison,
    strict,
)
from grm_jax.evals.files import Source, records
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

GOALS = ("Helpfulness", "Harmlessness")
FILES = "the folder RMB_dataset (BoN_set and Pairwise_set) of github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, as rmb/"


def read(source: Source, split: bool = False) -> list[Comparison]:
    """Pairs and best-of-n groups. split: every group becomes its (best, loser) pairs."""
    found = []
    for kind in ("BoN_set", "Pairwise_set"):
        for goal in GOALS:
            for path in source.require(f"{kind}/{goal}/**/*.json"):
                category = str(path.with_suffix("")).split(f"{kind}/{goal}/")[-1]
                for number, record in enumerate(records(path)):
                    found += _comparisons(
                        record, f"{kind}/{goal}/{category}", number, kind == "BoN_set", goal, split
                    )
    return found


def _comparisons(
    record: dict, category: str, number: int, bon: bool, goal: str, split: bool
) -> list[Comparison]:
    turns = [{"role": t["role"], "content": t["content"]} for t in record["conversation_input"]]
    query = turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns
    name = f"rmb-{category}-{number}"
    best = record["bon_best" if bon else "chosen"]["answer"]
    losers = [r["answer"] for r in (record["loser_list"] if bon else [record["reject"]])]
    meta: dict = {
        "subset": f"{goal} {'BoN' if bon else 'pairwise'}",
        "group": name,
        "category": category,
    }
    if bon and split:
        return [
            shuffled_comparison(query, (best, loser), (1, 0), f"{name}-{i}", **meta)
            for i, loser in enumerate(losers)
        ]
    return [shuffled_comparison(query, (best, *losers), [1.0] + [0.0] * len(losers), name, **meta)]


def grade(judged: Sequence[JudgedComparison], rule: str) -> Grades:
    """Value of each comparison, and which group it belongs to (a group is won when all of its comparisons are)."""
    group = Categories.of(j.group for j in judged)
    first = np.array(
        [int(np.argmax(group.codes_I == c)) for c in range(len(group.names))], dtype=np.int64
    )
    return {
        "value": column(credit(j) if rule == "paper" else strict(j) for j in judged),
        "subset": Categories.of(j.subset for j in judged),
        "group": group,
        "first": first,
        "subset_of_group": Categories.of(judged[i].subset for i in first),
    }


def aggregate(grades: Grades, weights_I: np.ndarray) -> Metrics:
    """The mean of four: best-of-n groups won and pairs right, each for helpfulness and harmlessness."""
    first = grades["first"]
    value = np.ones(len(first))
    # A group is right only where every pair of it is: the product (of tie credits, under the paper's rule).
    np.multiply.at(value, grades["group"].codes_I, grades["value"])
    parts = mean_by_category(value, grades["subset_of_group"], weights_I[first])
    return {"score": nan_mean(parts.values())} | {
        f"subset/{name}": parts[name] for name in sorted(parts)
    }


def _row(model, help_bon, help_pair, harm_bon, harm_pair, total, source) -> Published:
    names = ("Helpfulness BoN", "Helpfulness pairwise", "Harmlessness BoN", "Harmlessness pairwise")
    values = dict(zip((f"subset/{n}" for n in names), (help_bon, help_pair, harm_bon, harm_pair)))
    return Published(model, {"score": total} | values, source)


_PUBLISHED = (
    _row("DeepSeek-GRM-27B, greedy", 62.3, 80.5, 57.0, 76.1, 69.0, "SPCT, table 10"),
    _row("DeepSeek-GRM-27B, MetaRM@32", 64.2, 81.6, 58.0, 77.4, 70.3, "SPCT, table 10"),
    _row(
        "RM-R1-Qwen2.5-Instruct-32B",
        65.05,
        80.17,
        66.25,
        80.58,
        73.01,
        "RM-R1 repository, stored result",
    ),
)


def _benchmark(name: str, title: str, split: bool, chance: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        read=lambda source: read(source, split),
        grade=grade,
        aggregate=aggregate,
        rules={
            "official": STRICT + "; a best-of-n group is right when the best beats every loser",
            "paper": PAPER,
        },
        files=FILES,
        chance=chance,
        bars=("subset/",),
        aliases=("rmb", "RMB-Reward-Model-Benchmark", "RMB_dataset"),
        published=_PUBLISHED,
    )


RMB = _benchmark(
    "rmb", "RMB (all responses at once)", False, "pairs 0.5, best-of-n 1/n (n = 3 to 7)"
)
RMB_PAIRS = _benchmark(
    "rmb_pairs", "RMB (best-of-n as pairs)", True, "pairs 0.5, best-of-n 1/2^(n-1)"
)
