"""Published preference files: the shared reader agrees with the readers of the benchmarks."""

import pytest

from grm_jax.data.comparisons import read_comparisons, read_rows, simplified
from grm_jax.data.records import Account
from grm_jax.evals.benchmarks import BENCHMARKS


def content(comparison):
    rewards = dict(zip(comparison.responses, comparison.rewards))
    return simplified(comparison).query, sorted(rewards.items())


@pytest.mark.parametrize(
    "benchmark, file, malformed",
    [
        ("llamafactory_dpo_demo", "llamafactory_dpo_demo/data/dpo_en_demo.json", 0),
        ("llamafactory_kto_demo", "llamafactory_dpo_demo/data/kto_en_demo.json", 0),
        # 5 of its pairs differ before their last turn.
        ("hh_rlhf", "hh_rlhf/harmless-base/test.jsonl.gz", 5),
    ],
)
def test_detected_records_are_those_of_the_benchmark(benchmark, file, malformed, shared_data):
    official = list(map(content, BENCHMARKS[benchmark].load(shared_data)))
    rows = list(read_rows(shared_data / file))
    judged = [row.comparison for row in rows if row.comparison]
    account = Account()
    trained = list(read_comparisons(shared_data / file, None, 0.01, account))
    assert len(account.malformed) == len(rows) - len(judged) == malformed
    assert len(rows) == len(official)
    assert sorted(map(content, judged), key=str) == sorted(map(content, trained), key=str)
    unequal = [comparison for comparison in map(content, judged) if comparison not in official]
    assert not unequal, unequal[:2]
