"""Files of comparisons: read for training (placed, counted) and for `grm judge` (one row each)."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from grm_jax.data import records
from grm_jax.data.comparisons import placed, read_comparisons, read_rows
from grm_jax.data.layouts import LAYOUTS
from grm_jax.data.records import Account
from grm_jax.types import Comparison

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PAIR = {"instruction": "q", "output_1": "best", "output_2": "worse", "label": 1}


def lines(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


# ---------------------------------------------------------------- training


def test_malformed_record_is_logged_with_file_and_line_and_skipped(tmp_path, caplog):
    path = lines(tmp_path / "pairs.jsonl", [PAIR, "{broken", "", PAIR, {**PAIR, "label": 3}, "[1]"])
    account = records.Account()
    comparisons = list(read_comparisons(path, "offsetbias", max_skipped=0.7, account=account))
    assert [c.id for c in comparisons] == ["pairs-1", "pairs-4"]
    assert [entry[:2] for entry in account.malformed] == [(str(path), i) for i in (2, 5, 6)]
    assert f"{path}:5: skipped: the field 'label' is 3" in caplog.text
    assert account.summary() == {"seen": 5, "malformed": 3, "unusable": {}}


def test_reading_stops_above_the_allowed_share(tmp_path):
    path = lines(tmp_path / "pairs.jsonl", [PAIR] * 98 + ["{"] * 2 + [PAIR] * 100)
    assert len(list(read_comparisons(path, "offsetbias", max_skipped=0.02))) == 198
    with pytest.raises(records.TooManyMalformed, match=r"2 of 100 .*pairs\.jsonl:99: not JSON"):
        list(read_comparisons(path, "offsetbias", max_skipped=0.01))


def test_ties_are_unusable_and_not_malformed(tmp_path):
    tie = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 0}
    path = lines(tmp_path / "p.jsonl", [tie, tie, {**tie, "preference_strength": 1}])
    account = records.Account()
    assert len(list(read_comparisons(path, "helpsteer2", 0.0, account))) == 1
    assert account.summary()["unusable"] == {"no single best response": 2}
    scored = [{"response": text, "overall_score": 4} for text in "ab"]
    path = lines(tmp_path / "u.jsonl", [{"instruction": "q", "completions": scored}])
    account = records.Account()
    assert not list(read_comparisons(path, "ultrafeedback", 0.0, account))
    assert account.summary()["unusable"] == {"no single best response": 1}


def test_training_places_published_pairs_and_leaves_our_own(tmp_path):
    path = lines(tmp_path / "pairs.jsonl", [PAIR] * 20)
    for i, comparison in enumerate(read_comparisons(path, "offsetbias"), 1):
        (published,) = LAYOUTS["offsetbias"].read(PAIR, f"pairs-{i}")
        assert comparison == placed(published)
    ours = {
        "query": [{"role": "user", "content": "q", "x": 1}],
        "responses": ["a", "b"],
        "label": 1,
    }
    path = lines(tmp_path / "ours.jsonl", [ours] * 20)
    for comparison in read_comparisons(path, "comparison"):
        assert comparison.responses == ("a", "b") and comparison.label == 1
        assert comparison.query == "q"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public sets (../shared/data)")
@pytest.mark.parametrize(
    "file, layout, count",
    [
        ("gsm8k/grade_school_math/data/example_model_solutions.jsonl", "gsm8k", 731),
        ("rm_bench/data/chat_filtered.json", "rm_bench", 9 * 129),
        ("rm_bench/data/code_filtered.json", "rm_bench", 9 * 228),
    ],
)
def test_public_files_are_read_whole(file, layout, count):
    account = records.Account()
    assert len(list(read_comparisons(SHARED / file, layout, 0.0, account))) == count
    assert not account.malformed


# ---------------------------------------------------------------- grm judge

TURNS = [{"role": "user", "content": "Q?"}]
CHAT = lambda text: [*TURNS, {"role": "assistant", "content": text}]  # noqa: E731
TEXTS = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}
ROWS = {
    "comparison": {"query": "Q?", "responses": ["good", "bad", "worse"], "label": [1, 0, 0]}
    | {"reference": "R", "id": 7},
    "comparison of turns": {"query": TURNS, "responses": ["good"], "label": [1.0]},
    "rewardbench": TEXTS | {"id": 3, "subset": "math-prm", "chosen_model": "x"},
    "rewardbench 2": {"id": "ties:1", "prompt": "Q?", "num_correct": 2}
    | {"chosen": ["good", "fine"], "rejected": ["bad", "worse"]},
    "trl texts": TEXTS,
    "trl turns": {"prompt": TURNS, "chosen": CHAT("good")[1:], "rejected": CHAT("bad")[1:]},
    "trl implicit": {"chosen": CHAT("good"), "rejected": CHAT("bad")},
    "rmb": {"bon_uid": "u1", "conversation_input": TURNS}
    | {"bon_best": {"answer": "good", "llm_name": "m"}}
    | {"loser_list": [{"answer": "bad"}, {"answer": "worse"}]}
    | {"category_path": "BoN_set/Helpfulness"},
    "rmb pair": {"pair_uid": "u2", "conversation_input": TURNS}
    | {"chosen": {"answer": "good"}, "reject": {"answer": "bad"}},
}


def read(tmp_path, *rows, format=None):
    file = tmp_path / "in.jsonl"
    file.write_bytes(
        b"".join(
            row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows
        )
    )
    return list(read_rows(file, format))


@pytest.mark.parametrize("name", ROWS)
def test_layout_of_each_row_is_detected(tmp_path, name):
    (line,) = read(tmp_path, ROWS[name])
    comparison = line.comparison
    assert comparison is not None, line.reason
    assert comparison.turns == TURNS
    assert comparison.responses[0] == "good"
    assert comparison.rewards[0] == 1.0 and sum(comparison.rewards) == (
        2 if name == "rewardbench 2" else 1
    )
    assert (
        comparison.responses == ("good", "bad", "worse")[: comparison.n] or name == "rewardbench 2"
    )
    assert line.number == 1


def test_ids_and_meta_are_kept(tmp_path):
    lines = read(tmp_path, ROWS["comparison"], ROWS["rewardbench"], ROWS["rmb"], ROWS["trl texts"])
    assert [line.comparison.id for line in lines] == ["7", "3", "u1", None]
    assert lines[1].comparison.meta == {"subset": "math-prm"}
    assert lines[0].comparison.reference == "R"


def test_multi_turn_implicit_prompt(tmp_path):
    shared = [*CHAT("hello"), {"role": "user", "content": "again?"}]
    row = {
        "chosen": [*shared, {"role": "assistant", "content": "yes"}],
        "rejected": [*shared, {"role": "assistant", "content": "no"}],
    }
    (line,) = read(tmp_path, row)
    assert line.comparison.query == shared and line.comparison.responses == ("yes", "no")


@pytest.mark.parametrize(
    "row, reason",
    [
        (b'{"query": "Q?", "responses": ["a"\n', "not JSON: .* at column 34"),
        (b'{"query": "\xff\xfe", "responses": ["a"]}\n', "not UTF-8: byte 12 is 0xff"),
        (b'{"query": "\\ud800", "responses": ["a"]}\n', r"half a surrogate pair \(\\ud800\)"),
        (b"[1, 2]\n", "a list instead of an object"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        (b"NaN\n", "the number NaN is not finite"),
        (b"1.5\n", "a float instead of an object"),
        ({"query": "Q?", "responses": []}, "at least one response"),
        ({"query": "Q?", "responses": ["a", None]}, r"responses\[1\] is a NoneType"),
        ({"query": "Q?", "responses": "a"}, "give a list of texts"),
        ({"responses": ["a"]}, "the field 'query' is missing"),
        ({"query": "Q?", "responses": ["a", "b"], "label": 5}, "label 5 is not an index of 2"),
        ({"prompt": "p", "chosen": "a"}, "^the field 'rejected' is missing; the record has"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "^the field 'chosen' is null"),
        ({"prompt": "p", "completion": "a", "label": 1}, "^the field 'label' is 1: give true or"),
        ({"text": "hello"}, "the fields text fit no format"),
        (
            {"query": "Q", "responses": ["a"], "chosen": "a", "rejected": "b"},
            "both comparison and trl: name one with --format",
        ),
        ({"chosen": "a", "rejected": "b"}, "texts without a prompt"),
        ({"prompt": "p", "chosen": ["a", 3], "rejected": ["b"]}, "not text"),
        ({"chosen": CHAT("a")[:1], "rejected": CHAT("b")[1:]}, "there is no query"),
        ({"conversation_input": TURNS, "bon_best": {"answer": "a"}}, "'loser_list' is missing"),
    ],
)
def test_bad_row_has_its_reason(tmp_path, row, reason):
    good = ROWS["comparison"]
    lines = read(tmp_path, good, row, good)
    assert [line.number for line in lines] == [1, 2, 3]
    assert lines[0].comparison is not None and lines[2].comparison is not None
    assert lines[1].comparison is None
    assert re.search(reason, lines[1].reason), lines[1].reason


def test_blank_lines_count_and_a_byte_order_mark_is_skipped(tmp_path):
    row = json.dumps(ROWS["comparison"]).encode() + b"\n"
    assert [line.number for line in read(tmp_path, b"\xef\xbb\xbf" + row, b"\n", b"  \n", row)] == [
        1,
        4,
    ]


def test_json_array_rows(tmp_path):
    file = tmp_path / "in.json"
    file.write_text(json.dumps([ROWS["rmb"], ROWS["rmb pair"]], indent=1))
    assert [line.comparison.n for line in read_rows(file)] == [3, 2]


def test_named_layout(tmp_path):
    both = {**ROWS["comparison"], "chosen": "a", "rejected": "b", "prompt": "P"}
    assert read(tmp_path, both, format="comparison")[0].comparison.n == 3
    assert read(tmp_path, both, format="trl")[0].comparison.n == 2
    with pytest.raises(ValueError, match="unknown layout 'csv'"):
        read(tmp_path, both, format="csv")


def test_record_with_several_comparisons_gives_several_rows(tmp_path):
    record = {"id": 7, "prompt": "q", "chosen": ["good"] * 3, "rejected": ["bad"] * 3}
    rows = read(tmp_path, ROWS["comparison"], record, format="rm_bench")
    assert rows[0].comparison is None
    assert [row.number for row in rows[1:]] == [f"2.{i}" for i in range(1, 10)]
    assert len({row.id for row in rows[1:]}) == 9
    assert all(row.comparison.responses == ("good", "bad") for row in rows[1:])


def test_identical_responses_have_no_label_and_are_unusable_for_training(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "a"}
    (row,) = read(tmp_path, pair)
    assert row.comparison.responses == ("a", "a") and row.comparison.label is None
    for i, record in enumerate((pair, {"query": "q", "responses": ["a", "a"], "label": 1})):
        path, account = tmp_path / f"{i}.jsonl", records.Account()
        path.write_text(json.dumps(record) + "\n")
        assert list(read_comparisons(path, account=account)) == []
        assert sum(account.unusable.values()) == 1 and not account.malformed


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"responses": ["a", "b"], "label": [1, 1]}, "no single best response"),
        ({"responses": ["a", "b"]}, "no single best response"),
        ({"responses": ["a"]}, "a single response without a label"),
        (
            {"responses": ["a", "b", "a"], "label": [8, 1, 5]},
            "another response is equal to the best one",
        ),
    ],
)
def test_a_comparison_without_a_right_answer_is_unusable_in_our_own_layout_too(
    tmp_path, row, reason
):
    path = lines(tmp_path / "own.jsonl", [{"query": "q", **row}])
    account = Account()
    assert list(read_comparisons(path, account=account)) == []
    assert account.unusable == {reason: 1}


def test_tool_calls_are_part_of_the_text(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    old = {"role": "assistant", "content": "Let me see.", "function_call": {"name": "now"}}
    row = {
        "prompt": [{"role": "user", "content": "Rain?"}, old],
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    comparison = dataclasses.asdict(read(tmp_path, row)[0].comparison)
    assert comparison["responses"] == ('Tool call: weather({"city": "Oslo"})', "no")
    assert comparison["query"][1]["content"] == "Let me see.\nTool call: now()"
    assert "function_call" not in comparison["query"][1]  # read again, it is not written again


@pytest.mark.parametrize(
    "field, text",
    [
        ({"function_call": {}}, "no"),
        ({"function_call": "auto"}, "no"),
        ({"tool_calls": []}, "no"),
        ({"tool_calls": "none"}, "no"),
        ({"tool_calls": [{"name": None}]}, "no"),
        ({"tool_calls": {"function": {"name": "f", "arguments": {}}}}, "no\nTool call: f({})"),
        ({"tool_calls": [{"name": "f", "args": {"a": 1}}]}, 'no\nTool call: f({"a": 1})'),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "x"}}]},
         "no\nTool call: f(x)"),
    ],
)  # fmt: skip
def test_tool_calls_of_every_form(tmp_path, field, text):
    answer = {"role": "assistant", "content": "no", **field}
    (row,) = read(tmp_path, {"prompt": "p", "chosen": "yes", "rejected": [answer]})
    assert row.comparison.responses == ("yes", text)


def test_the_published_columns_of_step_dpo_are_detected(tmp_path):
    row = {"prompt": "p", "chosen": "step", "rejected": "wrong step"}
    row |= {"full_chosen": "all", "full_rejected": "wrong", "initial_reason_steps": "s"}
    (judged,) = read(tmp_path, row)
    assert judged.comparison.responses == ("all", "wrong")


@pytest.mark.parametrize("label", [[7.5], [0.5], [-1]])
def test_a_single_response_is_right_or_wrong(label):
    with pytest.raises(ValueError, match=r"of one response: use 1 \(correct\) or 0"):
        Comparison("q", ("a",), label=label)
