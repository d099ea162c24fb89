"""Layouts of published preference sets: how one record becomes comparisons.

`LAYOUTS[name].read(record, name_of_record)` returns comparisons with the responses in the published
order. Where a field says which of two is better, the better one comes first. To add a layout,
register one function here; `grm judge --format`, `layout` in a training config and docs/data.md
all use this registry.

    @_layout("my_set", "me/my-set")
    def my_set(record, name):
        good, bad = fields.text(record, "good"), fields.text(record, "bad")
        return [better_first(fields.text(record, "question"), [good], [bad], name)]

`data.comparisons` reads files with it, and places the responses for training.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

from grm_jax.data import fields, preferences
from grm_jax.data.answers import boxed_answer, same_answer
from grm_jax.data.fields import Record
from grm_jax.data.preferences import PAIR, better_first, categories
from grm_jax.data.records import Malformed, Unusable
from grm_jax.registry import Registry
from grm_jax.types import Comparison

Read = Callable[[Record, str], list[Comparison]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One registered layout.

    Attributes:
      read: (record, name of the record) -> comparisons, whose ids are made from the name. Raises
        Malformed for missing or wrong fields, Unusable for a record without a comparison.
      dataset: the set that is published so.
      matches: whether a record is in this layout, for `comparisons.detect`; None: only by name.
      keeps_order: whether training leaves the responses in the order of the file.
    """

    read: Read
    dataset: str
    matches: Callable[[Record], bool] | None = None
    keeps_order: bool = False


LAYOUTS: Registry[Layout] = Registry("layout")


def _layout(name: str, dataset: str, **options: Any) -> Callable[[Read], Read]:
    def add(read: Read) -> Read:
        LAYOUTS.add(name, Layout(read, dataset, **options))
        return read

    return add


def permutation(name: str, count: int) -> list[int]:
    """Returns a permutation of range(count) that depends on the name alone."""
    order = list(range(count))
    random.Random(name).shuffle(order)
    return order


# ---------------------------------------------------------------- what people have

_layout("comparison", "files for `grm judge`", matches=preferences.has_responses, keeps_order=True)(
    preferences.comparison
)
_layout("trl", "preference sets for TRL", matches=preferences.is_pair)(preferences.preference)
_layout("rewardbench", "RewardBench 1 and 2")(preferences.preference)
_layout("openai", "OpenAI's preference fine-tuning", matches=preferences.is_openai_pair)(
    preferences.openai_pair
)
_layout("unpaired", "single responses for KTO", matches=preferences.is_unpaired)(
    preferences.unpaired
)


# ---------------------------------------------------------------- training sets


@_layout("skywork", "Skywork-Reward-Preference")
def skywork(record: Record, name: str) -> list[Comparison]:
    """`chosen` and `rejected` conversations that differ in their last turn, `source`."""
    (pair,) = preferences.preference(
        {key: fields.items(record, key, "turns") for key in PAIR}, name
    )
    return [dataclasses.replace(pair, meta={"source": record.get("source")})]


@_layout("ultrafeedback", "openbmb/UltraFeedback", matches=lambda r: "completions" in r)
def ultrafeedback(record: Record, name: str) -> list[Comparison]:
    """`instruction`, `completions` with `response` and `overall_score`, which is the reward."""
    responses, scores = [], []
    for completion in fields.items(record, "completions", "objects"):
        fields.checked(completion, "a completion", dict, "an object")
        responses.append(fields.text(completion, "response"))
        scores.append(float(fields.number(completion, "overall_score")))
    if len(responses) < 2:
        raise Unusable(
            "one completion, with a score that is not 0 or 1" if responses else "no completions"
        )
    query, meta = fields.text(record, "instruction"), {"source": record.get("source")}
    return [Comparison(query, tuple(responses), label=tuple(scores), id=name, meta=meta)]


_HELPSTEER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


