"""Layouts of published preference sets: how one record becomes comparisons.

`LAYOUTS[name].read(record, name_of_record)` returns comparisons with the responses in the published
order. Where a field says which of two is better, the better one comes first. To add a layout,
register one function here; `grm judge --format`, `layout` in a training config and docs/data.md
all use this registry.

    @_layout("my_set", "me/my-set")
    def my_set(record, name):
        good, bad = _text(record, "good"), _text(record, "bad")
        return [_preference(_text(record, "question"), [good], [bad], name)]

`data.comparisons` reads files with it, and places the responses for training.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from grm_jax.data.answers import boxed_answer, same_answer
from grm_jax.data.records import Malformed, Unusable
from grm_jax.registry import Registry
from grm_jax.types import Comparison, Turn

Record = dict[str, Any]
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
_PAIR = ("chosen", "rejected")


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


# ---------------------------------------------------------------- fields


def _field(record: Record, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
    if key not in record:
        raise Malformed(
            f"the field {key!r} is missing; the record has {', '.join(map(repr, record)) or 'none'}"
        )
    return _checked(record[key], f"the field {key!r}", kind, expected)


def _checked(value: Any, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Malformed(f"{name} is {value!r:.60}: give {expected}")
    return value


def _text(record: Record, key: str) -> str:
    return _field(record, key, str, "a text")


def _number(record: Record, key: str) -> float:
    return _field(record, key, (int, float), "a number")


def _list(record: Record, key: str, of: str = "values") -> list:
    return _field(record, key, list, f"a list of {of}")


def _texts(record: Record, key: str) -> list[str]:
    texts = _list(record, key, "texts")
    if not all(isinstance(text, str) for text in texts):
        raise Malformed(f"the field {key!r} holds an item that is not text")
    return texts


def _answer(record: Record, key: str) -> str:
    return _text(_field(record, key, dict, "an object with 'answer'"), "answer")


def _turns(turns: Sequence[Any], name: str) -> list[Turn]:
    """Chat turns with `role` and `content`; the names that ShareGPT uses are replaced."""
    if not turns:
        raise Malformed(f"{name} has no turns")
    clean = []
    for turn in turns:
        _checked(turn, f"a turn of {name}", dict, "an object with 'role' and 'content'")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise Malformed(f"a turn of {name} is {turn!r:.60}: role and content must be texts")
        kept = {key: value for key, value in turn.items() if key not in ("from", "value")}
        role = {"human": "user", "gpt": "assistant"}.get(role, role)
        clean.append(kept | {"role": role, "content": content})
    return clean


def _query(record: Record, key: str) -> str | list[Turn]:
    query = _field(record, key, (str, list), "a text or a list of turns")
    return _turns(query, key) if isinstance(query, list) else query


# ---------------------------------------------------------------- our own, and what TRL reads


def _preference(
    query: str | list[Turn], better: Sequence[str], worse: Sequence[str], name: str, **fields: Any
) -> Comparison:
    """The better responses first. One of them gives an index label, several give rewards."""
    label = 0 if len(better) == 1 else (1.0,) * len(better) + (0.0,) * len(worse)
    return Comparison(query, (*better, *worse), label=label, id=name, **fields)


def _categories(record: Record) -> dict[str, Any]:
    return {key: record[key] for key in ("subset", "category_path", "section") if key in record}


def _has_responses(record: Record) -> bool:
    return "responses" in record


@_layout("comparison", "files for `grm judge`", matches=_has_responses, keeps_order=True)
def comparison(record: Record, name: str) -> list[Comparison]:
    """{"query", "responses"} and, optional, "label", "reference", "id", "meta"."""
    query, label = _query(record, "query"), record.get("label")
    responses = tuple(_list(record, "responses", "texts"))
    label = tuple(label) if isinstance(label, list) else label
    meta = dict(_checked(record.get("meta") or {}, "the field 'meta'", dict, "an object"))
    id = str(record.get("id") or name)
    return [Comparison(query, responses, record.get("reference"), label, id, meta)]


def _is_pair(record: Record, turns: bool) -> bool:
    """Whether a record has `chosen` and `rejected`, as turns or as texts."""
    if not {"chosen", "rejected"} <= record.keys() or "conversation_input" in record:
        return False
    chosen = record["chosen"]
    are_turns = isinstance(chosen, list) and all(isinstance(turn, dict) for turn in chosen)
    return turns == (are_turns or not isinstance(record.get("prompt"), str))


@_layout("rewardbench", "RewardBench 1 and 2", matches=lambda r: _is_pair(r, turns=False))
def rewardbench(record: Record, name: str) -> list[Comparison]:
    """`prompt`, and `chosen` and `rejected`: a text or a list of texts."""
    chosen, rejected = (
        [record[key]] if isinstance(record.get(key), str) else _texts(record, key) for key in _PAIR
    )
    query, meta = _query(record, "prompt"), _categories(record)
    return [_preference(query, chosen, rejected, name, meta=meta)]


@_layout("trl", "preference sets for TRL", matches=lambda r: _is_pair(r, turns=True))
def trl(record: Record, name: str) -> list[Comparison]:
    """`chosen` and `rejected`: texts after a `prompt`, or turns.

    Without a prompt, the turns that both share are the query.
    """
    meta = _categories(record)
    chosen, rejected = (
        _field(record, key, (str, list), "a text or a list of turns") for key in _PAIR
    )
    prompt = None if record.get("prompt") is None else _query(record, "prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise Malformed("chosen and rejected are texts without a prompt: name the query")
        return [_preference(prompt, [chosen], [rejected], name, meta=meta)]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("chosen and rejected must both be texts, or both be lists of turns")
    chosen, rejected = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise Malformed("chosen and rejected do not share their first turn: there is no query")
    for key, turns in zip(_PAIR, (chosen, rejected)):
        if len(turns) != 1:
            raise Malformed(f"{key} has {len(turns)} turns after those that both share: one answer")
    better, worse = chosen[0]["content"], rejected[0]["content"]
    return [_preference(prompt, [better], [worse], name, meta=meta)]


# ---------------------------------------------------------------- training sets


@_layout("skywork", "Skywork-Reward-Preference")
def skywork(record: Record, name: str) -> list[Comparison]:
    """`chosen` and `rejected` conversations that differ in their last turn, `source`."""
    (pair,) = trl({key: _list(record, key, "turns") for key in _PAIR}, name)
    return [dataclasses.replace(pair, meta={"source": record.get("source")})]


@_layout("ultrafeedback", "openbmb/UltraFeedback")
def ultrafeedback(record: Record, name: str) -> list[Comparison]:
    """`instruction`, `completions` with `response` and `overall_score`, which is the reward."""
    responses, scores = [], []
    for completion in _list(record, "completions", "objects"):
        _checked(completion, "a completion", dict, "an object")
        responses.append(_text(completion, "response"))
        scores.append(float(_number(completion, "overall_score")))
    if len(responses) < 2:
        raise Unusable(
            "one completion, with a score that is not 0 or 1" if responses else "no completions"
        )
    query, meta = _text(record, "instruction"), {"source": record.get("source")}
    return [Comparison(query, tuple(responses), label=tuple(scores), id=name, meta=meta)]


_HELPSTEER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


@_layout("helpsteer2", "HelpSteer2-Preference")
def helpsteer2(record: Record, name: str) -> list[Comparison]:
    """`prompt`, `response_1`, `response_2`, `preference_strength` from -3 (first) to 3 (second).

    The strength (1 to 3) becomes meta["strength"], for hinted sampling. A prompt may hold turns.
    """
    strength = _number(record, "preference_strength")
    if not -3 <= strength <= 3:
        raise Malformed(f"the field 'preference_strength' is {strength}: give a number in -3 to 3")
    first, *rest = _HELPSTEER_TURN.split(_text(record, "prompt"))
    turns = [{"role": "user", "content": first}]
    turns += [{"role": role.lower(), "content": text} for role, text in zip(rest[::2], rest[1::2])]
    pair = [_text(record, "response_1"), _text(record, "response_2")]
    if strength == 0:
        raise Unusable("no single best response")
    better, worse = pair[::-1] if strength > 0 else pair
    return [_preference(turns, [better], [worse], name, meta={"strength": int(abs(strength))})]


@_layout("offsetbias", "NCSOFT/offsetbias")
def offsetbias(record: Record, name: str) -> list[Comparison]:
    """`instruction`, `output_1`, `output_2`, `label`: 1 or 2, the number of the better output."""
    label = _number(record, "label")
    if label not in (1, 2):
        raise Malformed(f"the field 'label' is {label}: give 1 or 2")
    pair = [_text(record, "output_1"), _text(record, "output_2")]
    better, worse = pair if label == 1 else pair[::-1]
    return [_preference(_text(record, "instruction"), [better], [worse], name)]


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
    return [_preference(answers.query, [best], wrong, name, reference=answers.reference)]


def _pairs(answers: Answers, name: str) -> list[Comparison]:
    """The i-th correct answer with the i-th wrong one."""
    return [
        _preference(answers.query, [a], [b], f"{name}-{i}", reference=answers.reference)
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
    texts = [_text(value, "solution") for value in solutions]
    correct = [_field(value, "is_correct", bool, "true or false") for value in solutions]
    reference = _text(record, "ground_truth") if "ground_truth" in record else None
    return Answers(_text(record, "question"), texts, correct, reference)


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
    samples = _texts(record, "samples")
    is_short = "answer" in record
    gold = _text(record, "answer") if is_short else boxed_answer(_text(record, "solution"))
    if gold is None:
        raise Malformed(r"the field 'solution' has no \boxed answer")
    answers = [boxed_answer(sample) for sample in samples]
    correct = [answer is not None and same_answer(answer, gold) for answer in answers]
    return Answers(_text(record, "problem"), samples, correct, record.get("solution"))


# ---------------------------------------------------------------- benchmarks


@_layout("rm_bench", "RM-Bench")
def rm_bench(record: Record, name: str) -> list[Comparison]:
    """`prompt`, three `chosen` and three `rejected` (concise, detailed, markdown): nine pairs.

    meta: domain, and the styles (0 to 2) of both responses, which make a pair hard, normal or easy.
    """
    chosen, rejected = _texts(record, "chosen"), _texts(record, "rejected")
    if not len(chosen) == len(rejected) == 3:
        raise Malformed("'chosen' and 'rejected' are not three texts each")
    query, name = _text(record, "prompt"), f"rmbench-{record.get('id', name)}"
    domain = record.get("domain") or record.get("subset")
    return [
        _preference(query, [chosen[i]], [rejected[j]], f"{name}-{i}{j}", meta=meta)
        for i in range(3)
        for j in range(3)
        for meta in [{"domain": domain, "chosen_style": i, "rejected_style": j}]
    ]


@_layout("rmb", "RMB", matches=lambda r: "conversation_input" in r)
def rmb(record: Record, name: str) -> list[Comparison]:
    """`conversation_input`, and `chosen` and `reject` (a pair) or `bon_best` and `loser_list`."""
    turns = _turns(_list(record, "conversation_input", "turns"), "conversation_input")
    meta = _categories(record)
    if "bon_best" in record:
        name = f"rmb-bon-{record.get('bon_uid', name)}"
        losers = [_answer({"a loser": loser}, "a loser") for loser in _list(record, "loser_list")]
        if not losers:
            raise Unusable("no losers")
        return [_preference(turns, [_answer(record, "bon_best")], losers, name, meta=meta)]
    name = f"rmb-pair-{record.get('pair_uid', name)}"
    better, worse = _answer(record, "chosen"), _answer(record, "reject")
    return [_preference(turns, [better], [worse], name, meta=meta)]
