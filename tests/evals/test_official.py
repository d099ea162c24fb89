"""Our metrics against the official scorers: golden numbers, published outputs, the formulas."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from grm_jax.evals.benchmarks import (
    BENCHMARKS,
    pandalm,
    realmistake,
    rewardbench,
    rewardbench2,
    rm_bench,
)
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.judged import JudgedComparison
from grm_jax.types import Comparison

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rewardbench_0_1_4.json").read_text())


def judged(scores, label, subset="all", group=None, views=(), **meta):
    comparison = Comparison(
        "q",
        ("r",) * len(scores or label),
        None,
        label,
        None,
        {"subset": subset, "group": group} | meta,
    )
    return JudgedComparison(comparison, None if scores is None else tuple(scores), tuple(views))


def measure(name, rows, rule=None):
    benchmark = BENCHMARKS[name]
    grades = benchmark.grade(rows, rule or next(iter(benchmark.rules)))
    return benchmark.aggregate(grades, np.ones(len(rows)))


# ---------------------------------------------------------------- RewardBench


@pytest.mark.parametrize("case", GOLDEN["sections"])
def test_rewardbench_sections_equal_the_package(case):
    ours = rewardbench.sections(case["accuracies"])
    assert ours == pytest.approx(case["sections"], abs=1e-12)


@pytest.mark.parametrize(
    "model", ["RM-R1-Qwen2.5-Instruct-32B", "RM-R1-DeepSeek-Distilled-Qwen-32B"]
)
def test_rewardbench_sections_equal_published_results(shared_data, model):
    folder = shared_data / f"rmr1_rewardbench_outputs/eval/result/{model}/reward_bench/score_result"
    parts = json.loads((folder / "each_small_section_score.json").read_text())
    main = json.loads((folder / "main_score.json").read_text())
    ours = rewardbench.sections({k: v for k, v in parts.items() if isinstance(v, float)})
    assert ours == pytest.approx({name: main[name] for name in ours}, abs=1e-12)
    assert sum(ours.values()) / 4 == pytest.approx(main["avg_Result_each_section"], abs=1e-12)


def test_rewardbench_from_verdicts_to_the_score():
    """Verdicts made from published subset accuracies give the numbers of the section formula."""
    accuracies = GOLDEN["sections"][0]["accuracies"]
    rows, rounded = [], {}
    for subset, accuracy in accuracies.items():
        right = round(20 * accuracy)
        rounded[subset] = right / 20
        rows += [
            judged((1.0, 0.0) if i < right else (0.0, 1.0), 0, subset, f"{subset}{i}")
            for i in range(20)
        ]
    ours = measure("rewardbench", rows)
    expected = rewardbench.sections(rounded)
    assert ours["score"] == pytest.approx(sum(expected.values()) / 4)
    assert ours["section/Reasoning"] == pytest.approx(
        (rounded["math-prm"] + np.mean([rounded[s] for s in rounded if s.startswith("hep-")])) / 2
    )


def test_rewardbench_ties_and_unparsed_rows():
    rows = [judged((2.0, 2.0), 0, "donotanswer", "a"), judged(None, (1.0, 0.0), "donotanswer", "b")]
    assert measure("rewardbench", rows, "generative")["score"] == 0.5
    assert measure("rewardbench", rows, "paper")["score"] == 0.5
    assert measure("rewardbench", rows, "scalar")["score"] == 0.0


# ---------------------------------------------------------------- RewardBench 2


@pytest.mark.parametrize("case", GOLDEN["best_of_four"])
def test_best_of_four_equals_the_package(case):
    rows = [judged(s, (1.0, 0.0, 0.0, 0.0), "Math", f"{i}") for i, s in enumerate(case["scores"])]
    grades = rewardbench2.grade(rows, "official")
    assert grades["value"].tolist() == pytest.approx(case["results"])


def tie_rows(case):
    rows = []
    for row in case["rows"]:
        kind, number = row["id"].split(":")
        label = tuple(float(i < row["num_correct"]) for i in range(len(row["scores"])))
        rows.append(
            judged(row["scores"], label, "Ties", f"ties-{number}", kind=kind, number=int(number))
        )
    return rows


@pytest.mark.parametrize("case", GOLDEN["ties"])
def test_ties_equals_the_package_where_every_prompt_has_a_spread(case):
    assert measure("rewardbench2", tie_rows(case))["subset/Ties"] == pytest.approx(
        case["score"], abs=1e-12
    )


@pytest.mark.parametrize("case", GOLDEN["ties_integers"])
def test_ties_follows_the_formula_where_the_package_drops_prompts(case):
    rows = {row["id"]: row for row in case["rows"]}
    last, dropped = [], []
    for number in range(12):
        tied, ref = rows[f"tied:{number}"], rows[f"ref:{number}"]
        gaps = [
            min(r["scores"][: r["num_correct"]]) - max(r["scores"][r["num_correct"] :])
            for r in (tied, ref)
        ]
        right = tied["scores"][: tied["num_correct"]]
        spread, gap = max(right) - min(right), min(gaps)
        # The limits of tanh(gap / 0 - 1); 0 / 0 counts 0.
        last.append(math.tanh(gap / spread - 1) if spread else (gap > 0) - (gap < 0))
        if spread:
            dropped.append(last[-1])
    package = case["score"] - 0.01 * (np.mean(dropped) if dropped else 0.0)
    ours = measure("rewardbench2", tie_rows(case))["subset/Ties"]
    assert ours == pytest.approx(package + 0.01 * np.mean(last), abs=1e-12)


def test_perfect_ties_score_one_and_a_hundredth():
    rows = [
        judged((9.0, 1.0), (1.0, 0.0), "Ties", "0", kind="ref", number=0),
        judged((9.0, 9.0, 1.0), (1.0, 1.0, 0.0), "Ties", "0", kind="tied", number=0),
    ]
    assert measure("rewardbench2", rows)["subset/Ties"] == pytest.approx(1.01)
    unparsed = [
        judged(
            None,
            j.comparison.label,
            "Ties",
            "0",
            **{k: j.comparison.meta[k] for k in ("kind", "number")},
        )
        for j in rows
    ]
    assert measure("rewardbench2", unparsed)["subset/Ties"] == pytest.approx(-0.01)


# ---------------------------------------------------------------- RMB


@pytest.mark.parametrize(
    "model", ["RM-R1-Qwen2.5-Instruct-32B", "RM-R1-DeepSeek-Distilled-Qwen-32B"]
)
def test_rmb_is_the_mean_of_four_of_the_stored_counts(shared_data, model):
    folder = shared_data / f"rmr1_rewardbench_outputs/eval/result/{model}/RMB"
    meta = json.loads((folder / "META_RESULT.json").read_text())
    rows = []
    for goal in ("Helpfulness", "Harmlessness"):
        counts = json.loads((folder / f"BoN_set_{goal}/score_result/Final_score.json").read_text())[
            0
        ]
        right, total = (
            counts["BoN Absolute Number of Correct"],
            counts["BoN Absolute Total Numbers"],
        )
        for i in range(total):
            # A lost group loses one of its two pairs.
            for pair in range(2):
                scores = (1.0, 0.0) if i < right or pair == 0 else (0.0, 1.0)
                rows.append(judged(scores, 0, f"{goal} BoN", f"b{goal}{i}"))
        pairs = round(meta[f"Pairwise {goal}"] * 20000)
        rows += [
            judged((1.0, 0.0) if i < pairs else (0.0, 1.0), 0, f"{goal} pairwise", f"p{goal}{i}")
            for i in range(20000)
        ]
    ours = measure("rmb_pairs", rows)
    for goal in ("Helpfulness", "Harmlessness"):
        assert ours[f"subset/{goal} BoN"] == pytest.approx(meta[f"BoN {goal}"], abs=1e-12)
        assert ours[f"subset/{goal} pairwise"] == pytest.approx(meta[f"Pairwise {goal}"], abs=5e-5)
    assert ours["score"] == pytest.approx(meta["Accuracy Averaged from Four Sections"], abs=5e-5)


def test_a_tie_in_one_pair_loses_an_rmb_group():
    rows = [
        judged((1.0, 0.0), 0, "Helpfulness BoN", "g"),
        judged((1.0, 1.0), 0, "Helpfulness BoN", "g"),
    ]
    assert measure("rmb_pairs", rows)["score"] == 0.0
    assert measure("rmb_pairs", rows, "paper")["score"] == 0.5


# ---------------------------------------------------------------- RM-Bench


def test_rm_bench_matrix_equals_the_written_formula():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(1, 5, (30, 3)), rng.integers(1, 5, (30, 3))
    matrix = (chosen[:, :, None] > rejected[:, None, :]).mean(0)
    rows = [
        judged((float(chosen[p, i]), float(rejected[p, j])), 0, "code", f"p{p}", styles=[i, j])
        for p in range(30)
        for i in range(3)
        for j in range(3)
    ]
    ours = measure("rm_bench", rows)
    assert ours["level/hard"] == pytest.approx((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3)
    assert ours["level/normal"] == pytest.approx(np.trace(matrix) / 3)
    assert ours["level/easy"] == pytest.approx((matrix[1, 0] + matrix[2, 0] + matrix[2, 1]) / 3)
    assert ours["score"] == pytest.approx(matrix.mean())


def test_rm_bench_pools_safety_and_weighs_domains_equally():
    levels = rm_bench.matrix_levels({(0, 1): 1.0, (1, 0): 0.0, (0, 0): 0.5})
    assert levels == {"hard": 1.0, "normal": 0.5, "easy": 0.0}
    rows = [judged((1.0, 0.0), 0, "chat", "a", styles=[0, 0])]
    rows += [judged((0.0, 1.0), 0, "safety", f"s{i}", styles=[0, 0]) for i in range(9)]
    assert measure("rm_bench", rows)["score"] == 0.5


# ---------------------------------------------------------------- JudgeBench


@pytest.mark.parametrize(
    "first, second, value",
    [
        ((1, 0), (1, 0), 1.0),  # right, right
        ((1, 0), (0, 0), 1.0),  # right, tie
        ((1, 0), None, 1.0),  # right, unparseable
        ((1, 0), (0, 1), 0.0),  # right, wrong
        ((0, 0), (0, 0), 0.0),
        ((0, 1), None, 0.0),
        (None, None, 0.0),
    ],
)
def test_judgebench_both_orders(first, second, value):
    row = judged((0.0, 0.0), 0, "mmlu-pro", "a", [((0, 1), first), ((1, 0), second)])
    assert measure("judgebench", [row])["accuracy"] == value


def test_judgebench_single_order():
    assert measure("judgebench", [judged((2.0, 1.0), 0)])["accuracy"] == 1.0
    assert measure("judgebench", [judged((1.0, 1.0), 0)], "single")["accuracy"] == 0.0
    assert measure("judgebench", [judged((1.0, 1.0), 0)], "paper")["accuracy"] == 0.5


# ---------------------------------------------------------------- LLMBar, PandaLM


def test_llmbar_averages_the_two_orders():
    consistent = judged((0.0, 0.0), 0, "Natural", "a", [((0, 1), (2, 1)), ((1, 0), (2, 1))])
    by_place = judged((0.0, 0.0), 0, "Natural", "b", [((0, 1), (2, 1)), ((1, 0), (1, 2))])
    tied = judged((0.0, 0.0), 0, "Natural", "c", [((0, 1), (1, 1)), ((1, 0), None)])
    ours = measure("llmbar", [consistent, by_place, tied])
    assert ours["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert ours["positional_agreement"] == pytest.approx(1 / 3)
    assert ours["both_right"] == pytest.approx(1 / 3)


def test_pandalm_macro_equals_scikit_learn_on_stored_outputs(shared_data):
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    comparisons = BENCHMARKS["pandalm"].load(shared_data)
    stored = json.loads((shared_data / "pandalm/data/pandalm-7b-testset-v1.json").read_text())
    predicted = np.array([int(row["pandalm_result"]) for row in stored])
    rows = [
        JudgedComparison(c, {0: (1.0, 1.0), 1: (1.0, 0.0), 2: (0.0, 1.0)}[s])
        for c, s in zip(comparisons, predicted)
    ]
    truth = np.array([c.meta["class"] for c in comparisons])
    ours = measure("pandalm", rows)
    expected = precision_recall_fscore_support(truth, predicted, average="macro")[:3]
    assert [ours[k] for k in ("precision_3", "recall_3", "f1_3")] == pytest.approx(expected)
    assert (
        ours["accuracy_3"]
        == pytest.approx(accuracy_score(truth, predicted))
        == pytest.approx(0.6677, abs=5e-5)
    )
    assert pandalm.macro(truth, np.zeros(len(truth), int), np.ones(len(truth)))[
        "precision_3"
    ] == pytest.approx(105 / 999 / 3)


# ---------------------------------------------------------------- ReaLMistake


@pytest.mark.parametrize("seed", range(3))
def test_auc_equals_scikit_learn(seed):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    scores, truth, weights = (
        rng.integers(1, 11, 200),
        rng.random(200) < 0.3,
        rng.integers(0, 4, 200).astype(float),
    )
    assert roc_auc(scores, truth, weights) == pytest.approx(
        roc_auc_score(truth, scores, sample_weight=weights), abs=1e-12
    )
    assert roc_auc(np.ones(200), truth) == 0.5
    assert math.isnan(roc_auc(scores, np.ones(200, bool)))


def test_realmistake_unparsed_rows():
    """They are wrong in the accuracy, and "no error" in precision and recall."""
    error, predicted = np.array([True, True, False, False]), np.array([True, False, False, True])
    parsed = np.array([True, False, False, True])
    ours = realmistake.detection(error, predicted, parsed, np.ones(4))
    assert ours == pytest.approx({"accuracy": 0.25, "precision": 0.5, "recall": 0.5, "f1": 0.5})


@pytest.mark.parametrize("name", ["realmistake", "llamafactory_kto_demo", "ppe_best_of_k"])
def test_an_unparsed_critique_does_not_lower_the_score(name):
    """Every critique gives a right response 8 and a wrong one 7; two of the right one's 8 are
    unparsed."""
    right, wrong = (
        judged((6 * 8.0,), (1.0,), group="p", pairs=[[0, 1]]),
        judged((8 * 7.0,), (0.0,), group="p"),
    )
    rows = [dataclasses.replace(right, num_votes=6), dataclasses.replace(wrong, num_votes=8)]
    assert measure(name, rows)["auc"] == 1.0
    equal = [dataclasses.replace(j, scores=(7.0 * j.num_votes,)) for j in rows]
    assert measure(name, equal)["auc"] == 0.5


def test_realmistake_single_class_and_all_unparsed():
    rows = [judged((3.0,), (1.0,), "t, m", "a"), judged((4.0,), (1.0,), "t, m", "b")]
    assert math.isnan(measure("realmistake", rows)["auc"])
    rows = [judged(None, (1.0,), "t, m", "a"), judged(None, (0.0,), "t, m", "b")]
    assert measure("realmistake", rows)["auc"] == 0.5


# ---------------------------------------------------------------- PPE


def test_ppe_accuracy_is_the_mean_over_prompts():
    rows = [judged((1.0, 0.0), 0, "MATH", "a")] * 1 + [
        judged((0.0, 1.0), 0, "MATH", "b") for _ in range(3)
    ]
    rows += [judged((1.0, 0.0), 0, "GPQA", "c"), judged((1.0, 1.0), 0, "GPQA", "c")]
    ours = measure("ppe_correctness", rows)
    assert ours["subset/MATH"] == 0.5 and ours["subset/GPQA"] == 0.5 and ours["accuracy"] == 0.5
    assert measure("ppe_correctness", rows, "paper")["subset/GPQA"] == 0.75


def test_best_of_k_curves_equal_a_loop():
    from grm_jax.evals.bestofk import best_of_k

    rng = np.random.default_rng(1)
    scores, truth = rng.integers(1, 5, 8).astype(float), (rng.random(8) < 0.4).astype(float)
    curves = best_of_k(scores, truth, orders=20, seed=3)
    orders = np.random.default_rng(3)
    for o in range(20):
        order = orders.permutation(8)
        for k in range(1, 9):
            first = order[:k]
            pick = first[int(np.argmax(scores[first]))]  # argmax: the first maximum
            assert curves[0, k - 1, o] == truth[pick]
            assert curves[1, k - 1, o] == truth[first].max()


def test_ppe_best_of_k_of_an_oracle_and_of_a_constant():
    def rows(score):
        return [
            judged((score(t),), (t,), "MATH", f"p{p}", **({"pairs": [[0, 1]]} if i == 0 else {}))
            for p in range(5)
            for i, t in enumerate((1.0, 0.0, 0.0, 1.0))
        ]

    best, flat = (
        measure("ppe_best_of_k", rows(lambda t: t)),
        measure("ppe_best_of_k", rows(lambda t: 1.0)),
    )
    assert best["auc"] == 1.0 and best["accuracy"] == 1.0 and best["best_of_k_loss"] == 0.0
    assert best["best_of_k_end"] == best["best_of_k_max"] == 1.0
    assert (
        flat["auc"] == 0.5
        and flat["accuracy"] == 0.0
        and flat["best_of_k_end"] == pytest.approx(0.5, abs=0.15)
    )
    assert measure("ppe_best_of_k", rows(lambda t: 1.0), "paper")["accuracy"] == 0.5


def test_ppe_ranks_models_as_people_do_when_the_judge_agrees():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        a, b = rng.choice(4, 2, replace=False)
        first = rng.random() < 1 / (1 + np.exp(float(b - a)))
        scores = (1.0, 0.0) if first else (0.0, 1.0)
        rows.append(
            judged(
                scores,
                int(not first),
                "English",
                str(i),
                models=[f"m{a}", f"m{b}"],
                slices=["hard"],
            )
        )
    ours = measure("ppe_preference", rows)
    assert ours["accuracy"] == 1.0 and ours["models/spearman"] == pytest.approx(1.0)
    assert (
        ours["models/row_pearson"] == pytest.approx(1.0)
        and ours["slice/hard"] == 1.0
        and math.isnan(ours["slice/math"])
    )
