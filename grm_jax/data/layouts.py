"""The column layouts of published preference sets, each read into comparisons.

A layout is a function (record, name) -> list of Comparison. It raises Malformed for wrong columns and Unusable where no
response is the single best. Published pairs put the better response first or under its own column: here every response
gets a place that depends only on the record's name, so the label's position carries nothing.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence

from grm_jax.data.answers import boxed_answer, same_answer
from grm_jax.data.records import Malformed, Unusable
from grm_jax.types import Comparison

Layout = Callable[[dict, str], list[Comparison]]
MODES = ("groups", "pairs", "singles")


# ---------------------------------------------------------------- columns


def _column(record: dict, key: str, kind: type | tuple[type, ...], what: str):
    if key not in record:
        raise Malformed(f"no column {key!r}; it has {', '.join(map(repr, record)) or 'none'}")
    value = record[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Malformed(f"column {key!r} is {value!r:.60}: {what} is needed")
    return value


def _text(record: dict, key: str) -> str:
    return _column(record, key, str, "a text")


def _number(record: dict, key: str) -> float:
    return _column(record, key, (int, float), "a number")


def _list(record: dict, key: str) -> list:
    return _column(record, key, list, "a list")


def _object(value, what: str) -> dict:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is {value!r:.60}: an object is needed")
    return value


def _turns(turns: list, what: str) -> list[dict[str, str]]:
    """Chat turns with only their role and content; ShareGPT's names are understood."""
    if not turns:
        raise Malformed(f"{what} has no turns")
    clean = []
    for turn in turns:
        turn = _object(turn, f"a turn of {what}")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise Malformed(f"a turn of {what} is {turn!r:.60}: role and content must be texts")
        clean.append(
            {"role": {"human": "user", "gpt": "assistant"}.get(role, role), "content": content}
        )
    return clean


def _query(turns: list[dict[str, str]]) -> str | list[dict[str, str]]:
    """A conversation of one user turn is plain text."""
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


# ---------------------------------------------------------------- places


def _place(name: str, count: int) -> list[int]:
    """A permutation that depends on nothing but the name."""
    places = list(range(count))
    random.Random(name).shuffle(places)
    return places


def _placed(
    query, responses: Sequence[str], rewards: Sequence[float], name: str, *, index: bool, **meta
) -> Comparison:
    """A comparison with its responses in the places of its name.

    index: the label is the index of the best; otherwise it is the rewards themselves.
    Raises Unusable where two responses share the highest reward (but one response alone is always usable).
    """
    reference = meta.pop("reference", None)
    if len(responses) > 1 and sum(r == max(rewards) for r in rewards) > 1:
        raise Unusable("no single best response")
    order = _place(name, len(responses))
    rewards = tuple(float(rewards[i]) for i in order)
    label = rewards.index(max(rewards)) if index and len(order) > 1 else rewards
    return Comparison(
        query,
        tuple(responses[i] for i in order),
        reference=reference,
        label=label,
        id=name,
        meta=meta,
    )


def _pair(query, better: str, worse: str, name: str, **meta) -> Comparison:
    return _placed(query, (better, worse), (1, 0), name, index=True, **meta)


# ---------------------------------------------------------------- our own


def comparison(record: dict, name: str) -> list[Comparison]:
    """{"query", "responses", "label", "reference", "id", "meta"}: the layout of `grm judge`. The order is kept."""
    query = _column(record, "query", (str, list), "a text or a list of turns")
    query = _query(_turns(query, "query")) if isinstance(query, list) else query
    responses = _list(record, "responses")
    if not all(isinstance(r, str) for r in responses):
        raise Malformed("column 'responses' holds something that is not a text")
    label, reference = record.get("label"), record.get("reference")
    label = tuple(label) if isinstance(label, list) else label
    meta = _object(record.get("meta") or {}, "column 'meta'")
    return [
        Comparison(
            query, tuple(responses), reference, label, str(record.get("id") or name), dict(meta)
        )
    ]


# ---------------------------------------------------------------- training sets


