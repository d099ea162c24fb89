"""Five record shapes in five containers give the same comparisons for judging and for training."""

import csv
import datetime
import decimal
import gzip
import io
import json
import os
import sys
import threading

import pytest

from grm_jax.data import sources
from grm_jax.data.comparisons import read_comparisons, read_rows
from grm_jax.data.records import Account, read_records
from grm_jax.types import Comparison


def turn(role, content):
    return {"role": role, "content": content}


def chat(question, answer):
    return [turn("user", question), turn("assistant", answer)]


QUESTION = 'Which is prime, 8 or 7?\n"Reply", please'
SHAPES = {
    "trl": [{"prompt": QUESTION, "chosen": "7", "rejected": "8, I think"}],
    "rewardbench": [
        {"id": 3, "prompt": QUESTION, "chosen": "7", "chosen_model": "m", "rejected": "8, I think"}
        | {"rejected_model": "n", "subset": "hard"}
    ],
    "ultrafeedback_binarized": [
        {"prompt": QUESTION, "prompt_id": "abc", "score_chosen": 8.5, "score_rejected": 2.0}
        | {"chosen": chat(QUESTION, "7"), "rejected": chat(QUESTION, "8, I think")}
        | {"messages": chat(QUESTION, "7")}
    ],
    "openai": [
        {
            "messages": [turn("user", QUESTION)],
            "choices": [
                {"index": i, "message": turn("assistant", text), "finish_reason": "stop"}
                for i, text in enumerate(("7", "8, I think"))
            ],
            "label": 0,
        }
    ],
    "comparison": [{"query": QUESTION, "responses": ["7", "8, I think"], "label": 0, "meta": {}}],
}
CONTAINERS = ("jsonl", "json", "csv", "parquet", "stdin")


