"""The judging world: pure items, rule-based labels, balance, disjoint splits."""

import collections
import json

import pytest

from grm_jax.data import world
from grm_jax.data.world import families, responses
from grm_jax.data.world.controls import CONTROLS


@pytest.fixture(scope="module")
def items():
    return world.make_items("train", 0, 3000)


def test_item_depends_only_on_seed_split_and_index(items):
    assert world.make_items("train", 1234, 3) == items[1234:1237]
    assert world.make_items("train", 0, 3, seed=1) != items[:3]
    assert world.make_items("test", 0, 3) != items[:3]


def test_items_do_not_change_between_versions():
    # A checkpoint stores a position in the data, which must give the same items later.
    first = world.make_items("test", 0, 2)
    assert [(c.query, c.responses, c.label) for c in first] == [
        ("reverse d a", ("so: d a", "i am sure: a d"), 1),
        ("in capitals fish bird", ("i am sure: FISH DOG",), (0.0,)),
    ]


def test_labels_agree_with_the_rule(items):
    for c in items:
        meta = c.meta["world"]
        family = families.FAMILIES[meta["family"]]
        grades = [responses.grade(family, tuple(meta["args"]), text) for text in c.responses]
        assert grades == meta["grades"]
        if c.n == 1:
            assert c.label == (float(grades[0] == responses.RIGHT),)
        else:
            assert [i for i, g in enumerate(grades) if g == max(grades)] == [c.label]


SOLVED = {  # computed by hand
    ("add", ("7", "8")): "15",
    ("largest", ("10", "9")): "10",
    ("smallest", ("10", "9")): "9",
    ("sort", ("10", "9", "2")): "2 9 10",
    ("descend", ("3", "10")): "10 3",
    ("reverse", ("a", "b", "c")): "c b a",
    ("repeat", ("a", "a", "b")): "a a b",
    ("count", ("a", "b", "a", "a")): "2",
    ("member", ("a", "b", "c")): "no",
    ("first", ("k", "b")): "k",
    ("last", ("k", "b")): "b",
    ("replace", ("a", "k", "b", "a")): "b k",
    ("remove", ("a", "k", "b", "a")): "b",
    ("capitals", ("cat", "sun")): "CAT SUN",
}


@pytest.mark.parametrize("case", SOLVED, ids=lambda case: case[0])
def test_solve_gives_the_correct_result(case):
    name, args = case
    assert families.FAMILIES[name].solve(args) == SOLVED[case]


@pytest.mark.parametrize(
    "name, args, answer, right",
    [
        ("length", ("3",), "cat dog sun", True),
        ("length", ("3",), "cat dog", False),
        ("ending", ("dog",), "cat dog", True),
        ("ending", ("dog",), "dog cat", False),
        ("opening", ("dog",), "dog cat", True),
        ("opening", ("dog",), "cat dog", False),
    ],
)
def test_instruction_following_families_grade_the_form(name, args, answer, right):
    family = families.FAMILIES[name]
    assert (responses.grade(family, args, "so: " + answer) == responses.RIGHT) == right


def test_grades_of_a_response():
    add = families.FAMILIES["add"]
    graded = {"so: 5": 3, "so: 5 or 6": 2, "i am sure: 6": 1, "it is: pass": 0, "5": 3, "6 or 7": 1}
    assert {text: responses.grade(add, ("2", "3"), text) for text in graded} == graded


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize("level", families.LEVELS)
def test_every_family_has_every_level(name, level):
    config = world.WorldConfig(levels={level: 1.0}, sizes={2: 0.5, 6: 0.5})
    made = world.make_items("train", 0, 12, families=[name], config=config)
    assert {c.meta["world"]["level"] for c in made} == {level}


def test_higher_levels_have_longer_queries():
    def length(level):
        config = world.WorldConfig(levels={level: 1.0}, sizes={2: 1.0})
        return sum(len(c.query) for c in world.make_items("train", 0, 200, config=config))

    lengths = [length(level) for level in families.LEVELS]
    assert lengths == sorted(lengths) and len(set(lengths)) == 4


