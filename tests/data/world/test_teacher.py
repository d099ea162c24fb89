"""The scripted critic: readable by the parser, as accurate as asked, wrong in the ways it says."""

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


def test_without_errors_every_text_is_right(items):
    assert rates(items, accuracy=1.0, shortcut=0.0) == (1.0, 0.0)


@pytest.mark.parametrize("accuracy", [0.2, 0.5, 0.8])
def test_accuracy_is_adjustable(items, accuracy):
    right, _ = rates(items, accuracy=accuracy, shortcut=0.0)
    # Some errors do no harm (a misread loser): what comes out lies above what was asked, by less than a quarter of the errors.
    assert accuracy - 0.03 < right < accuracy + 0.25 * (1 - accuracy) + 0.03


def test_each_error_does_what_it_says(items):
    many = [c for c in items if c.n >= 2]
    tie = teacher.Errors(slip=0, principle=0, misread=0, tie=1)
    assert rates(many, accuracy=0.0, shortcut=0.0, errors=tie) == (0.0, 1.0)
    slip = teacher.Errors(slip=1, principle=0, misread=0, tie=0)
    for i, c in enumerate(many[:200]):
        text = teacher.critique(c, range(c.n), i, 0.0, shortcut=0.0, errors=slip)
        assert f"result {c.meta['world']['result']}\n" not in text


def test_principles_are_about_the_query_and_an_improper_one_leads_astray(items):
    improper = teacher.Errors(slip=0, principle=1, misread=0, tie=0)
    for i, c in enumerate(items[:200]):
        aim = teacher.AIMS[c.meta["world"]["family"]]
        assert f"%): {aim}\n" in teacher.critique(c, range(c.n), i, 1.0, shortcut=0.0)
        astray = teacher.critique(c, range(c.n), i, 0.0, shortcut=0.0, errors=improper)
        assert f"%): {aim}\n" not in astray
        assert f"result {c.meta['world']['result']}\n" not in astray
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


def test_a_shortcut_is_right_about_as_often_as_chance(items):
    many = [c for c in items if c.n >= 2]
    chance = sum(1 / c.n for c in many) / len(many)
    right, _ = rates(many, shortcut=1.0)
    assert abs(right - chance) < 0.06
    assert (
        "result"
        not in teacher.critique(many[0], range(many[0].n), 0, shortcut=1.0).split("\n\n")[1]
    )


def test_a_hint_makes_every_text_right(items):
    for shortcut in (0.0, 1.0):
        for i, c in enumerate(items[:300]):
            order = random.Random(i).sample(range(c.n), c.n)
            hint = 0 if c.n == 1 else c.label
            text = teacher.critique(c, order, i, 0.1, shortcut=shortcut, hint=hint)
            assert outcome(c, text, order)[1]


def test_principles_carry_weights_that_add_up(items):
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


def test_readings_follow_the_order_of_the_prompt(items):
    c = next(c for c in items if c.n == 3 and len(set(c.meta["world"]["readings"])) == 3)
    text = teacher.critique(c, (2, 0, 1), 0, 1.0, shortcut=0.0)
    readings = c.meta["world"]["readings"]
    assert [f"\n{j + 1}: {readings[i]} " in text for j, i in enumerate((2, 0, 1))] == [True] * 3


def test_the_same_seed_writes_the_same_text(items):
    c = items[0]
    assert teacher.critique(c, range(c.n), 5) == teacher.critique(c, range(c.n), random.Random(5))
    assert len({teacher.critique(c, range(c.n), seed) for seed in range(20)}) > 3


def test_it_only_knows_the_world():
    with pytest.raises(ValueError, match="needs world items"):
        teacher.critique(Comparison("q", ("a", "b"), label=0), (0, 1), 0)
    with pytest.raises(ValueError, match="not a permutation"):
        teacher.critique(world.make_items("train", 0, 1)[0], (0, 0), 0)
