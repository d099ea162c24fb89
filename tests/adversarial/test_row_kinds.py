"""Rows, labels and chats that the docs refuse, one of each kind: the other rows are read."""

import gzip
import json
import logging
import math
import re

import numpy as np
import pytest
from judging.fake_judge import world_tokenizer
from test_odd_rows import check_training

from grm_jax.data import comparisons
from grm_jax.data.comparisons import read_rows
from grm_jax.data.records import Account, TooManyMalformed
from grm_jax.data.sft import Example, encode_all, read_examples
from grm_jax.types import Comparison

GOOD = {"id": "good", "query": "q", "responses": ["a", "b"], "label": 1}
NUMBER = "NaN|not finite|finite number|300 digits"
REFUSED_LABELS = {
    '"12"': "the field 'label' is the text '12'",
    '"10"': "the field 'label' is the text",
    '"1"': "the field 'label' is the text",
    '"NaN"': "the field 'label' is the text",
    '"[1, 0]"': "the field 'label' is the text",
    '{"1": 0, "2": 1}': "give the index of the best response, or a list of rewards",
    "true": "give the index",
    "0.5": "give the index",
    "-1": "label -1 is not an index of 2 responses: use 0 to 1",
    "2": "label 2 is not an index",
    "1e30": "is not an index",
    "[]": "0 rewards for 2 responses",
    "[1]": "1 rewards for 2 responses",
    "[1, 0, 0]": "3 rewards for 2",
    "[[1.2], [0.3]]": "is \\[1.2\\]: give a number",
    "[[1, 0]]": "give a number",
    "[true, false]": "give a number",
    '["1", "x"]': "give a number",
    '[{"score": 1}, 0]': "give a number",
    "[null, 1]": "give a number",
    "[NaN, 1]": NUMBER,
    "[1e400, 1]": NUMBER,
    "[" + "1" + "0" * 400 + ", 1]": NUMBER,
    "9" * 5000: NUMBER,
    "-Infinity": NUMBER,
}
REFUSED_FIELDS = {
    '"reference": 5': "the field 'reference' is 5: give a text",
    '"reference": 0': "the field 'reference' is 0",
    '"reference": ["r"]': "the field 'reference' is",
    '"reference": []': "the field 'reference' is",
    '"reference": {"text": "r"}': "the field 'reference' is",
    '"reference": "\\ud800"': "half a surrogate pair",
    '"id": "\\udfff"': "id has half a surrogate pair",
    '"\\ud800": 1': "half a surrogate pair",
    '"id": ' + "7" * 5000: NUMBER,
    '"id": NaN': NUMBER,
    '"meta": {"score": NaN}': NUMBER,
    '"meta": {"score": [1, 1e999]}': NUMBER,
    '"meta": {"note": "\\ud83d"}': "meta.note has half a surrogate pair",
    '"meta": "text"': "the field 'meta' is 'text': give an object",
    '"meta": [1]': "the field 'meta' is",
    '"meta": 0': "the field 'meta' is 0",
    '"meta": ' + "[" * 988 + "]" * 988: "nested too deep",
    '"other": ' + "[" * 200_000 + "]" * 200_000: "nested too deep",
    '"query": "p"': "the key 'query' appears twice",
    '"messages": [{"role": "critic", "content": "c"}]': None,  # not used beside a query
}


def read_lines(path, *lines):
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines) + b"\n")
    return list(read_rows(path))


def between(path, line):
    """Returns the row of a line between two good ones, which must be read."""
    good = json.dumps(GOOD)
    before, row, after = read_lines(path, good, line, good)
    assert before.comparison and after.comparison and row.number == 2
    check_training(path, [before, row, after])
    return row


@pytest.mark.parametrize("label", REFUSED_LABELS)
def test_labels_that_the_docs_do_not_define(label, tmp_path):
    text = '{"query": "q", "responses": ["a", "b"], "label": ' + label + "}"
    row = between(tmp_path / "a.jsonl", text)
    assert row.comparison is None and re.search(REFUSED_LABELS[label], row.reason), row.reason
    assert len(row.reason) < 300 and len(row.reason.splitlines()) == 1


