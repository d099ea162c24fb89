"""Strict JSON: what is refused when it is parsed, and what is written."""

import json
import re

import pytest

from grm_jax import strict_json
from grm_jax.strict_json import MAX_DEPTH

DEEP = "[" * MAX_DEPTH + "]" * MAX_DEPTH


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "1",
        "-0.0",
        "1e308",
        "1e-400",
        '"\\u00e9"',
        '{"a": [1, {"b": "[[[["}]}',
        DEEP,
        "9" * 300,
    ],
)
def test_valid_json_gives_what_json_gives(text):
    assert strict_json.loads(text) == json.loads(text)
    assert strict_json.loads(b"\xef\xbb\xbf" + text.encode()) == json.loads(text)
    assert strict_json.loads("\ufeff" + text, unique_keys=True) == json.loads(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": NaN}', "the number NaN is not finite"),
        ("[1, -Infinity]", "-Infinity is not finite"),
        ("[1e400]", "the number 1e400 is not finite"),
        ("9" * 301, "more than 300 digits .301 char"),
        ("9" * 5000, "300 digits .5,000 char"),
        ("0." + "1" * 5000, "300 digits .5,002 char"),
        (f"[{DEEP}]", "nested too deep"),
        ('{"a":' * 988 + "1" + "}" * 988, "nested too deep"),
        ("[" * 200_000 + "]" * 200_000, "nested too deep"),
        ("[" * 200_000, "nested too deep"),
        ("", "not JSON: Expecting value at column 1"),
        ('{"a": 1', "not JSON"),
        ('{"a": 1}\n{"a": ', "not JSON: Extra data at line 2, column 1"),
        ('"\x00"', "not JSON: Invalid control character"),
        (b'"\xff"', "not UTF-8: byte 2 is 0xff"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    ],
)
def test_what_strict_json_lacks_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        strict_json.loads(text)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 200


def test_a_key_that_appears_twice():
    assert strict_json.loads('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="the key 'b' appears twice"):
        strict_json.loads('{"a": {"b": 1, "c": 1, "b": 2}}', unique_keys=True)


def test_a_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": NaN}')
    with pytest.raises(ValueError, match="a.json is damaged: the number NaN"):
        strict_json.read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"a.json is damaged: it holds \[1\], not a dict"):
        strict_json.read(path)
    assert strict_json.read(path, list) == [1]


def test_written_json_is_strict():
    value = {"é": ["\ud800x", 1.5, None, "\ud83d\ude00"], "n": 2**70}
    text = strict_json.dumps(value)
    assert text == '{"é": ["\ufffdx", 1.5, null, "\ufffd\ufffd"], "n": 1180591620717411303424}'
    assert strict_json.dumps({"b": 1, "a": 2}, indent=1, sort_keys=True).startswith('{\n "a": 2')


@pytest.mark.parametrize(
    "value, name",
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"a\.b\[1\] is nan"),
        (float("inf"), "the value is inf"),
        ({float("nan"): 1}, "a key of the value is nan"),
    ],
)
def test_a_number_that_is_not_finite_is_named(value, name):
    with pytest.raises(ValueError, match=name):
        strict_json.dumps(value)


@pytest.mark.parametrize(
    "value, reason",
    [
        ({"a": [1, {"b": "\U0001f600"}]}, ""),
        ({"a": (1, None, True, -(10**299))}, ""),
        ({"a": {"b": [1, float("-inf")]}}, r"a\.b\[1\] is -inf: give a finite number"),
        ({"a": "x\udfff"}, r"a has half a surrogate pair \(\\udfff\)"),
        ({"a": {"\ud800": 1}}, "a key of a has half"),
        ([10**300], "more than 300 digits"),
        ({"a": {1, 2}}, "a is of type set"),
        (json.loads(f"[{DEEP}]"), "nested too deep"),
    ],
)
def test_what_a_value_has_that_json_lacks_is_named(value, reason):
    assert (
        re.search(reason, strict_json.problem(value)) if reason else not strict_json.problem(value)
    )


def test_deep_nesting_is_not_written():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deep"):
        strict_json.dumps(value)
