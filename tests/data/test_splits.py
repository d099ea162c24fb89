"""Tests reading a file of labelled comparisons: duplicates, unusable rows, the split by query."""

import json
import random

import pytest

from grm_jax.data import splits
from grm_jax.data.comparisons import read_rows
from grm_jax.types import Comparison


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(query, chosen="good", rejected="bad"):
    return {"prompt": query, "chosen": chosen, "rejected": rejected}


def test_duplicates_are_counted_and_dropped_also_in_another_order_or_layout(tmp_path, caplog):
    rows = [
        pair("q1"),
        pair("q1"),
        pair("q1", "good", "other"),
        {"query": "q1", "responses": ["bad", "good"], "label": 1},
        pair("q1", "bad", "good"),  # prefers the other response
    ]
    labelled = splits.read_labelled(write(tmp_path / "a.jsonl", rows))
    assert labelled.counts == {
        "rows": 5, "malformed": 0, "unlabelled": 0, "duplicates": 3, "comparisons": 2
    }  # fmt: skip
    assert [c.responses[c.best] for c in labelled.comparisons] == ["good", "good"]
    assert "1 duplicates prefer another response" in caplog.text


def test_rows_without_one_best_response_are_counted_and_bad_ones_reported(tmp_path, caplog):
    rows = [pair(f"q{i}") for i in range(20)]
    rows += [
        {"query": "q", "responses": ["a", "b"], "label": [1, 1]},
        {"query": "q", "responses": ["a"], "label": [0.5]},
        {"query": "r", "responses": ["a"], "label": [1.0]},
        {"something": "else"},
    ]
    labelled = splits.read_labelled(write(tmp_path / "a.jsonl", rows))
    assert labelled.counts["comparisons"] == 21
    assert labelled.counts["unlabelled"] == 1 and labelled.counts["malformed"] == 2
    assert "skipped 2 malformed rows: row 22: label 0.5 of one response: use 1" in caplog.text
    assert "row 24: the fields something" in caplog.text
    with pytest.raises(ValueError, match="2 of 24 rows are no comparisons: row 22: label 0.5 of"):
        splits.read_labelled(str(tmp_path / "a.jsonl"), max_skipped=0.01)


def test_a_file_without_labels_is_refused(tmp_path):
    rows = [{"query": "q", "responses": ["a", "b"]}] * 3
    with pytest.raises(ValueError, match="none of 3 rows has a single best response"):
        splits.read_labelled(write(tmp_path / "a.jsonl", rows))


def test_ids_are_unique(tmp_path):
    rows = [{**pair("q1"), "id": "x"}, {**pair("q2"), "id": "x"}, pair("q3")]
    labelled = splits.read_labelled(write(tmp_path / "a.jsonl", rows))
    assert [c.id for c in labelled.comparisons] == ["x", "x/row-2", "row-3"]


def comparisons(queries=40, each=3):
    return [
        Comparison(f"question {q}", ("a", f"b{i}"), label=0, id=f"{q}/{i}")
        for q in range(queries)
        for i in range(each)
    ]


def test_no_query_is_on_both_sides_of_a_split_whatever_the_order_of_the_file():
    items = comparisons()
    items += [Comparison("  Question 7\n", ("a", "c"), label=0, id="spaces and case")]
    train, held_out = splits.split(items, 0.2, 500)
    assert not {*map(splits.query_key, train)} & {*map(splits.query_key, held_out)}
    assert len(train) + len(held_out) == len(items) and 24 <= len(held_out) <= 28
    random.Random(0).shuffle(items)
    again = splits.split(items, 0.2, 500)
    assert {c.id for c in again[1]} == {c.id for c in held_out}
    assert {c.id for c in splits.split(items, 0.2, 500, seed=1)[1]} != {c.id for c in held_out}


def test_a_query_with_many_comparisons_is_not_held_out():
    items = [Comparison("many", ("a", str(i)), label=0, id=str(i)) for i in range(900)]
    items += [Comparison(f"q{i}", ("a", "b"), label=0, id=f"q{i}") for i in range(100)]
    for seed in range(20):
        assert len(splits.split(items, 0.1, 50, seed)[1]) == 50
    two = [Comparison("ab"[i % 2], ("a", str(i)), label=0, id=str(i)) for i in range(40)]
    assert len(splits.split(two, 0.2, 5)[1]) == 20  # whole queries


def test_a_split_is_bounded_and_leaves_something_on_both_sides():
    items = comparisons()
    assert len(splits.split(items, 0.5, 9)[1]) == 9
    assert len(splits.split(items[:6], 0.9, 500)[0]) == 3
    with pytest.raises(ValueError, match="same query, so none can be held out"):
        splits.split(items[:3], 0.2, 500)


def test_held_out_rows_are_read_back_by_the_judge(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
             {"role": "user", "content": "c"}]  # fmt: skip
    items = [
        Comparison(turns, ("x", "y", "z"), label=(1.0, 0.0, 0.0), id="1", meta={"subset": "s"}),
        Comparison("q", ("x",), label=(1.0,), id="2"),
    ]
    path = write(tmp_path / "held_out.jsonl", map(splits.as_row, items))
    assert [row.comparison for row in read_rows(path)] == items


@pytest.mark.parametrize(
    "extra, reason",
    [
        ({}, "row 1: the fields a fit no format: rename them to prompt, chosen and rejected"),
        (
            {"responses": ["a"], "chosen": "a", "rejected": "b"},
            "row 1: the fields .* fit both .*: remove those of one",
        ),
    ],
)
def test_the_reasons_of_rows_name_no_flag_of_another_command(tmp_path, extra, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": 1, **extra}) + "\n")
    with pytest.raises(ValueError, match=reason):
        splits.read_labelled(str(path))


def test_a_split_does_not_depend_on_which_system_turn_stands_first():
    """Queries that differ in their system turns only are one query."""
    rows = [
        Comparison(
            [{"role": "system", "content": s}, {"role": "user", "content": f"query {i}"}],
            ("a", "b"),
            label=0,
            id=f"{s}{i}",
        )
        for i in range(30)
        for s in ("Be brief.", "Be kind.")
    ]
    held_out = lambda rows: {c.id for c in splits.split(rows, 0.2, 100)[1]}
    assert held_out(rows) == held_out(rows[::-1]) != set()