def ultrafeedback(record: dict, name: str) -> list[Comparison]:
    """openbmb/UltraFeedback: `instruction`, `completions` with `response` and `overall_score`. Scores are the rewards."""
    responses, scores = [], []
    for completion in _list(record, "completions"):
        completion = _object(completion, "a completion")
        responses.append(_text(completion, "response"))
        scores.append(_number(completion, "overall_score"))
    if not responses:
        raise Unusable("no completions")
    if len(responses) == 1:
        raise Unusable("one completion, with a score that is not 0 or 1")
    return [
        _placed(
            _text(record, "instruction"),
            responses,
            scores,
            name,
            index=False,
            source=record.get("source"),
        )
    ]


_HELPSTEER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


def helpsteer2(record: dict, name: str) -> list[Comparison]:
    """HelpSteer2-Preference: `prompt`, `response_1`, `response_2`, `preference_strength` from -3 (first) to 3 (second).

    The strength (1 to 3) stays in meta["strength"], for hinted sampling. Turns inside a prompt are taken apart.
    """
    strength = _number(record, "preference_strength")
    if not -3 <= strength <= 3:
        raise Malformed(f"column 'preference_strength' is {strength}: -3 to 3 is needed")
    if strength == 0:
        raise Unusable("no single best response")
    parts = _HELPSTEER_TURN.split(_text(record, "prompt"))
    turns = [{"role": "user", "content": parts[0]}]
    turns += [
        {"role": role.lower(), "content": text} for role, text in zip(parts[1::2], parts[2::2])
    ]
    first, second = _text(record, "response_1"), _text(record, "response_2")
    better, worse = (second, first) if strength > 0 else (first, second)
    return [_pair(_query(turns), better, worse, name, strength=int(abs(strength)))]


def offsetbias(record: dict, name: str) -> list[Comparison]:
    """NCSOFT/offsetbias: `instruction`, `output_1`, `output_2`, `label` (1 or 2: the number of the better)."""
    label = _number(record, "label")
    if label not in (1, 2):
        raise Malformed(f"column 'label' is {label}: 1 or 2 is needed")
    outputs = _text(record, "output_1"), _text(record, "output_2")
    better, worse = outputs if label == 1 else outputs[::-1]
    return [_pair(_text(record, "instruction"), better, worse, name)]


def skywork(record: dict, name: str) -> list[Comparison]:
    """Skywork-Reward-Preference: `chosen` and `rejected` conversations that differ in their last turn, `source`."""
    chosen = _turns(_list(record, "chosen"), "chosen")
    rejected = _turns(_list(record, "rejected"), "rejected")
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise Malformed("'chosen' and 'rejected' do not share every turn but the last")
    better, worse = chosen[-1]["content"], rejected[-1]["content"]
    return [_pair(_query(chosen[:-1]), better, worse, name, source=record.get("source"))]


# ---------------------------------------------------------------- verified answers