@_layout("helpsteer2", "HelpSteer2-Preference", matches=lambda r: "preference_strength" in r)
def helpsteer2(record: Record, name: str) -> list[Comparison]:
    """`prompt`, `response_1`, `response_2`, `preference_strength` from -3 (first) to 3 (second).

    The strength (1 to 3) becomes meta["strength"], for hinted sampling. A prompt may hold turns.
    """
    strength = fields.number(record, "preference_strength")
    if not -3 <= strength <= 3:
        raise Malformed(f"the field 'preference_strength' is {strength}: give a number in -3 to 3")
    first, *rest = _HELPSTEER_TURN.split(fields.text(record, "prompt"))
    turns = [{"role": "user", "content": first}]
    turns += [{"role": role.lower(), "content": text} for role, text in zip(rest[::2], rest[1::2])]
    pair = [fields.text(record, "response_1"), fields.text(record, "response_2")]
    if strength == 0:
        raise Unusable("no single best response")
    better, worse = pair[::-1] if strength > 0 else pair
    return [better_first(turns, [better], [worse], name, meta={"strength": int(abs(strength))})]


@_layout("offsetbias", "NCSOFT/offsetbias", matches=lambda r: "output_1" in r)
def offsetbias(record: Record, name: str) -> list[Comparison]:
    """`instruction`, `output_1`, `output_2`, `label`: 1 or 2, the number of the better output."""
    label = fields.number(record, "label")
    if label not in (1, 2):
        raise Malformed(f"the field 'label' is {label}: give 1 or 2")
    pair = [fields.text(record, "output_1"), fields.text(record, "output_2")]
    better, worse = pair if label == 1 else pair[::-1]
    return [better_first(fields.text(record, "instruction"), [better], [worse], name)]


@_layout("step_dpo", "Math-Step-DPO-10K", matches=lambda r: "full_chosen" in r)
def step_dpo(record: Record, name: str) -> list[Comparison]:
    """`prompt`, and the whole solutions `full_chosen` and `full_rejected`."""
    better, worse = (fields.text(record, f"full_{key}") for key in PAIR)
    return [better_first(fields.text(record, "prompt"), [better], [worse], name)]


