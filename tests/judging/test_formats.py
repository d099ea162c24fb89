"""Input rows of every format, and rows that are none."""

import json

import pytest

from grm_jax.judging import formats

TURNS = [{"role": "user", "content": "Q?"}]
CHAT = lambda text: [*TURNS, {"role": "assistant", "content": text}]  # noqa: E731
ROWS = {
    "comparison": {"query": "Q?", "responses": ["good", "bad", "worse"], "label": [1, 0, 0], "reference": "R", "id": 7},
    "comparison of turns": {"query": TURNS, "responses": ["good"], "label": [1.0]},
    "rewardbench": {"id": 3, "prompt": "Q?", "chosen": "good", "rejected": "bad", "subset": "math-prm", "chosen_model": "x"},
    "rewardbench 2": {"id": "ties:1", "prompt": "Q?", "chosen": ["good", "fine"], "rejected": ["bad", "worse"], "num_correct": 2},
    "trl texts": {"prompt": "Q?", "chosen": "good", "rejected": "bad"},
    "trl turns": {"prompt": TURNS, "chosen": CHAT("good")[1:], "rejected": CHAT("bad")[1:]},
    "trl implicit": {"chosen": CHAT("good"), "rejected": CHAT("bad")},
    "rmb": {"bon_uid": "u1", "conversation_input": TURNS, "bon_best": {"answer": "good", "llm_name": "m"},
            "loser_list": [{"answer": "bad"}, {"answer": "worse"}], "category_path": "BoN_set/Helpfulness"},
    "rmb pair": {"pair_uid": "u2", "conversation_input": TURNS, "chosen": {"answer": "good"}, "reject": {"answer": "bad"}},
}  # fmt: skip


def read(tmp_path, *rows, format=None):
    file = tmp_path / "in.jsonl"
    file.write_bytes(
        b"".join(
            row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows
        )
    )
    return list(formats.read(file, format))


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_found_out(tmp_path, name):
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
        (b"[1, 2]\n", "a list where an object"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"NaN\n", "a float where an object"),
        ({"query": "Q?", "responses": []}, "at least one response"),
        ({"query": "Q?", "responses": ["a", None]}, r"responses\[1\] is a NoneType"),
        ({"query": "Q?", "responses": "a"}, "give a list of texts"),
        ({"responses": ["a"]}, "the field 'query' is missing"),
        ({"query": "Q?", "responses": ["a", "b"], "label": 5}, "label 5 is not an index of 2"),
        ({"text": "hello"}, "the fields text fit no format"),
        (
            {"query": "Q", "responses": ["a"], "chosen": "a", "rejected": "b"},
            "both comparison and trl: name one with --format",
        ),
        ({"chosen": "a", "rejected": "b"}, "texts without a prompt"),
        ({"prompt": "p", "chosen": ["a", 3], "rejected": ["b"]}, "not text"),
        (
            {"chosen": CHAT("a")[:1], "rejected": CHAT("b")[1:]},
            "share no first turn|there is no query",
        ),
        ({"conversation_input": TURNS, "bon_best": {"answer": "a"}}, "'loser_list' is missing"),
    ],
)
def test_a_bad_row_says_why(tmp_path, row, reason):
    good = ROWS["comparison"]
    lines = read(tmp_path, good, row, good)
    assert [line.number for line in lines] == [1, 2, 3]
    assert lines[0].comparison is not None and lines[2].comparison is not None
    assert lines[1].comparison is None
    import re

    assert re.search(reason, lines[1].reason), lines[1].reason


def test_blank_lines_are_counted_and_a_byte_order_mark_is_no_harm(tmp_path):
    row = json.dumps(ROWS["comparison"]).encode() + b"\n"
    assert [line.number for line in read(tmp_path, b"\xef\xbb\xbf" + row, b"\n", b"  \n", row)] == [
        1,
        4,
    ]


def test_a_json_array_is_read_too(tmp_path):
    file = tmp_path / "in.json"
    file.write_text(json.dumps([ROWS["rmb"], ROWS["rmb pair"]], indent=1))
    assert [line.comparison.n for line in formats.read(file)] == [3, 2]


def test_a_format_may_be_named(tmp_path):
    both = {**ROWS["comparison"], "chosen": "a", "rejected": "b", "prompt": "P"}
    assert read(tmp_path, both, format="comparison")[0].comparison.n == 3
    assert read(tmp_path, both, format="trl")[0].comparison.n == 2
    with pytest.raises(ValueError, match="use one of comparison"):
        read(tmp_path, both, format="csv")