@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_fields_that_would_stop_a_run(field, tmp_path):
    row = between(tmp_path / "a.jsonl", '{"query": "q", "responses": ["a", "b"], ' + field + "}")
    if REFUSED_FIELDS[field] is None:
        assert row.comparison
    else:
        assert row.comparison is None and re.search(REFUSED_FIELDS[field], row.reason), row.reason


def test_labels_of_one_response(tmp_path):
    for label, expected in (("1", (1.0,)), ("0", (0.0,)), ("1.0", (1.0,)), ("[0]", (0.0,))):
        text = f'{{"query": "q", "responses": ["a"], "label": {label}}}'
        row = between(tmp_path / "a.jsonl", text)
        assert row.comparison.label == expected and row.comparison.rewards == expected
    row = between(tmp_path / "a.jsonl", '{"query": "q", "responses": ["a"], "label": 2}')
    assert "label 2 of one response: use 1 (correct) or 0 (incorrect)" in row.reason


@pytest.mark.parametrize(
    "label",
    ["12", b"\x01\x00", {1: 0, 2: 1}, {0.0, 1.0}, ("1", "0"), (True, False), (1.0, math.nan),
     (10**400, 1), (math.inf, 0), ([1.2], [0.3]), 1.5, object(), range(3), True],
)  # fmt: skip
def test_labels_in_python(label):
    with pytest.raises(ValueError, match="label") as caught:
        Comparison("q", ("a", "b"), label=label)
    assert len(str(caught.value).splitlines()) == 1


def test_labels_of_numpy_are_labels():
    assert Comparison("q", ("a", "b"), label=np.int64(1)).label == 1
    assert Comparison("q", ("a", "b"), label=np.float32([0.5, 1])).label == (0.5, 1.0)
    assert Comparison("q", ("a",), label=np.int64(0)).label == (0.0,)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"reference": 5}, "reference is 5: give a string"),
        ({"id": 7}, "id is 7: give a string"),
        ({"meta": None}, "meta is a NoneType: give a dict"),
        ({"meta": {"a": {1, 2}}}, "meta.a is of type set"),
        ({"meta": {"a": [math.nan]}}, r"meta.a\[0\] is nan: give a finite number"),
        ({"responses": ("a", "\ud800")}, r"responses\[1\] has half a surrogate pair"),
        ({"query": "\udfff q"}, "query has half a surrogate pair"),
        ({"query": [{"role": "user", "content": "\ud800"}]}, r"query\[0\].content has half"),
    ],
)
def test_comparisons_that_could_not_be_written(fields, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**{"query": "q", "responses": ("a", "b"), **fields})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n", " \n"])
def test_byte_order_marks_and_line_ends(start, end, tmp_path):
    text = start + end.join([json.dumps(GOOD)] * 2) + end
    for name, content in (
        ("a.jsonl", text),
        ("a", text),
        ("a.json", f"{start}[{end}{json.dumps(GOOD)}]"),
    ):
        (tmp_path / name).write_bytes(content.encode())
        rows = list(read_rows(tmp_path / name))
        assert all(row.comparison for row in rows) and len(rows) == 1 + (name != "a.json")
    for name in ("b.csv", "b.csv.gz"):
        data = f'{start.strip()}query,responses,label{end}q,"[""a"", ""b""]",1{end}'.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        (row,) = read_rows(tmp_path / name)
        assert row.comparison.label == 1


def test_encodings_mixed_in_one_file_and_nul_bytes(tmp_path):
    latin = '{"query": "é", "responses": ["a"]}'
    path = tmp_path / "a.jsonl"
    rows = read_lines(
        path, latin, latin.encode("latin-1"), b"\x00" * 64, latin.encode("utf-16"), latin
    )
    assert rows[0].comparison and rows[-1].comparison and rows[-1].number >= 5
    assert not any(row.comparison for row in rows[1:-1])
    assert "not UTF-8: byte 12 is 0xe9" in rows[1].reason
    (row,) = read_lines(path, '{"query": "a\\u0000b", "responses": ["x\\u0000"]}')
    assert row.comparison.query == "a\x00b"