# ---------------------------------------------------------------- verified answers


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers to one question, each with whether it is correct, and a worked solution."""

    query: str
    texts: list[str]
    correct: list[bool]
    reference: str | None


def _groups(answers: Answers, name: str) -> list[Comparison]:
    """One correct answer, picked by the name, and all wrong ones."""
    correct, wrong = _sides(answers)
    best = correct[permutation(name, len(correct))[0]]
    return [better_first(answers.query, [best], wrong, name, reference=answers.reference)]


def _pairs(answers: Answers, name: str) -> list[Comparison]:
    """The i-th correct answer with the i-th wrong one."""
    return [
        better_first(answers.query, [a], [b], f"{name}-{i}", reference=answers.reference)
        for i, (a, b) in enumerate(zip(*_sides(answers)))
    ]


def _singles(answers: Answers, name: str) -> list[Comparison]:
    """Each answer alone, labelled 1 or 0."""
    return [
        Comparison(answers.query, (text,), answers.reference, (float(correct),), f"{name}-{i}")
        for i, (text, correct) in enumerate(zip(answers.texts, answers.correct))
    ]


def _sides(answers: Answers) -> tuple[list[str], list[str]]:
    marked = list(zip(answers.texts, answers.correct))
    sides = [text for text, ok in marked if ok], [text for text, ok in marked if not ok]
    if not all(sides):
        raise Unusable("all right" if sides[0] else "all wrong")
    return sides


def _verified(names: Iterable[str], dataset: str) -> Callable[[Callable], Callable]:
    """Registers a reader of `Answers` under three names: as groups, as pairs, as singles."""

    def add(read: Callable[[Record], Answers]) -> Callable:
        for name, form in zip(names, (_groups, _pairs, _singles), strict=True):
            LAYOUTS.add(name, Layout(lambda r, id, form=form: form(read(r), id), dataset))
        return read

    return add


_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k_answers(record: Record) -> Answers:
    """`question`, `ground_truth`, and fields with `is_correct` and `solution`, as published."""
    solutions = [v for v in record.values() if isinstance(v, dict) and "solution" in v]
    if not solutions:
        raise Malformed("no field holds a solution")
    texts = [fields.text(value, "solution") for value in solutions]
    correct = [fields.field(value, "is_correct", bool, "true or false") for value in solutions]
    reference = fields.text(record, "ground_truth") if "ground_truth" in record else None
    return Answers(fields.text(record, "question"), texts, correct, reference)


@_verified(("gsm8k", "gsm8k_pairs", "gsm8k_singles"), "GSM8K, four solutions each")
def gsm8k(record: Record) -> Answers:
    """`gsm8k_answers` without the calculator annotations (<<3+4=7>>)."""
    answers = gsm8k_answers(record)
    texts = [_CALCULATOR.sub("", text) for text in answers.texts]
    reference = answers.reference and _CALCULATOR.sub("", answers.reference)
    return dataclasses.replace(answers, texts=texts, reference=reference)


@_verified(("math_groups", "math", "math_singles"), "sampled solutions of MATH")
def math(record: Record) -> Answers:
    r"""`problem`, `solution` (or `answer`), `samples` (a list of texts).

    A sample is correct if its last \boxed answer equals the solution's. One without is wrong.
    """
    samples = fields.texts(record, "samples")
    is_short = "answer" in record
    gold = (
        fields.text(record, "answer") if is_short else boxed_answer(fields.text(record, "solution"))
    )
    if gold is None:
        raise Malformed(r"the field 'solution' has no \boxed answer")
    answers = [boxed_answer(sample) for sample in samples]
    correct = [answer is not None and same_answer(answer, gold) for answer in answers]
    return Answers(fields.text(record, "problem"), samples, correct, record.get("solution"))


# ---------------------------------------------------------------- benchmarks


@_layout("rm_bench", "RM-Bench")
def rm_bench(record: Record, name: str) -> list[Comparison]:
    """`prompt`, three `chosen` and three `rejected` (concise, detailed, markdown): nine pairs.

    meta: domain, and the styles (0 to 2) of both responses, which make a pair hard, normal or easy.
    """
    chosen, rejected = fields.texts(record, "chosen"), fields.texts(record, "rejected")
    if not len(chosen) == len(rejected) == 3:
        raise Malformed("'chosen' and 'rejected' are not three texts each")
    query, name = fields.text(record, "prompt"), f"rmbench-{record.get('id', name)}"
    domain = record.get("domain") or record.get("subset")
    return [
        better_first(query, [chosen[i]], [rejected[j]], f"{name}-{i}{j}", meta=meta)
        for i in range(3)
        for j in range(3)
        for meta in [{"domain": domain, "chosen_style": i, "rejected_style": j}]
    ]


def _answer(record: Record, key: str) -> str:
    return fields.text(fields.field(record, key, dict, "an object with 'answer'"), "answer")


@_layout("rmb", "RMB", matches=lambda r: "conversation_input" in r)
def rmb(record: Record, name: str) -> list[Comparison]:
    """`conversation_input`, and `chosen` and `reject` (a pair) or `bon_best` and `loser_list`."""
    turns = fields.turns(fields.items(record, "conversation_input", "turns"), "conversation_input")
    meta = categories(record)
    if "bon_best" in record:
        name = f"rmb-bon-{record.get('bon_uid', name)}"
        losers = [
            _answer({"a loser": loser}, "a loser") for loser in fields.items(record, "loser_list")
        ]
        if not losers:
            raise Unusable("no losers")
        return [better_first(turns, [_answer(record, "bon_best")], losers, name, meta=meta)]
    name = f"rmb-pair-{record.get('pair_uid', name)}"
    better, worse = _answer(record, "chosen"), _answer(record, "reject")
    return [better_first(turns, [better], [worse], name, meta=meta)]