def as_csv(records) -> str:
    """As pandas or `datasets` write it from nested columns that are JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    for record in records:
        nested = {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in record.items()}
        writer.writerow(nested)
    return text.getvalue()


def write(records, container, folder, monkeypatch):
    """Writes records into a container; returns the source to read."""
    import pyarrow as pa
    import pyarrow.parquet

    lines = "".join(json.dumps(record) + "\n" for record in records)
    path = folder / f"pairs.{container}"
    if container == "stdin":
        return pipe(lines.encode(), monkeypatch)
    if container == "parquet":
        table = [{key: value for key, value in r.items() if value != {}} for r in records]
        pyarrow.parquet.write_table(pa.Table.from_pylist(table), path)
        return path
    contents = {"jsonl": lines, "json": json.dumps(records, indent=1), "csv": as_csv(records)}
    path.write_text(contents[container])
    return path


def pipe(content: bytes, monkeypatch) -> str:
    sources._spooled.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return sources.STDIN


def content(comparison: Comparison):
    """Turns, and responses with their rewards in any order."""
    rewards = comparison.rewards or [None] * comparison.n
    turns = [(turn["role"], turn["content"]) for turn in comparison.turns]
    return turns, sorted(zip(comparison.responses, rewards)), comparison.reference


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_container_gives_the_same_comparison(
    shape, container, tmp_path, monkeypatch
):
    source = write(SHAPES[shape] * 3, container, tmp_path, monkeypatch)
    rows = list(read_rows(source))
    account = Account()
    trained = list(read_comparisons(source, None, 0.0, account))
    expected = ([("user", QUESTION)], [("7", 1.0), ("8, I think", 0.0)], None)
    assert [row.reason for row in rows] == [None] * 3
    assert [content(row.comparison) for row in rows] == [expected] * 3
    assert [content(comparison) for comparison in trained] == [expected] * 3
    assert len({row.number for row in rows}) == 3 and not account.malformed


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "parquet"])
def test_standard_input_may_have_any_format(container, packed, tmp_path, monkeypatch):
    path = write(SHAPES["trl"], container, tmp_path, monkeypatch)
    raw = gzip.compress(path.read_bytes()) if packed else path.read_bytes()
    (row,) = read_rows(pipe(raw, monkeypatch))
    assert row.comparison.responses == ("7", "8, I think")
    assert [r.comparison for r in read_rows(sources.STDIN)] == [row.comparison]  # read again
    assert len(sources.digest(sources.STDIN)) == 64


def test_nested_columns_that_python_wrote_into_csv(tmp_path):
    records = [{"chosen": chat("q", "it's 7"), "rejected": chat("q", "8")}]
    (tmp_path / "a.csv").write_text(as_csv([{k: str(v) for k, v in records[0].items()}]))
    (row,) = read_rows(tmp_path / "a.csv")
    assert row.comparison.responses == ("it's 7", "8")
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\nq,\"[{'role': array(1)}]\",b\nq,a,b\n")
    rows = list(read_rows(tmp_path / "b.csv"))
    assert "neither JSON nor a Python list" in rows[0].reason and rows[1].comparison


def test_a_text_in_brackets_stays_a_text(tmp_path):
    record = {"prompt": "[1, 2]", "chosen": '[{"name": "a"}]', "rejected": "[1]"}
    (tmp_path / "a.csv").write_text(as_csv([record]))
    (row,) = read_rows(tmp_path / "a.csv")
    assert (row.comparison.query, *row.comparison.responses) == tuple(record.values())


def test_odd_rows_of_a_csv_file_leave_the_others(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfprompt,chosen,rejected\nq,a,b\nq,\xff,b\nq,a,b,c\nq,a\n\nq,"
        + b"x" * 200_000
        + b",b\n"
    )
    rows = list(read_rows(path))
    reasons = [row.reason for row in rows]
    assert reasons[0] is reasons[4] is None
    assert reasons[1] == "not UTF-8" and reasons[2] == "4 cells in 3 columns"
    assert "'rejected'" in reasons[3] or "no format" in reasons[3]
    assert len(rows[4].comparison.responses[0]) == 200_000


def test_files_without_a_suffix_named_pipes_and_semicolons(tmp_path):
    lines = json.dumps(SHAPES["trl"][0]).encode() + b"\n"
    (tmp_path / "pairs").write_bytes(gzip.compress(lines * 2))
    assert len(list(read_rows(tmp_path / "pairs"))) == 2
    (tmp_path / "a.csv").write_text("prompt;chosen;rejected\nq;a, b;c\n")
    assert next(read_rows(tmp_path / "a.csv")).comparison.responses == ("a, b", "c")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(lines,))
    writer.start()
    assert [row.comparison.n for row in read_rows(tmp_path / "pipe")] == [2]
    writer.join()
    assert sources.digest(tmp_path / "pipe") and len(list(read_rows(tmp_path / "pipe"))) == 1


def test_values_that_json_lacks_become_text(tmp_path):
    import pyarrow.parquet

    meta = {"when": datetime.date(2024, 5, 1), "cost": decimal.Decimal("1.5"), "raw": b"\xff"}
    records = [
        {"query": "q", "responses": ["a", "b"], "label": label, "meta": meta}
        for label in (1.0, float("nan"))
    ]
    pyarrow.parquet.write_table(table_of(records), tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert [row.comparison.label for row in rows] == [1, None]
    assert json.loads(json.dumps(rows[0].comparison.meta))["when"] == "2024-05-01"


def test_bytes_of_a_table_that_are_no_text_are_refused_where_they_are_needed(tmp_path):
    import pyarrow.parquet

    texts = [b"caf\xc3\xa9", b"caf\xe9"]
    records = [{"prompt": t, "chosen": b"a", "rejected": b"b", "image": b"\xff"} for t in texts]
    pyarrow.parquet.write_table(table_of(records), tmp_path / "a.parquet")
    good, bad = read_rows(tmp_path / "a.parquet")
    assert good.comparison.query == "caf\u00e9"
    assert bad.comparison is None and bad.reason == "a text of the comparison is not UTF-8"


def test_damaged_files_are_errors_that_name_them(tmp_path):
    good = json.dumps(SHAPES["trl"][0]).encode() + b"\n"
    for name, content in (
        ("a.jsonl.gz", gzip.compress(good * 99)[:-9]),
        ("b.parquet", b"PAR1 no more"),
        ("c.arrow", b"nothing"),
        ("d.json", b"[" + b"\xff"),
        ("e.json", b"[" * 100_000),
        ("f.json", b'[{"a": 1}, 2'),
        ("g.json", b'[{"a": 1}] [2]'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}(:1)?[ :]") as error:
            list(read_rows(tmp_path / name))
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------- folders


def table_of(records):
    import pyarrow as pa

    return pa.Table.from_pylist(records)


def test_folders_of_datasets(tmp_path):
    """`save_to_disk` of a DatasetDict: stream files, and a state.json that lists them."""
    import pyarrow as pa

    for split, count in (("train", 3), ("test", 2)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        table = table_of(SHAPES["trl"] * count)
        names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
        for name, part in zip(names, (table.slice(0, 1), table.slice(1))):
            with pa.OSFile(str(folder / name), "wb") as file:
                with pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(part)
        (folder / "stale.arrow").write_bytes(b"of an earlier save")
        (folder / "dataset_info.json").write_text("{}")
        state = {"_data_files": [{"filename": name} for name in names]}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    records = list(read_records(tmp_path / "set" / "train"))
    assert [record.number for record in records] == [1, 2, 3]
    assert len({row.number for row in read_rows(tmp_path / "set" / "test")}) == 2
    with pytest.raises(ValueError, match=r"has the splits test, train: add one, as in .*set/test"):
        list(read_records(tmp_path / "set"))
    with pytest.raises(FileNotFoundError, match="set/dev does not exist; the splits are test, tr"):
        list(read_records(tmp_path / "set" / "dev"))
    (tmp_path / "set" / "test" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="test/state.json is damaged"):
        list(read_records(tmp_path / "set" / "test"))


def test_folder_of_parquet_shards(tmp_path):
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    for split, total in (("train_prefs", 2), ("test_prefs", 1)):
        for i in range(total):
            path = tmp_path / "data" / f"{split}-{i:05d}-of-{total:05d}.parquet"
            pyarrow.parquet.write_table(table_of(SHAPES["trl"] * 2), path)
    rows = list(read_rows(tmp_path / "train_prefs"))
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert len(list(read_comparisons(tmp_path / "data" / "test_prefs"))) == 2
    (tmp_path / "data" / "train_prefs-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="1 of 2 shards of data/train_prefs: download it again"):
        list(read_rows(tmp_path / "train_prefs"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no data files"):
        list(read_rows(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="no data file .*nowhere"):
        list(read_rows(tmp_path / "empty" / "nowhere"))


@pytest.mark.parametrize("name", ["org/set_binarized", "hf:org/set_binarized", "org/set-v0.3"])
def test_the_bare_name_of_a_data_set_is_answered_with_its_address(name, tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    bare = name.removeprefix("hf:")
    with pytest.raises(FileNotFoundError, match=rf"did you mean hf://datasets/{bare}\?"):
        list(read_rows(name))


def test_a_folder_of_several_formats_is_refused(tmp_path):
    import pyarrow.parquet

    pyarrow.parquet.write_table(table_of(SHAPES["trl"]), tmp_path / "a.parquet")
    for name in ("README.md", "dataset_info.json", "dataset_dict.json", "state.json.bak"):
        (tmp_path / name).write_text("{}")
    assert list(read_rows(tmp_path))
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="holds .parquet and .jsonl files: add a folder or a file"):
        list(read_rows(tmp_path))
