"""Options, fields and files that would be ignored without a word are errors in one line."""

import json
import os
import re
import sys

import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_judge import fake_judge, well_formed

from grm_jax import cli as grm
from grm_jax.data.comparisons import read_rows
from grm_jax.data.sft import read_examples
from grm_jax.judging.judge import Judge
from grm_jax.judging.options import Options
from grm_jax.run_store import RunStore
from grm_jax.training import own_file
from grm_jax.types import Comparison

ROW = {"query": "q", "responses": ["a", "b"], "label": 1}
ONE = ("judge", "--query", "q", "--response", "a", "--response", "b", "--model", "none")
FILES = ("judge", "IN", "OUT", "--model", "none")
EVAL = ("eval", "--benchmark", "world", "--data", ".", "--judge", "longest")


def status_and_error(argv, capsys):
    """Returns the exit status of a command and its errors, of one line each."""
    try:
        status = grm.main(list(map(str, argv)))
    except SystemExit as exit:
        status = exit.code
    return status, capsys.readouterr().err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IN").write_text(json.dumps(ROW) + "\n")
    return tmp_path


OPTIONS = {
    (*ONE, "--limit", "1"): "--limit needs IN and OUT",
    (*ONE, "--resume"): "--resume needs IN and OUT",
    (*ONE, "--overwrite"): "--overwrite needs IN and OUT",
    (*ONE, "--format", "trl"): "--format needs IN and OUT",
    (*FILES, "--system", "be fair"): "--system needs --query",
    (*FILES, "--reference", "r"): "--reference needs --query",
    (*FILES, "--resume", "--overwrite"): "--overwrite: not allowed with argument --resume",
    (*FILES, "--meta_template", "compact"): "--meta_template compact needs a meta reward model",
    ("judge", "IN", "a.jsonl.gz", "--model", "none"): "name it a.jsonl ",
    ("judge", "IN", "/dev/null", "--model", "none"): "/dev/null is a device",
    (*EVAL, "--part"): "--part needs --scores",
    (*EVAL, "--out", "IN"): "IN is a file",
    (*EVAL, "--out", "IN/deeper"): "IN/deeper is a file, or is below one",
    ("table", "runs", "a=b", "--out", "t.pdf"): "name a file that ends in .md, .html, .json",
}


@pytest.mark.parametrize("argv", OPTIONS, ids=" ".join)
def test_options_that_would_be_ignored(argv, folder, capsys):
    status, error = status_and_error(argv, capsys)
    assert status == 2
    assert OPTIONS[argv] in error.replace("\n", " ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_closed_stream_is_named(stream, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    files = ("-", "OUT") if stream == "stdin" else ("IN", "-")
    status = grm.main(["judge", *files, "--model", "none"])
    assert status == 2
    assert f"standard {stream[3:]}put is closed: name a file" in capsys.readouterr().err


def test_settings_of_python_that_would_be_ignored():
    judge = fake_judge([well_formed((1, 2))])
    with pytest.raises(ValueError, match="k_meta = 1 needs a meta reward model"):
        judge([Comparison("q", ["a", "b"])], k=2, k_meta=1)
    with pytest.raises(ValueError, match="given_principles has half a surrogate pair"):
        Options(given_principles="\ud800")


@pytest.mark.parametrize("responses", [{"a", "b"}, {"a": 1, "b": 2}, frozenset("ab"), b"ab"])
def test_responses_need_an_order(responses):
    with pytest.raises(ValueError, match="pass a list of strings, one per response"):
        Comparison("q", responses)


# ---------------------------------------------------------------- fields of rows

FIELDS = {
    '"prompt": "p"': "the fields 'query' and 'prompt' differ: remove one, or name the format",
    '"choices": ["a", "c"]': "the fields 'responses' and 'choices' differ",
    '"id": {"a": 1}': "the field 'id' is {'a': 1}: give a text or a number",
    '"id": [1]': "the field 'id' is [1]",
    '"id": true': "the field 'id' is True",
}


@pytest.mark.parametrize("field", FIELDS)
def test_fields_that_would_be_ignored(field, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(ROW)[:-1]}, {field}}}\n{{}}\n{json.dumps(ROW)}\n")
    wrong, empty, right = read_rows(path)
    assert FIELDS[field] in wrong.reason
    assert "has no fields" in empty.reason
    assert right.comparison


