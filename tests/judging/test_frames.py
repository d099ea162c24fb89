"""Comparisons from Python objects, pandas and `datasets`, and verdicts as their tables."""

import subprocess
import sys

import pytest
from fake_judge import by_length, fake_judge

from grm_jax.judging.frames import comparisons_from, to_dataset, to_pandas
from grm_jax.types import Comparison

PAIR = Comparison("Q1?", ("good", "bad"), label=0, id="a")
RECORDS = [
    {"prompt": "Q1?", "chosen": "good", "rejected": "bad", "id": "a"},
    {"prompt": "Q2?", "chosen": "right", "rejected": "wrong", "id": "b"},
]
EXPECTED = [PAIR, Comparison("Q2?", ("right", "wrong"), label=0, id="b")]


def test_a_comparison_a_record_and_lists_of_both_are_accepted():
    assert comparisons_from(PAIR) == [PAIR]
    assert comparisons_from(RECORDS[0]) == [PAIR]
    assert comparisons_from([PAIR, RECORDS[1]]) == EXPECTED
    assert comparisons_from(iter(RECORDS)) == EXPECTED
    assert comparisons_from([]) == []
    judge = fake_judge(by_length)
    assert judge(RECORDS, k=2) == judge(EXPECTED, k=2)


def test_a_layout_may_be_named():
    record = {"instruction": "q", "output_1": "a", "output_2": "b", "label": 2}
    (comparison,) = comparisons_from(record, "offsetbias")
    assert comparison.responses == ("b", "a") and comparison.label == 0


def test_a_data_frame_is_read_through_the_layouts(tmp_path):
    pandas = pytest.importorskip("pandas")
    assert comparisons_from(pandas.DataFrame(RECORDS)) == EXPECTED
    # Lists become arrays, and a column of integers with a missing one becomes floats.
    frame = pandas.DataFrame(
        [
            {"query": "Q?", "responses": ["a", "b"], "label": 1},
            {"query": "Q?", "responses": ["a", "b"], "label": None, "reference": "a"},
        ]
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    for rows in (frame, pandas.read_parquet(tmp_path / "rows.parquet")):
        labelled, unlabelled = comparisons_from(rows)
        assert labelled == Comparison("Q?", ("a", "b"), label=1)
        assert unlabelled == Comparison("Q?", ("a", "b"), reference="a")
    assert frame["label"].dtype == "float64"  # the caller's frame is not changed


def test_a_data_set_is_read_through_the_layouts():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{**record, "note": None} for record in RECORDS])
    assert comparisons_from(data) == EXPECTED
    assert comparisons_from(data.with_format("numpy")) == EXPECTED
    assert comparisons_from(data.to_iterable_dataset()) == EXPECTED
    turns = [{"role": "user", "content": "Q?"}]
    chats = {"chosen": [[*turns, {"role": "assistant", "content": "a"}]]}
    chats["rejected"] = [[*turns, {"role": "assistant", "content": "b"}]]
    (comparison,) = comparisons_from(datasets.Dataset.from_dict(chats))
    assert comparison.turns == turns and comparison.responses == ("a", "b")
    with pytest.raises(TypeError, match=r"splits train, test: pass one of them.*data\['train'\]"):
        comparisons_from(datasets.DatasetDict(train=data, test=data))


@pytest.mark.parametrize(
    "data, message",
    [
        ("What is 2 + 2?", r"is the text 'What is 2 \+ 2\?': pass Comparison\(query, responses\)"),
        (3, r"comparisons is a int: pass Comparison"),
        ([PAIR, "text"], r"comparisons\[1\] is a str: pass Comparison\(query, responses\), or a"),
    ],
)
def test_other_objects_are_refused_in_one_line(data, message):
    with pytest.raises(TypeError, match=message) as caught:
        fake_judge(by_length)(data)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_no_comparison_is_named():
    with pytest.raises(ValueError, match=r"comparisons\[1\]: .* missing"):
        comparisons_from([PAIR, {"query": "q", "prompt": "p"}], "comparison")
    with pytest.raises(
        ValueError, match=r"comparisons\[0\]: the fields a fit no format: .*layout="
    ):
        comparisons_from({"a": 1})


def test_verdicts_become_a_data_frame_and_a_data_set():
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    tie = Comparison("q", ("same", "same"))
    verdicts = fake_judge(by_length)([PAIR, tie], k=2)
    frame, data = to_pandas(verdicts), to_dataset(verdicts)
    assert frame["id"][0] == "a" and frame["best"][0] == verdicts[0].best
    assert pandas.isna(frame["id"][1]) and pandas.isna(frame["best"][1])
    assert list(frame["tie"]) == [False, True]
    assert list(frame["scores"]) == [list(verdict.scores) for verdict in verdicts]
    assert isinstance(data, datasets.Dataset) and set(data.column_names) == set(frame.columns)
    assert data["best"][:] == [verdicts[0].best, None]
    assert data[0]["critiques"][0]["principles"][0]["name"] == "Accuracy"
    assert list(to_pandas([]).columns) == list(frame.columns)


def test_judging_imports_neither_pandas_nor_datasets():
    code = (
        "import sys; from grm_jax.judging.frames import comparisons_from\n"
        "comparisons_from([{'query': 'q', 'responses': ['a']}])\n"
        "print({'pandas', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
