"""The scripted critic: parseable texts, adjustable accuracy, errors of each kind."""

import random

import pytest

from grm_jax.data import world
from grm_jax.data.world import families, teacher
from grm_jax.text import parse
from grm_jax.types import Comparison


@pytest.fixture(scope="module")
def items():
    return world.make_items("train", 0, 1500)


def outcome(c, text, order):
    """(critique, right, tied) by the strict rule, in prompt order."""
    low, high = (0, 1) if c.n == 1 else (1, 10)
    critique = parse(text, c.n, low, high)
    assert critique.status == "ok", text
    if c.n == 1:
        return critique, critique.scores[0] == c.label[0], False
    best = order.index(c.label)
    right = all(critique.scores[best] > s for j, s in enumerate(critique.scores) if j != best)
    tied = sorted(critique.scores)[-1] == sorted(critique.scores)[-2]
    return critique, right, tied


def rates(items, **options):
    right = tied = 0
    for i, c in enumerate(items):
        order = random.Random(i).sample(range(c.n), c.n)
        _, ok, tie = outcome(c, teacher.critique(c, order, i, **options), order)
        right, tied = right + ok, tied + tie
    return right / len(items), tied / len(items)


def test_every_text_without_errors_is_correct(items):
    assert rates(items, accuracy=1.0, shortcut=0.0) == (1.0, 0.0)


@pytest.mark.parametrize("accuracy", [0.2, 0.5, 0.8])
def test_accuracy_is_adjustable(items, accuracy):
    right, _ = rates(items, accuracy=accuracy, shortcut=0.0)
    # Some errors are harmless (a misread loser), so measured accuracy is above the set one, by less
    # than a quarter of the errors.
    assert accuracy - 0.03 < right < accuracy + 0.25 * (1 - accuracy) + 0.03


def test_each_kind_of_error(items):
    many = [c for c in items if c.n >= 2]
    tie = teacher.Errors(slip=0, principle=0, misread=0, tie=1)
    assert rates(many, accuracy=0.0, shortcut=0.0, errors=tie) == (0.0, 1.0)
    slip = teacher.Errors(slip=1, principle=0, misread=0, tie=0)
    for i, c in enumerate(many[:200]):
        text = teacher.critique(c, range(c.n), i, 0.0, shortcut=0.0, errors=slip)
        assert f"result {c.meta['world']['result']}\n" not in text


def test_principles_fit_the_query_and_an_improper_one_gives_a_wrong_result(items):
    improper = teacher.Errors(slip=0, principle=1, misread=0, tie=0)
    for i, c in enumerate(items[:200]):
        aim = teacher.AIMS[c.meta["world"]["family"]]
        assert f"%): {aim}\n" in teacher.critique(c, range(c.n), i, 1.0, shortcut=0.0)
        improper_text = teacher.critique(c, range(c.n), i, 0.0, shortcut=0.0, errors=improper)
        assert f"%): {aim}\n" not in improper_text
        assert f"result {c.meta['world']['result']}\n" not in improper_text
    assert set(teacher.AIMS) == set(families.FAMILIES)


def test_errors_propagate_from_working_to_scores(items):
    # After a slip, the response that shows the wrong result is called right and scores highest.
    slip = teacher.Errors(slip=1, principle=0, misread=0, tie=0)
    c = next(c for c in items if c.n == 2 and c.meta["world"]["grades"] == [3, 1])
    texts = [
        teacher.critique(c, (0, 1), seed, 0.0, shortcut=0.0, errors=slip) for seed in range(20)
    ]
    shown = f"result {c.meta['world']['readings'][1]}\n"
    followed = [text for text in texts if shown in text]
    assert followed
    for text in followed:
        scores = parse(text, 2).scores
        assert scores[1] > scores[0]


def test_shortcuts_are_correct_about_as_often_as_chance(items):
    many = [c for c in items if c.n >= 2]
    chance = sum(1 / c.n for c in many) / len(many)
    right, _ = rates(many, shortcut=1.0)
    assert abs(right - chance) < 0.06
    assert (
        "result"
        not in teacher.critique(many[0], range(many[0].n), 0, shortcut=1.0).split("\n\n")[1]
    )


def test_every_hinted_text_is_correct(items):
    for shortcut in (0.0, 1.0):
        for i, c in enumerate(items[:300]):
            order = random.Random(i).sample(range(c.n), c.n)
            hint = 0 if c.n == 1 else c.label
            text = teacher.critique(c, order, i, 0.1, shortcut=shortcut, hint=hint)
            assert outcome(c, text, order)[1]


def test_weights_of_principles_add_up_to_100(items):
    for i, c in enumerate(items[:50]):
        critique = parse(
            teacher.critique(c, range(c.n), i), c.n, 0 if c.n == 1 else 1, 1 if c.n == 1 else 10
        )
        assert len(critique.principles) == 2
        assert sum(p.weight for p in critique.principles) == 100
        assert all(p.description for p in critique.principles)
    assert (
        parse(
            teacher.critique(items[0], range(items[0].n), 0, principles=False), items[0].n
        ).principles
        == ()
    )


def test_readings_are_in_prompt_order(items):
    c = next(c for c in items if c.n == 3 and len(set(c.meta["world"]["readings"])) == 3)
    text = teacher.critique(c, (2, 0, 1), 0, 1.0, shortcut=0.0)
    readings = c.meta["world"]["readings"]
    assert [f"\n{j + 1}: {readings[i]} " in text for j, i in enumerate((2, 0, 1))] == [True] * 3


def test_same_seed_gives_the_same_text(items):
    c = items[0]
    assert teacher.critique(c, range(c.n), 5) == teacher.critique(c, range(c.n), random.Random(5))
    assert len({teacher.critique(c, range(c.n), seed) for seed in range(20)}) > 3


def test_other_comparisons_are_refused():
    with pytest.raises(ValueError, match="needs world items"):
        teacher.critique(Comparison("q", ("a", "b"), label=0), (0, 1), 0)
    with pytest.raises(ValueError, match="not a permutation"):
        teacher.critique(world.make_items("train", 0, 1)[0], (0, 0), 0)