def test_splits_share_no_open_query_and_no_item():
    made = {split: world.make_items(split, 0, 1500) for split in world.SPLITS}
    general = {split: world.general_items(split, 0, 1500) for split in world.SPLITS}
    open_names = {f.name for f in families.FAMILIES.values() if not f.closed}
    seen = collections.defaultdict(set)
    items = collections.defaultdict(set)
    for split in world.SPLITS:
        for c in made[split]:
            if c.meta["world"]["family"] in open_names:
                seen[split].add(c.query)
            items[split].add((c.query, tuple(sorted(c.responses))))
        seen[split] |= {g.query for g in general[split] if g.meta["family"] in open_names}
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not seen[a] & seen[b]
        assert not items[a] & items[b]


def test_held_out_families_occur_in_general_instructions_only(items):
    assert not {c.meta["world"]["family"] for c in items} & set(world.HELD_OUT_NAMES)
    assert {g.meta["family"] for g in world.general_items("train", 0, 500)} == set(
        families.FAMILIES
    )
    held_out = world.make_items("test", 0, 200, families=world.HELD_OUT_NAMES)
    assert {c.meta["world"]["family"] for c in held_out} == set(world.HELD_OUT_NAMES)
    assert len(families.TRAINED) >= 8


def test_general_answers_are_correct():
    for g in world.general_items("train", 0, 500):
        family = families.FAMILIES[g.meta["family"]]
        assert responses.answer_of(g.answer) not in responses.NO_ANSWERS
        if g.meta["family"] == "add":
            a, b = g.query.split()[1:]
            assert responses.grade(family, (a, b), g.answer) == responses.RIGHT


def test_sizes_and_positions_of_the_best_are_balanced(items):
    sizes = collections.Counter(c.n for c in items)
    assert set(sizes) == {1, 2, 3, 4, 5, 6}
    pairs = [c for c in items if c.n == 2]
    assert abs(sum(c.label == 0 for c in pairs) / len(pairs) - 0.5) < 0.04
    singles = [c for c in items if c.n == 1]
    assert abs(sum(c.label == (1.0,) for c in singles) / len(singles) - 0.5) < 0.1


@pytest.mark.parametrize("name", ["longest", "shortest", "first", "last", "random", "surest"])
def test_content_blind_policies_stay_near_chance(items, name):
    many = [c for c in items if c.n >= 2]
    chance = sum(1 / c.n for c in many) / len(many)
    right = sum(_wins(CONTROLS[name](c), c.label) for c in many) / len(many)
    assert abs(right - chance) < 0.05


def _wins(scores, label):
    return all(scores[label] > s for i, s in enumerate(scores) if i != label)


def test_reference_is_off_by_default():
    assert world.make_items("train", 0, 1)[0].reference is None
    config = world.WorldConfig(reference=True)
    for c in world.make_items("train", 0, 50, config=config):
        meta = c.meta["world"]
        assert (
            families.FAMILIES[meta["family"]].read(tuple(meta["args"]), c.reference)
            == meta["result"]
        )


def test_meta_is_json(items):
    assert json.loads(json.dumps(items[0].meta)) == items[0].meta


def test_errors_name_the_invalid_value():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        world.make_items("dev", 0, 1)
    with pytest.raises(ValueError, match="unknown family 'poetry'"):
        world.make_items("train", 0, 1, families=["poetry"])
    with pytest.raises(ValueError, match="must not be negative"):
        world.make_items("train", -1, 1)
    with pytest.raises(ValueError, match="families is empty"):
        world.make_items("train", 0, 1, families=[])
    with pytest.raises(ValueError, match="levels"):
        world.WorldConfig(levels={7: 1.0})
    with pytest.raises(ValueError, match=r"distractors \[3\] are no grades: use \[0, 1, 2\]"):
        world.WorldConfig(distractors={1: 1.0, 3: 1.0})
    with pytest.raises(ValueError, match="distractors {2: 1.0}: weigh 1 or 0 above 0"):
        world.WorldConfig(distractors={2: 1.0})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"levels": {}}, "levels {}: weights"),
        ({"sizes": {2: 0}}, "sizes {2: 0}: weights"),
        ({"levels": {0: -1, 1: 2}}, "levels {0: -1, 1: 2}: weights"),
        ({"distractors": {1: float("nan")}}, "distractors {1: nan}: weights"),
        ({"sizes": {2.5: 1}}, r"sizes \[2.5\]: a comparison has"),
        ({"best_hedged": 5}, "best_hedged 5: use a share from 0 to 1"),
    ],
)
def test_impossible_distributions_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        world.WorldConfig(**fields)
