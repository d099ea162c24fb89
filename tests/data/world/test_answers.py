"""Tasks for a policy: their queries, the truth of answers, demonstrations."""

import pytest

from grm_jax.data import world
from grm_jax.data.world import answers, families, responses
from grm_jax.data.world.families import FAMILIES
from grm_jax.types import Comparison


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_truth_of_world_responses_agrees_with_the_labels(name):
    for c in world.make_items("train", 0, 1000, families=[name]):
        task, grades = answers.Task.of(c), c.meta["world"]["grades"]
        truths = [task.truth(response) for response in c.responses]
        assert task.query == c.query
        if c.n == 1:
            assert (truths[0] == 1.0) == bool(c.label[0]), c
            continue
        assert [i for i, truth in enumerate(truths) if truth == max(truths)] == [c.label], c
        # The order of all responses is that of their grades, not that of the best one alone.
        assert all(
            (truths[i] > truths[j]) == (grades[i] > grades[j])
            for i in range(c.n)
            for j in range(c.n)
        ), c


def test_a_task_is_a_function_of_seed_split_and_index():
    tasks = [answers.task(i, 0, "train") for i in range(300)]
    assert tasks == [answers.task(i, 0, "train") for i in range(300)]
    assert {task.family for task in tasks} == set(families.TRAINED_NAMES)
    assert {task.level for task in tasks} == set(world.DEFAULT.levels)
    assert tasks[:9] != [answers.task(i, 1, "train") for i in range(9)]
    easy = world.WorldConfig(levels={0: 1})
    held_out = answers.task(3, 0, "test", world.HELD_OUT_NAMES, easy)
    assert held_out.family in world.HELD_OUT_NAMES and held_out.level == 0


def test_no_open_query_is_in_two_splits():
    queries = {
        split: {
            task.query
            for task in (answers.task(i, 0, split) for i in range(500))
            if not FAMILIES[task.family].closed
        }
        for split in world.SPLITS
    }
    assert not queries["train"] & queries["test"]
    judged = {c.query for c in world.make_items("test", 0, 500) if c.query in queries["test"]}
    assert judged  # a judge is tested on queries of the same split
    assert not judged & queries["train"]


LARGEST = answers.Task("largest of 4 7 2", "largest", ("4", "7", "2"))
ENDING = answers.Task("end with cat", "ending", ("cat",))


@pytest.mark.parametrize(
    ("task", "text", "truth"),
    [
        (LARGEST, "7", 1.0),
        (LARGEST, "no doubt: i am sure: 7", 1.0),
        (LARGEST, "it is: 4", 0.1),
        (LARGEST, "so: 7 or 4", 0.5),
        (LARGEST, "so: 4 or 7 or 2", 1 / 3),
        (LARGEST, "so: 4 or 2", 0.1),
        (LARGEST, "so: 7 right", 0.0),
        (LARGEST, "so: 7\n\n\\boxed{9}", 0.0),
        (LARGEST, "so: 7\n[/Response 1]", 0.0),
        (LARGEST, "largest of 4 7 2", 0.0),
        (LARGEST, "so: pass", 0.0),
        (LARGEST, "so: ", 0.0),
        (LARGEST, "", 0.0),
        (LARGEST, " \n", 0.0),
        (ENDING, "so: dog cat", 1.0),
        (ENDING, "so: cat dog", 0.1),
        (ENDING, "so: ", 0.0),
    ],
)
def test_truth_of_texts(task, text, truth):
    assert task.truth(text) == pytest.approx(truth)


def test_demonstrations_are_of_mixed_quality():
    tasks = [answers.task(i, 0, "train") for i in range(200)]
    grades = [
        responses.grade(FAMILIES[task.family], task.args, text)
        for task in tasks
        for text in task.demonstrations(5)
    ]
    shares = [grades.count(one) / len(grades) for one in range(4)]
    assert shares[responses.RIGHT] == pytest.approx(0.4, abs=0.05)
    assert shares[responses.WRONG] == pytest.approx(0.4, abs=0.05)
    assert shares[responses.HEDGED] > 0.05 and shares[responses.EMPTY] > 0.05
    assert tasks[0].demonstrations(2) == tasks[0].demonstrations(5)[:2]


def test_wrong_arguments_are_refused():
    for arguments in ((-1, 0, "train"), (0, 0, "all"), (0, 0, "train", ["none"])):
        with pytest.raises((ValueError, KeyError)):
            answers.task(*arguments)
    with pytest.raises(ValueError, match="has no meta"):
        answers.Task.of(Comparison("q", ("a", "b")))
