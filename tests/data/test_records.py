"""Files of records: JSON lines, JSON arrays, tables; their line numbers and problems."""

import gzip
import io
import json
import os
import socket

import pytest

from grm_jax.data import sources, tables
from grm_jax.data.comparisons import read_rows
from grm_jax.data.records import read_records, strict_records


def test_json_arrays_and_gzip_have_line_numbers(tmp_path):
    text = json.dumps([{"a": 1}, 5, {"b": [2]}], indent=1)
    (tmp_path / "x.json").write_text(text)
    with gzip.open(tmp_path / "x.json.gz", "wt") as out:
        out.write(text)
    for name in ("x.json", "x.json.gz"):
        rows = list(read_records(tmp_path / name))
        assert [record.line for record in rows] == [2, 5, 6]
        assert [record.number for record in rows] == [1, 2, 3]
        assert rows[2].fields == {"b": [2]} and rows[1].problem is not None
    with pytest.raises(ValueError, match="x.json, line 5: a int instead of an object"):
        list(strict_records(tmp_path / "x.json"))


def test_array_in_a_jsonl_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('[{"a": 1}, {"a": 2}]')
    assert [record.number for record in read_records(path)] == [1, 2]
    path.write_text('[1, 2]\n{"a": 1}\n')
    assert [record.problem is None for record in read_records(path)] == [False, True]


def test_tables(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "t.csv").write_text('a,b\n1,"x\ny"\n2,z\n')
    rows = list(read_records(tmp_path / "t.csv"))
    assert [record.number for record in rows] == [1, 2]
    assert rows[0].fields == {"a": "1", "b": "x\ny"}
    table = pa.Table.from_pylist([{"a": 1, "b": ["x"]}, {"a": 2, "b": []}])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    for new, name in ((pa.ipc.new_stream, "s.arrow"), (pa.ipc.new_file, "f.arrow")):
        with pa.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table)
    for name in ("t.parquet", "s.arrow", "f.arrow"):
        assert list(strict_records(tmp_path / name)) == table.to_pylist()


