"""GSM8K groups: four models' solutions per problem (arXiv 2110.14168; grade-school-math)."""

from collections.abc import Iterator

import numpy as np

from grm_jax.data.comparisons import placed
from grm_jax.data.layouts import gsm8k_answers
from grm_jax.evals import benchmark as bm
from grm_jax.evals.classification import roc_auc
from grm_jax.evals.files import Source, records
from grm_jax.judging.votes import top
from grm_jax.types import Comparison


def read(source: Source) -> Iterator[Comparison]:
    """Reads the groups with right and wrong solutions, as published; right ones are labelled 1."""
    for number, record in enumerate(records(source.require("example_model_solutions.jsonl")[0])):
        answers = gsm8k_answers(record)
        right, total = sum(answers.correct), len(answers.correct)
        if 0 < right < total:
            yield placed(
                Comparison(
                    answers.query,
                    tuple(answers.texts),
                    answers.reference,
                    tuple(map(float, answers.correct)),
                    f"gsm8k-{number}",
                    {"subset": f"{right} of {total} right"},
                )
            )


def grade(judged: bm.Judged, rule: str) -> bm.Grades:
    """Returns per group pairs won, pairs, label of the pick; per response score, label, group."""
    won, pairs, picked = [], [], []
    for j in judged:
        truth = np.array(j.comparison.rewards)
        scores = np.array(j.scores if j.scores is not None else np.zeros(len(truth)))
        tie = 0.0 if rule == "strict" or (rule == "official" and j.scores is None) else 0.5
        right, wrong = scores[truth > 0][:, None], scores[truth == 0][None, :]
        tied = np.isclose(right, wrong, rtol=1e-9, atol=1e-9)
        won.append(((right > wrong) & ~tied).sum() + tie * tied.sum())
        pairs.append(tied.size)
        picked.append(truth[top(scores.tolist())].mean())
    return {
        "won": bm.column(won),
        "pairs": bm.column(pairs),
        "picked": bm.column(picked),
        "share_right": bm.column(np.array(j.comparison.rewards).mean() for j in judged),
        "subset": bm.Categories.of(j.subset for j in judged),
        "scores": np.concatenate(
            [
                np.zeros(j.comparison.n) if j.scores is None else np.array(j.scores) / j.num_votes
                for j in judged
            ]
        ),
        "truth": np.concatenate([j.comparison.rewards for j in judged]),
        "group_of_response": np.repeat(np.arange(len(judged)), [j.comparison.n for j in judged]),
    }


def aggregate(grades: bm.Grades, weights_I: np.ndarray) -> bm.Metrics:
    """Computes accuracy over (right, wrong) pairs, best of 4 with its chance level, and AUC."""
    share_I, pairs_I = grades["won"] / grades["pairs"], weights_I * grades["pairs"]
    weights_R = weights_I[grades["group_of_response"]]
    metrics = {
        "accuracy": bm.weighted_mean(share_I, pairs_I),
        "best_of_4": bm.weighted_mean(grades["picked"], weights_I),
        "best_of_4_chance": bm.weighted_mean(grades["share_right"], weights_I),
        "auc": roc_auc(grades["scores"], grades["truth"] > 0.5, weights_R),
    }
    for code, name in sorted(enumerate(grades["subset"].names), key=lambda item: item[1]):
        at = grades["subset"].codes_I == code
        metrics[f"subset/{name}"] = bm.weighted_mean(share_I[at], pairs_I[at])
    return metrics


GSM8K = bm.Benchmark(
    name="gsm8k",
    title="GSM8K groups of four",
    order=130,
    read=read,
    grade=grade,
    aggregate=aggregate,
    headline="accuracy over all (right, wrong) pairs of 731 groups of four",
    rules={
        "official": "no scorer is published; a tie within a pair counts 1/2, unparseable 0",
        "strict": "a tie within a pair or an unparseable judgement is wrong",
        "paper": bm.PAPER_RULE,
    },
    files="grade_school_math/data/example_model_solutions.jsonl of "
    "github.com/openai/grade-school-math, as gsm8k/",
    chance="0.5",
    bars=("subset/",),
    aliases=("grade-school-math",),
    notes="731 of 1,319 groups have both right and wrong solutions. All four are judged at once.",
)