def _verified(
    query: str, texts: list[str], right: list[bool], name: str, mode: str, reference: str | None
) -> list[Comparison]:
    """Comparisons from answers of known correctness.

    groups: one right answer (picked by name) among all wrong ones; pairs: the i-th right with the i-th wrong one;
    singles: each answer alone, labelled 1 or 0.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not known: use one of {', '.join(MODES)}")
    rights = [t for t, ok in zip(texts, right) if ok]
    wrongs = [t for t, ok in zip(texts, right) if not ok]
    if mode == "singles":
        return [
            Comparison(query, (text,), reference, (float(ok),), f"{name}-{i}")
            for i, (text, ok) in enumerate(zip(texts, right))
        ]
    if not rights or not wrongs:
        raise Unusable("all right" if rights else "all wrong")
    if mode == "pairs":
        pairs = enumerate(zip(rights, wrongs))
        return [_pair(query, a, b, f"{name}-{i}", reference=reference) for i, (a, b) in pairs]
    best = rights[_place(name, len(rights))[0]]
    rewards = [1.0] + [0.0] * len(wrongs)
    return [_placed(query, [best, *wrongs], rewards, name, index=True, reference=reference)]


_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k(record: dict, name: str, mode: str = "groups") -> list[Comparison]:
    """GSM8K's groups of four solutions: `question`, `ground_truth`, four columns with `is_correct` and `solution`.

    Calculator annotations (<<3+4=7>>) are taken out of the texts.
    """
    texts, right = [], []
    for value in record.values():
        if isinstance(value, dict) and "solution" in value:
            texts.append(_CALCULATOR.sub("", _text(value, "solution")))
            right.append(_column(value, "is_correct", bool, "true or false"))
    if not texts:
        raise Malformed("no column holds a solution")
    reference = (
        _CALCULATOR.sub("", _text(record, "ground_truth")) if "ground_truth" in record else None
    )
    return _verified(_text(record, "question"), texts, right, name, mode, reference)


def math(record: dict, name: str, mode: str = "pairs") -> list[Comparison]:
    r"""Sampled solutions to MATH problems: `problem`, `solution` (or `answer`), `samples` (list of texts).

    A sample is right if its last \boxed answer equals the solution's. Samples without an answer count as wrong.
    """
    samples = _list(record, "samples")
    if not all(isinstance(sample, str) for sample in samples):
        raise Malformed("column 'samples' holds something that is not a text")
    gold = (
        _text(record, "answer") if "answer" in record else boxed_answer(_text(record, "solution"))
    )
    if gold is None:
        raise Malformed(r"column 'solution' has no \boxed answer")
    answers = [boxed_answer(sample) for sample in samples]
    right = [answer is not None and same_answer(answer, gold) for answer in answers]
    return _verified(_text(record, "problem"), samples, right, name, mode, record.get("solution"))


# ---------------------------------------------------------------- benchmarks


def rm_bench(record: dict, name: str) -> list[Comparison]:
    """RM-Bench: `prompt`, three `chosen` and three `rejected` (concise, detailed, markdown): nine pairs.

    meta: domain, and the styles (0 to 2) of the chosen and the rejected response, from which hard, normal and easy follow.
    """
    chosen, rejected = _list(record, "chosen"), _list(record, "rejected")
    if not (len(chosen) == len(rejected) == 3) or not all(
        isinstance(t, str) for t in chosen + rejected
    ):
        raise Malformed("'chosen' and 'rejected' are not three texts each")
    query, name = _text(record, "prompt"), f"rmbench-{record.get('id', name)}"
    domain = record.get("domain") or record.get("subset")
    return [
        _pair(
            query,
            chosen[i],
            rejected[j],
            f"{name}-{i}{j}",
            domain=domain,
            chosen_style=i,
            rejected_style=j,
        )
        for i in range(3)
        for j in range(3)
    ]


def rmb(record: dict, name: str) -> list[Comparison]:
    """RMB, pairwise (`chosen`, `reject`) and best-of-n (`bon_best`, `loser_list`) records over `conversation_input`."""
    turns = _turns(_list(record, "conversation_input"), "conversation_input")
    category = record.get("category_path")
    if "bon_best" in record:
        losers = [
            _text(_object(loser, "a loser"), "answer") for loser in _list(record, "loser_list")
        ]
        texts = [_text(_object(record["bon_best"], "bon_best"), "answer"), *losers]
        if len(texts) < 2:
            raise Unusable("no losers")
        name = f"rmb-bon-{record.get('bon_uid', name)}"
        return [
            _placed(
                _query(turns),
                texts,
                [1.0] + [0.0] * len(losers),
                name,
                index=True,
                category=category,
            )
        ]
    better = _text(_object(_column(record, "chosen", dict, "an object"), "chosen"), "answer")
    worse = _text(_object(_column(record, "reject", dict, "an object"), "reject"), "answer")
    return [
        _pair(
            _query(turns),
            better,
            worse,
            f"rmb-pair-{record.get('pair_uid', name)}",
            category=category,
        )
    ]


LAYOUTS: dict[str, Layout] = {
    "comparison": comparison,
    "ultrafeedback": ultrafeedback,
    "helpsteer2": helpsteer2,
    "offsetbias": offsetbias,
    "skywork": skywork,
    "gsm8k": gsm8k,
    "gsm8k_pairs": functools.partial(gsm8k, mode="pairs"),
    "gsm8k_singles": functools.partial(gsm8k, mode="singles"),
    "math": math,
    "math_groups": functools.partial(math, mode="groups"),
    "math_singles": functools.partial(math, mode="singles"),
    "rm_bench": rm_bench,
    "rmb": rmb,
}


def get_layout(name: str) -> Layout:
    """Looks a layout up; ValueError with the known names otherwise."""
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}: use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
