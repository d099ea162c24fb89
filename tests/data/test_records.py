"""Files of records: JSON lines, JSON arrays, tables; their line numbers and problems."""

import gzip
import json

import pytest

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
    with pytest.raises(ValueError, match="x.json, line 5: a int where an object"):
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
    with pytest.raises(ValueError, match="no JSON array"):
        list(read_records(tmp_path / "o.json"))
    (tmp_path / "o.json").write_text('[{"a": 1},\n{broken},')
    with pytest.raises(ValueError, match=r"o\.json:2: element 2 .* not JSON"):
        list(read_records(tmp_path / "o.json"))


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize(
    "broken",
    ["{broken}", '{"a": }', '{"a": 1', '{"a": "x" y"}', '{"a": [{"a": 1}, {"a": 2}]', "9" * 5000],
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_broken_element_of_an_array_leaves_the_others(broken, indent, place, tmp_path):
    good = [{"a": i, "turns": [{"role": "user", "content": "} , {"}] * 2} for i in range(4)]
    text = json.dumps([*good[:place], "BROKEN", *good[place:]], indent=indent)
    (tmp_path / "a.json").write_text(text.replace('"BROKEN"', broken))
    found = list(read_records(tmp_path / "a.json"))
    assert [r.fields for r in found if not r.problem] == good
    (bad,) = [record for record in found if record.problem]
    assert bad.number == place + 1 and f"element {place + 1}: " in bad.problem