def test_files_that_cannot_be_parsed_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data file"):
        list(read_records(tmp_path / "none.jsonl"))
    (tmp_path / "o.json").write_text('{\n"a": 1}')
    with pytest.raises(ValueError, match="not a JSON array"):
        list(read_records(tmp_path / "o.json"))
    (tmp_path / "o.json").write_text('[{"a": 1},\n{broken},')
    with pytest.raises(ValueError, match=r"o\.json:2: element 2 .* not JSON"):
        list(read_records(tmp_path / "o.json"))


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize(
    "broken",
    [
        *("{broken}", '{"a": }', '{"a": 1', '{"a": "x" y"}', '{"a": [{"a": 1}, {"a": 2}]'),
        *('{"a": 1, "a": 2}', '{"a": NaN}', '{"a": ' + "[" * 300 + "]" * 300 + "}", "9" * 5000),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_broken_element_of_an_array_leaves_the_others(broken, indent, place, tmp_path):
    good = [{"a": i, "turns": [{"role": "user", "content": "} , {"}] * 2} for i in range(4)]
    text = json.dumps([*good[:place], "BROKEN", *good[place:]], indent=indent)
    (tmp_path / "a.json").write_text(text.replace('"BROKEN"', broken))
    records = list(read_records(tmp_path / "a.json"))
    assert [r.fields for r in records if not r.problem] == good
    (bad,) = [record for record in records if record.problem]
    assert bad.number == place + 1 and f"element {place + 1} (line {bad.line}): " in bad.problem


def test_an_array_with_more_than_100_broken_elements_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}' + ', {"a": }' * 101 + "]")
    with pytest.raises(ValueError, match=r"a\.json:1: element 102 .* is broken"):
        list(read_records(tmp_path / "a.json"))


def test_a_text_that_is_not_closed_ends_with_its_element(tmp_path):
    for indent, text in ((None, '{"a": "x}'), (1, '{"a": "x'), (None, '{"a": "b\\"}')):
        content = json.dumps([{"a": 1}, "BROKEN", {"a": 3}], indent=indent)
        (tmp_path / "a.json").write_text(content.replace('"BROKEN"', text))
        records = list(read_records(tmp_path / "a.json"))
        assert [record.fields for record in records] == [{"a": 1}, {}, {"a": 3}]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"a": 1}\n'.encode("utf-16"), "UTF-16 or UTF-32 text: save it as UTF-8"),
        ('{"a": 1}\n'.encode("utf-16-le"), "UTF-16 or UTF-32 text"),
        ('{"a": 1}\n'.encode("utf-32"), "UTF-16 or UTF-32 text"),
        (b"", "has no records"),
        (b"\n \r\n", "has no records"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a"])
def test_files_without_records_that_can_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        list(read_rows(tmp_path / name))


def test_csv_files_whose_cells_are_not_certain(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"x"y\n2,z\n3,"not\nclosed" here\n4,w\n')
    rows = list(read_records(path))
    assert [row.fields.get("b") for row in rows] == [None, "z", None, "w"]
    assert "line 2: a quotation mark" in rows[0].problem
    assert "lines 4 to 5: a quotation mark" in rows[2].problem
    for content, message in (
        ('a,b\n1,"x\n2,z\n', "a.csv, line 2: a quoted cell is not closed before the end"),
        ("a,b,a\n1,2,3\n", "a.csv has the column 'a' twice"),
        (b"a,\xff\n1,2\n", "a.csv: the header is not UTF-8"),
    ):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            list(read_records(path))


def test_numbers_of_tables_are_finite(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table(
        {"a": [1.0, float("nan"), float("inf"), 2.0], "b": [[1.0], [2.0], [3.0], [float("nan")]]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    rows = list(read_records(tmp_path / "t.parquet"))
    assert [row.fields.get("a") for row in rows] == [1.0, None, None, None]
    assert [row.problem for row in rows] == [
        None,
        None,
        "a is inf: give a finite number",
        "b[0] is nan: give a finite number",
    ]


def test_a_damaged_text_of_a_table_leaves_the_other_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    texts = pa.array([b"good", b"\xff", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"a": texts})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_stream(tmp_path / "t.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "t.arrow.gz").write_bytes(gzip.compress((tmp_path / "t.arrow").read_bytes()))
    for name in ("t.parquet", "t.arrow", "t.arrow.gz"):
        rows = list(read_records(tmp_path / name))
        assert [row.fields.get("a") for row in rows] == ["good", None, "fine"], name
        assert "a value is damaged" in rows[1].problem


def test_a_gzip_file_does_not_expand_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ALWAYS_EXPANDED", 1 << 20)
    for name, content in (("a.jsonl.gz", b" " * 2), ("a.json.gz", b"["), ("a.csv.gz", b"a,b\n")):
        (tmp_path / name).write_bytes(gzip.compress(content + b" " * (1 << 24)))
        with pytest.raises(ValueError, match=f"{name} expands to more than 100 times its size"):
            list(read_records(tmp_path / name))
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b'{"a": "' + b"x" * 900_000 + b'"}')
    assert len(list(read_records(tmp_path / "a.jsonl.gz"))) == 1


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "socket"])
def test_devices_and_sockets_are_no_data(name, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        with pytest.raises(ValueError, match="is a device or a socket: give a file"):
            list(read_records(path if name == "socket" else name))


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.arrow")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(ValueError, match="state.json names data.arrow, which is not a file"):
        list(read_records(tmp_path))
    (tmp_path / "state.json").write_text('{"_data_files": ' + "[" * 100_000)
    with pytest.raises(ValueError, match="state.json is damaged"):
        list(read_records(tmp_path))


def test_a_damaged_gzip_file_of_standard_input(monkeypatch):
    packed = gzip.compress(b'{"a": 1}\n' * 1000)
    for data in (packed[:20], packed[:12] + b"\xff" * 30, b"\x1f\x8b"):
        sources._spooled.cache_clear()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(ValueError, match="stdin.jsonl.gz is damaged"):
            list(read_records("-"))
