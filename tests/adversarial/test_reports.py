"""Damaged rows, scores and results: one line that names file and field, and never a blank page."""

import base64
import json
import re
import zlib

import browser
import fuzz
import pytest
from fake_judge import fake_judge, well_formed

from grm_jax import cli as grm, strict_json
from grm_jax.evals import results, run
from grm_jax.judging import report
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file
from grm_jax.judging.summary import UNPARSED, failure_text, summarise, unparsed_text
from grm_jax.types import Comparison

QUERIES = [
    "Question?",
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
     {"role": "user", "content": "Bye?"}],
]  # fmt: skip
INPUT = [
    {"query": QUERIES[i % 2], "responses": ["a", "bb", "ccc"][: 1 + i % 3], "id": f"r{i}",
     "label": [1.0] if i % 3 == 0 else 0, "meta": {"subset": "xy"[i // 3], "deep": {"w": 1.5}}}
    for i in range(6)
]  # fmt: skip


def write(responses, key):
    if key[1] == 1 and key[0] % 2:
        return "No scores."
    return well_formed([(key[0] >> i) % 10 + 1 for i in range(len(responses))])


class Meta:
    name = "meta@1"

    def __call__(self, critiques):
        return [len(text) / 7 for _, _, text in critiques]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Real rows: with and without a meta reward model, unparsed critiques, and an error row."""
    folder, rows = tmp_path_factory.mktemp("rows"), []
    (folder / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in INPUT) + '{"broken\n')
    for meta in (None, Meta()):
        judge = fake_judge(write, meta_rm=meta)
        output = folder / f"out{len(rows)}.jsonl"
        judge_file(judge, folder / "in.jsonl", output, Options(k=3), RunConfig(progress=False))
        rows.append([json.loads(line) for line in output.read_text().splitlines()])
    return rows


def page_of(path, *others):
    """Writes the report of a file; returns its data. Raises ValueError for a refusal."""
    runs = [report.load_run(str(p)) for p in (path, *others)]
    text = report.page_of_runs(runs, "t")
    data = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', text, re.S)[1]
    return strict_json.loads(data), text


def check_page(data, rows):
    """Asserts that a page holds every row, with numbers where its script computes."""
    parts = [strict_json.loads(zlib.decompress(base64.b64decode(p))) for p in data["parts"]]
    assert len(data["rows"]) == len(rows) == sum(map(len, parts))
    for entry, row in zip(data["rows"], rows):
        (side,) = entry["sides"]
        detail = parts[entry["place"][0]][entry["place"][1]]
        assert isinstance(entry["key"], str) and isinstance(entry["text"], str)
        assert all(isinstance(text, str) for text in detail["responses"])
        if side["error"]:
            assert isinstance(side["error"], str) and row["error"]
            continue
        n = row["n"]
        assert len(side["scores"]) == n and all(is_number(x) for x in side["scores"])
        assert side["best"] is None or side["best"] in range(n)
        best = [i for i, x in enumerate(side["scores"]) if abs(x - max(side["scores"])) < 1e-9]
        assert side["all_unparsed"] or side["best"] == (best[0] if len(best) == 1 else None)
        for critique in detail["sides"][0]["critiques"]:
            assert sorted(critique["order"]) == list(range(n))
            assert isinstance(critique["status"], str) and isinstance(critique["text"], str)
            for principle in critique.get("principles", []):
                assert isinstance(principle["name"], str)
                assert principle.get("weight") is None or is_number(principle["weight"])


def is_number(x):
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300


def test_damaged_rows(rows, tmp_path, cases, record_property):
    """A member of a row changed, or bytes of the file: the page is right, or the row is named."""
    path = tmp_path / "out.jsonl"

    def draws(rng):
        chosen = rng.choice(rows)
        i = rng.randrange(len(chosen))
        if rng.random() < 0.75:
            changed = fuzz.change_json(rng, chosen[i], rng.choice([1, 1, 2]))
            lines = [*chosen[:i], changed, *chosen[i + 1 :]]
            return "".join(json.dumps(line) + "\n" for line in lines).encode()
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in chosen).encode()
        return fuzz.change_bytes(rng, data, rng.choice([1, 1, 3]))

    def check(content):
        path.write_bytes(content)
        try:
            data, _ = page_of(path)
        except ValueError as error:
            assert str(path) in str(error) or path.name in str(error), error
            raise
        read = list(read_judged_rows(path, check=True))
        check_page(data, read)
        summarise(read)
        failure_text(read)

    tried = ((f"rows {i}", draws(rng)) for i, rng in cases(120, 1000))
    fuzz.run("report rows", tried, check, record_property)


def test_damaged_scores_files(tmp_path, cases, record_property):
    comparisons = [Comparison(f"q{i}", ("a", "b"), label=0, id=f"x{i}") for i in range(4)]
    views = [{"order": [0, 1], "scores": [1, 2]}, {"order": [1, 0], "scores": None}]
    good = [{"id": c.id, "scores": [0.5, 1], "views": views} for c in comparisons]
    path = tmp_path / "s.jsonl"

    def check(content):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            judged = run.load_judged(comparisons, path)
        except ValueError as error:
            assert str(path) in str(error), error
            raise
        assert len(judged) == 4
        for j in judged:
            for scores in (j.scores, *(scores for _, scores in j.views)):
                assert scores is None or (len(scores) == 2 and all(map(is_number, scores)))
            assert all(sorted(order) == [0, 1] for order, _ in j.views)

    def draws_list(rng):
        value = fuzz.change_json(rng, good, rng.choice([1, 2]))
        rows = value if isinstance(value, list) else [value]
        return "".join(json.dumps(row) + "\n" for row in rows)

    def either(rng):
        if rng.random() < 0.6:
            return draws_list(rng)
        return fuzz.change_bytes(rng, "".join(json.dumps(r) + "\n" for r in good).encode())

    tried = ((f"scores {i}", either(rng)) for i, rng in cases(120, 1000))
    fuzz.run("scores files", tried, check, record_property)


def test_a_scores_file_with_nan_or_an_id_twice_is_refused(tmp_path):
    comparisons = [Comparison("q", ("a", "b"), label=0, id="x")]
    path = tmp_path / "s.jsonl"
    for line, problem in (
        ('{"id": "x", "scores": [1.0, NaN]}', "line 1: .*NaN"),
        ('{"id": "x", "scores": [1.0, 1e400]}', "line 1: .*1e400"),
        ('{"id": "x", "score": [1, 2]}', "no field 'scores'"),
        ('{"id": "x", "scores": [1, 2]}\n{"id": "x", "scores": [2, 1]}', "line 2: .*line 1 again"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match=f"{path}, {problem}|{path}, line 1: .*{problem}"):
            run.load_judged(comparisons, path)


# ---------------------------------------------------------------- results.json


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    out = tmp_path_factory.mktemp("eval")
    argv = "eval --benchmark world,world_held_out --data . --judge longest --limit 12 --draws 5"
    assert grm.main([*argv.split(), "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


def test_damaged_results(entries, tmp_path, cases, record_property, capsys):
    """`grm table` and the merge of `grm eval` accept or refuse a file alike."""
    from grm_jax.evals import page, run_tables, table_page, tables

    path = tmp_path / "results.json"

    def draws(rng):
        complete = rng.random() < 0.5
        if rng.random() < 0.75:
            value = fuzz.change_json(rng, entries, rng.choice([1, 1, 2]))
            return json.dumps(value).encode(), complete
        return fuzz.change_bytes(rng, json.dumps(entries).encode()), complete

    def check(case):
        content, complete = case
        path.write_bytes(content)
        try:
            read = results.read_results(path, complete)
        except ValueError as error:
            assert str(path) in str(error), error
            raise
        for name in ("paper", "runs") if read else ():
            runs = {"a": {entry["benchmark"]: entry for entry in read}}
            built = run_tables.build(runs, name == "paper", {})
            strict_json.dumps(built)
            assert run_tables.markdown(built) and table_page.page(built)
        if not complete:
            return
        assert tables.markdown(read) if read else True
        if read and all(entry["benchmark"].startswith("world") for entry in read):
            assert "<html" in page.page(read)
        strict_json.dumps(read)

    tried = ((f"results {i}", draws(rng)) for i, rng in cases(40, 500))
    fuzz.run("results.json", tried, check, record_property)


def test_damaged_results_are_errors_of_the_commands(entries, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    argv = "eval --benchmark world --data . --judge longest --limit 4 --draws 5 --out".split()
    for text, problem in (
        ("", "is damaged: not JSON"),
        ("{}", "is not a list of entries"),
        ("[]", "has no entries"),
        (json.dumps(entries).replace("null", "NaN", 1), "NaN is not finite"),
        (json.dumps([entries[0] | {"of": "x"}]), "entry 'world' has of = 'x'"),
        (json.dumps([entries[0], entries[0]]), "entry 'world' appears twice"),
    ):
        (out / "results.json").write_text(text)
        commands = [["table", "runs", str(out)], *([] if text == "[]" else [[*argv, str(out)]])]
        for command in commands:
            assert grm.main(command) == 2, text
            error = capsys.readouterr().err
            assert problem in error and "results.json" in error and error.count("\n") == 1
        assert (out / "results.json").read_text() == text


# ---------------------------------------------------------------- the page in a browser


@pytest.mark.skipif(not browser.available(), reason="needs Chromium and chromedriver")
def test_accepted_pages_are_never_blank(rows, tmp_path, cases):
    """Odd rows that are accepted, each opened in a browser: the comparison is shown."""
    shown = 0
    with browser.Browser() as window:
        for _, rng in cases(12, 150):
            chosen = rng.choice(rows)
            i = rng.randrange(len(chosen))
            changed = fuzz.change_json(rng, chosen[i], 2)
            path = tmp_path / "out.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in [changed, *chosen[:2]]))
            try:
                _, text = page_of(path)
            except ValueError:
                continue
            shown += 1
            (tmp_path / "r.html").write_text(text)
            window.open(tmp_path / "r.html")
            assert window.run("return document.querySelectorAll('main *').length") > 5, changed
    assert shown


def test_every_status_has_a_hint(rows):
    statuses = {critique["status"] for run in rows for row in run for critique in row["critiques"]}
    assert statuses - {"ok"} <= set(UNPARSED)
    assert unparsed_text({"no_scores": 1})
