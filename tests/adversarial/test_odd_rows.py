"""Odd rows in every layout and format: each is judged or refused with a reason, and no other row
is lost. The judge and training read alike."""

import json
import logging
import math
import os

import fuzz
import odd_rows
import pytest
from judging.fake_judge import fake_judge, first_wins

from grm_jax.data.comparisons import detect, read_comparisons, read_rows
from grm_jax.data.records import Account
from grm_jax.data.splits import read_labelled
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file


@pytest.fixture(autouse=True)
def quick(caplog, monkeypatch):
    """No log of skipped rows, and no waiting for the disk."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def judge():
    return fake_judge(first_wins)


def strict(text: str):
    """Parses JSON with Python's parser, and asserts that other parsers take it as well."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def check_comparison(comparison):
    """Asserts what docs/data.md says of every comparison."""
    n, label = comparison.n, comparison.label
    texts = [comparison.reference or "", comparison.id or "", *comparison.responses]
    texts += [turn["content"] for turn in comparison.turns]
    assert all(isinstance(text, str) for text in texts)
    "".join(texts).encode()
    strict(json.dumps(comparison.meta))
    if isinstance(label, int):
        assert 0 <= label < n and n > 1 and not isinstance(label, bool)
    elif label is not None:
        assert len(label) == n and all(math.isfinite(x) for x in label)


def check_label(row, comparison):
    """Asserts that a label of our own layout was read as documented, or refused."""
    label = row.get("label")
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    if comparison.label is None or label is None:
        assert comparison.label is None or label is not None
    elif isinstance(label, list):
        assert comparison.label == tuple(label) and not any(isinstance(x, bool) for x in label)
    else:
        assert is_number, f"label {label!r:.60} was read as {comparison.label}"
        expected = (float(label),) if comparison.n == 1 else int(label)
        assert comparison.label == expected and label == int(label)


def check_training(path, rows):
    """Asserts that training refuses the same rows as the judge."""
    refused = [row for row in rows if row.comparison is None]
    account = Account()
    list(read_comparisons(path, None, 1.0, account))
    assert (
        len(account.malformed)
        <= len(refused)
        <= len(account.malformed) + sum(account.unusable.values())
    ), (account.malformed, [row.reason for row in refused])
    try:
        counts = read_labelled(str(path), 1.0).counts
        assert (counts["rows"], counts["malformed"]) == (len(rows), len(refused))
    except ValueError as error:
        assert "has a single best response" in str(error), error


def judged(judge, path, output):
    """Judges a file; returns its rows after the checks that hold for every input."""
    rows = list(read_rows(path))
    judge_file(judge, path, output, Options(k=1), RunConfig("overwrite", progress=False))
    out = [strict(line) for line in output.read_text("utf-8").splitlines(keepends=False)]
    assert [row["line"] for row in out] == [row.number for row in rows]
    for row, record in zip(rows, out):
        if row.comparison is None:
            assert record["error"]["reason"] == row.reason and len(row.reason.splitlines()) == 1
        else:
            check_comparison(row.comparison)
            assert record["responses"] == list(row.comparison.responses)
    check_training(path, rows)
    return rows, out


def test_odd_rows(record_property, cases, tmp_path, judge):
    """One odd row among good ones: the good ones are judged."""

    def check(case):
        suffix, data, place, rows = case
        path = tmp_path / f"rows.{suffix}".rstrip(".")
        path.write_bytes(data)
        results, out = judged(judge, path, tmp_path / "out.jsonl")
        is_json = "json" in suffix or not suffix
        others = [row for i, row in enumerate(results) if i != place]
        if len(results) != 3:
            assert len(results) == 2 and not rows[place], (suffix, len(results), rows[place])
            return
        for record in (record for i, record in enumerate(out) if i != place):
            assert record["error"] is None, record["error"]
        assert {"".join(row.comparison.responses) for row in others} == {
            "".join(others[0].comparison.responses)
        }
        odd = results[place].comparison
        if odd and is_json:
            texts = [leaf for leaf in leaves(rows[place]) if isinstance(leaf, str)]
            for response in odd.responses:
                assert any(response in text for text in texts), response
            if detect(rows[place]) == "comparison":
                check_label(rows[place], odd)

    draws = ((f"file {i}", odd_rows.odd_file(rng)) for i, rng in cases(fast=400, full=10_000))
    fuzz.run("rows", draws, check, record_property)


def test_damaged_files(record_property, cases, tmp_path, judge):
    """Bytes of a file are changed: one clear error, or rows that are right."""

    def check(case):
        suffix, data, text_lines = case
        path = tmp_path / f"rows.{suffix}".rstrip(".")
        path.write_bytes(data)
        results, out = judged(judge, path, tmp_path / "out.jsonl")
        if text_lines:  # lines that are as they were
            judged_lines = {row["line"] for row in out if row["error"] is None}
            assert text_lines <= judged_lines

    def draw(rng):
        suffix = rng.choice(odd_rows.FORMATS)
        rows = [rng.choice(odd_rows.ROWS)] * rng.choice([1, 3, 20])
        data = odd_rows.content(rng, rows, -1, suffix)
        changed = fuzz.change_bytes(rng, data, rng.choice([1, 1, 2, 5]))
        lines = set(data.split(b"\n")) if suffix in ("", "jsonl") else set()
        same = {
            i for i, line in enumerate(changed.split(b"\n"), 1) if line.strip() and line in lines
        }
        return suffix, changed, same

    draws = ((f"file {i}", draw(rng)) for i, rng in cases(fast=300, full=5_000))
    fuzz.run("damaged files of rows", draws, check, record_property)
