"""Property: an odd record never raises out of the reader: it gives a comparison or a reason."""

import copy
import json
import logging
import re

import pytest
from hypothesis import given, settings, strategies as st
from test_formats import SHAPES
from test_layouts import GOOD

from grm_jax.data.comparisons import convert, read_comparisons, read_rows, record_rows
from grm_jax.data.layouts import LAYOUTS
from grm_jax.data.records import Account, Record

KEYS = (
    *("query", "prompt", "messages", "conversations", "question", "instruction", "input", "system"),
    *("responses", "choices", "chosen", "rejected", "completion", "label", "reference", "id"),
    *("meta", "subset", "preferred_output", "non_preferred_output", "conversation_input", "reject"),
    *("bon_best", "loser_list", "completions", "preference_strength", "response_1", "response_2"),
    *("output_1", "output_2", "ground_truth", "samples", "problem", "solution", "answer"),
)
TEXTS = st.sampled_from(
    ("", " ", "7", "true", "[1, 0]", '[{"role": "user", "content": "q"}]', "\n\nHuman: a", "q\0")
) | st.text(max_size=8)
NUMBERS = st.integers() | st.floats() | st.sampled_from((10**400, -1, 0, 1, 2, True, False))
ROLES = st.sampled_from(("user", "assistant", "system", "human", "gpt", "tool", "")) | TEXTS
TURNS = st.fixed_dictionaries({"role": ROLES, "content": TEXTS})
SCALARS = st.none() | TEXTS | NUMBERS
VALUES = st.recursive(
    SCALARS | TURNS | st.lists(TURNS, max_size=3) | st.lists(TEXTS, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*KEYS, "role", "content", "from", "value", "message", "text", "type")),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.sampled_from(KEYS) | TEXTS, VALUES, max_size=7)
TURN, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
VALID = [
    *GOOD.values(),
    *(records[0] for records in SHAPES.values()),
    {"input": {"messages": [TURN]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
    {"prompt": [TURN], "completion": [ANSWER], "label": True},
    {"messages": [TURN, ANSWER], "label": False},
    {"system": "s", "conversations": [TURN], "chosen": ANSWER, "rejected": "b"},
]


@st.composite
def nearly_valid(draw):
    """A valid record with some of its values, at any depth, replaced or deleted."""
    record = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        at = record
        while at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if isinstance(at[key], (dict, list)) and draw(st.booleans()):
                at = at[key]
                continue
            if draw(st.booleans()):
                at[key] = draw(VALUES)
            else:
                del at[key]
            break
    return record


NEAR = nearly_valid()
ERROR_NAME = re.compile(r"^[A-Z]\w*(Error|Exception)\b")


@pytest.mark.parametrize("examples", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_odd_records_give_a_comparison_or_a_reason(examples, caplog):
    caplog.set_level(logging.ERROR)
    layouts = st.sampled_from([None, None, None, *LAYOUTS])
    settings(max_examples=examples, deadline=None)(given(NEAR | RECORDS, layouts)(check_record))()


def check_record(fields, layout):
    record = Record(3, 3, fields)
    rows = record_rows(record, layout, "r-3")
    for row in rows:
        assert (row.comparison is None) == bool(row.reason)
        assert not ERROR_NAME.match(row.reason or ""), row.reason
    account = Account()
    trained = convert(record, layout, "r-3", "file", account)
    judged = [row.comparison for row in rows if row.comparison]
    assert len(trained) in (0, len(judged))
    if not trained and judged:  # training needs a single best response
        assert account.unusable
    reasons = [reason for _, _, reason in account.malformed]
    assert not any(map(ERROR_NAME.match, reasons)), reasons


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40) | NEAR | RECORDS, max_size=6), st.booleans())
def test_odd_lines_leave_the_others(tmp_path_factory, lines, escape):
    path = tmp_path_factory.mktemp("odd") / "a.jsonl"
    raw = b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n'
    with open(path, "wb") as file:
        file.write(raw)
        for line in lines:
            text = line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=escape)
            text = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            file.write(text.replace(b"\n", b"") + b"\n")
        file.write(raw)
    rows = list(read_rows(path))
    assert rows[0].comparison and rows[-1].comparison
    assert rows[-1].number == len(lines) + 2
    assert len(list(read_comparisons(path, None, 1.0))) >= 2


@pytest.mark.parametrize("depth", [500, 980, 5000, 200_000])
@pytest.mark.parametrize("key", ["prompt", "label", "responses", "chosen", "id", "meta"])
def test_deep_nesting_is_a_reason(tmp_path, key, depth):
    deep = "[" * depth + "]" * depth
    odd = f'{{"prompt": "q", "responses": ["a"], "{key}": {deep}}}'
    path = tmp_path / "a.jsonl"
    path.write_text(f'{odd}\n{{"prompt": "q", "chosen": "a", "rejected": "b"}}\n')
    rows = list(read_rows(path))
    assert rows[1].comparison and len(rows) == 2
    assert rows[0].reason or key in ("id", "meta", "chosen")
    assert list(read_comparisons(path, None, 1.0))


@pytest.mark.parametrize("value", ["9" * 5000, "1e400", "NaN", "[NaN, 1]", '"12"', '{"1": 0}'])
def test_labels_that_are_no_labels_are_refused(tmp_path, value):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"query": "q", "responses": ["a", "b"], "label": {value}}}\n')
    (row,) = read_rows(path)
    assert row.comparison is None and row.reason