# ---------------------------------------------------------------- chats to learn from


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


EXAMPLES = {
    "user last": {"messages": [user("a"), assistant("b"), user("c")]},
    "assistant first": {"messages": [assistant("a"), assistant("b")]},
    "system alone": {"messages": [{"role": "system", "content": "s"}, assistant("b")]},
    "odd role": {"messages": [user("a"), {"role": "critic", "content": "b"}]},
    "no role": {"messages": [user("a"), {"content": "b"}]},
    "number": {"messages": [user("a"), {"role": "assistant", "content": 5}]},
    "text": {"messages": "hello"},
    "one turn": {"messages": [assistant("a")]},
    "empty": {"messages": [user("a"), assistant("")]},
    "answered prompt": {"messages": [user("a"), assistant("b")], "completion": "c"},
    "list query": {"query": ["q"], "answer": "a"},
    "no answer": {"query": "q"},
    "surrogate": {"query": "q", "answer": "\ud800"},
    "nan": {"query": "q", "answer": "a", "score": math.nan},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_chats_that_do_not_end_with_the_assistant(name, tmp_path):
    good = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}
    path = tmp_path / "general.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, EXAMPLES[name], good)))
    account = Account()
    examples = list(read_examples(path, 1.0, account))
    assert [example.completion for example in examples] == ["d", "d"]
    ((file, line, reason),) = account.malformed
    assert (file, line) == (str(path), 2) and reason
    with pytest.raises(ValueError, match="general.jsonl:2: "):
        list(read_examples(path))


def test_a_chat_that_the_format_of_the_model_rejects_is_skipped_by_name(caplog):
    tokenizer = world_tokenizer()
    good = [Example((user("a"),), "b", id=f"good-{i}") for i in range(200)]
    odd = Example((user("a"), user("b")), "c", id="twice-user")
    assert len(encode_all([*good, odd, *good], tokenizer)) == 401

    class Strict:
        eos_id = tokenizer.eos_id
        id_of, encode = tokenizer.id_of, tokenizer.encode

        def encode_chat(self, turns, **options):
            if len(turns) > 1:
                raise ValueError("the chat template rejects the roles user, user")
            return tokenizer.encode_chat(turns, **options)

    caplog.set_level(logging.WARNING)
    assert len(encode_all([*good, odd, *good], Strict())) == 400
    assert "twice-user" in caplog.text
    with pytest.raises(TooManyMalformed, match="twice-user"):
        encode_all([odd], Strict())
    with pytest.raises(TooManyMalformed, match="twice-user"):
        encode_all([*good[:50], odd], Strict())


CHATS = {
    "user last": {
        "chosen": [user("a"), assistant("b"), user("c")],
        "rejected": [user("a"), assistant("d"), user("c")],
    },
    "single user last": {"messages": [user("a"), assistant("b"), user("c")], "label": True},
    "odd role": {"prompt": [{"role": "critic", "content": "q"}], "chosen": "a", "rejected": "b"},
    "odd answer": {
        "prompt": "q",
        "chosen": [{"role": "critic", "content": "a"}],
        "rejected": [assistant("b")],
    },
    "choices of the user": {
        "prompt": "q",
        "choices": [{"message": {"role": "narrator", "content": "x"}}],
    },
}


@pytest.mark.parametrize("name", CHATS)
def test_comparisons_with_odd_chats(name, tmp_path):
    row = between(tmp_path / "a.jsonl", json.dumps(CHATS[name]))
    assert row.comparison is None and re.search(
        "turn of the user|has the role|one answer", row.reason
    )


def test_names_of_fields_are_one_line():
    with pytest.raises(ValueError, match="the fields a b, c.* fit no format") as error:
        comparisons.detect({"a\r\nb": 1, "c" * 10_000: 2})
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400
