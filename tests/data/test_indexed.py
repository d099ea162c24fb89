"""Indexed files of JSON lines."""

import json

from grm_jax.data import indexed


def test_any_line_is_found_by_its_number(tmp_path):
    texts = [
        json.dumps({"i": i, "text": "\u2028\n" * (i % 5)}, ensure_ascii=False) for i in range(50)
    ]
    indexed.write_index(tmp_path / "x", [("a", iter(texts[:20])), ("b", iter(texts[20:]))])
    index = indexed.Index(tmp_path / "x")
    assert len(index) == 50
    assert index.sections == {"a": range(0, 20), "b": range(20, 50)}
    for i in (49, 0, 20, 19):
        assert index[i] == json.loads(texts[i])


def test_folder_without_its_last_file_is_not_indexed(tmp_path):
    def texts():
        yield "{}"
        raise KeyboardInterrupt

    try:
        indexed.write_index(tmp_path / "x", [("a", texts())])
    except KeyboardInterrupt:
        pass
    assert not indexed.is_indexed(tmp_path / "x")
    indexed.write_index(tmp_path / "x", [("a", iter(["{}"]))])
    assert indexed.is_indexed(tmp_path / "x")