def test_equal_fields_and_empty_ids_are_accepted(tmp_path):
    path = tmp_path / "a.jsonl"
    chat = [{"role": "user", "content": "q"}]
    more = [{"prompt": "q", "messages": chat}, {"choices": ["a", "b"], "id": ""}, {"id": 0}]
    path.write_text("".join(json.dumps(ROW | fields) + "\n" for fields in more))
    rows = list(read_rows(path))
    assert [(row.reason, row.id) for row in rows] == [(None, None), (None, None), (None, "0")]


def test_an_example_whose_id_is_no_text_is_malformed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "q", "answer": "a", "id": ["x"]}\n')
    with pytest.raises(ValueError, match="the field 'id' is \\['x'\\]: give a text or a number"):
        list(read_examples(path))


# ---------------------------------------------------------------- files of another kind

BINARY = {
    b"PK\x03\x04 data": "is a zip archive or an Excel file",
    b"\xd0\xcf\x11\xe0 data": "is an Excel file",
    b"BZh9 data": "compressed with bzip2: decompress it",
    b"\xfd7zXZ data": "compressed with xz",
    b"\x28\xb5\x2f\xfd data": "compressed with zstd",
    b"SQLite format 3\0": "is an SQLite database",
    b"PAR1 data": "is a Parquet file: name it .parquet",
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a"])
@pytest.mark.parametrize("content", BINARY, ids=list(BINARY.values()))
def test_files_of_another_kind_are_named(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    if name == "a" and content.startswith(b"PAR1"):
        return  # recognised, and read as Parquet
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{BINARY[content]}"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_column_that_appears_twice_is_named(suffix, tmp_path):
    names = ["prompt", "chosen", "rejected", "chosen"]
    table = pa.Table.from_arrays([pa.array([name]) for name in "pabc"], names)
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write(table)
    with pytest.raises(ValueError, match=f"{path} has the column 'chosen' twice: rename one"):
        list(read_rows(path))
    with pytest.raises(ValueError, match="comparisons has the column 'chosen' twice: rename one"):
        fake_judge([well_formed((1, 2))])(pandas.DataFrame([list("pabc")], columns=names))


def test_a_store_without_its_settings_is_named(tmp_path):
    path = tmp_path / "OUT.part"
    path.write_text('{"line": 1, "critiques": []}\n')
    with pytest.raises(ValueError, match="does not begin with the settings of its run: start over"):
        RunStore(path, {"k": 1}, key="line", existing="resume")


def test_scores_with_settings_of_a_wrong_type_are_never_copied(folder, capsys):
    assert status_and_error([*EVAL, "--out", "a", "--draws", "2"], capsys)[0] == 0
    rows = [json.loads(line) for line in (folder / "a/world.jsonl").read_text().splitlines()]
    command = ("eval", "--benchmark", "world", "--data", ".", "--scores", "s.jsonl", "--out", "b")
    for field in ({"k": "8"}, {"model": {"a": 1}}, {"temperature": [1]}, {"views": {}}):
        rows[0] = {name: rows[0][name] for name in ("id", "scores")} | field
        (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        status, error = status_and_error(command, capsys)
        assert (status, error.count("\n")) == (2, 1)
        assert next(iter(field)) in error
        assert not (folder / "b/world.jsonl").exists()


# ---------------------------------------------------------------- paths that never end


@pytest.mark.parametrize("path", ["/dev/zero", "/usr"])
def test_what_is_no_checkpoint_is_not_read(path):
    with pytest.raises(ValueError, match=f"^{path} is not a supported checkpoint"):
        Judge.load(path)


def test_the_digest_of_training_data_reads_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        assert own_file._digest(path) == path
