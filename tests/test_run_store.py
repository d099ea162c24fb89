"""RunStore: durable appends, torn lines, locks, identities, folders of parts, several processes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from grm_jax import run_store
from grm_jax.run_store import IdentityMismatch, RunStore, StoreMismatch

IDENTITY = {"model": "m@1", "k": 8}


@pytest.fixture(params=["store.jsonl", "store"], ids=["file", "folder"])
def path(request, tmp_path):
    """A store in one file, and one in a folder of parts."""
    return tmp_path / "run" / request.param


def open_again(path, identity=IDENTITY, **options):
    with RunStore(path, identity, **options) as store:
        return {key: store[key] for key in store}


def test_a_write_that_fails_half_way_damages_no_line(tmp_path):
    """As on a full disk; the same process then writes again."""
    code = (
        "import os, resource, signal, sys\n"
        "from grm_jax.run_store import RunStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))\n"
        "store = RunStore(sys.argv[1], {}, key='line')\n"
        "store.append(1, {'text': 'a' * 100})\n"
        "limit(os.path.getsize(sys.argv[1]) + 50)\n"
        "try: store.append(2, {'text': 'b' * 100})\n"
        "except OSError: limit(-1)\n"
        "store.append_all({2: {'text': 'b'}, 3: {'text': 'c'}})\n"
    )
    path = tmp_path / "out.jsonl"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert [record["text"][0] for record in open_again(path, {}, key="line").values()] == [*"abc"]


def test_a_mapping_that_survives_a_restart(path):
    with RunStore(path, IDENTITY) as store:
        store.append("b", {"text": "zwei"})
        store.append_all({"a": {"text": "eins"}, "failed": {"text": None}})
        assert "a" in store and "c" not in store and len(store) == 3
        assert store["a"] == {"key": "a", "text": "eins"}
        with pytest.raises(KeyError):
            store["c"]
    with RunStore(path, IDENTITY) as store:
        assert list(store) == ["b", "a", "failed"]
        assert [record["text"] for record in store.records(["a", "failed"])] == ["eins", None]
        store.append("c", {"text": "drei"})
    assert [record["text"] for record in open_again(path).values()] == [
        "zwei",
        "eins",
        None,
        "drei",
    ]


def test_a_key_is_appended_once(path):
    with RunStore(path, IDENTITY, key="line") as store:
        store.append(1, {"line": 1})
        with pytest.raises(ValueError, match="line 1 is in .* already"):
            store.append(1, {"line": 1})


def test_a_batch_costs_one_fsync(path, monkeypatch):
    synced = []
    with RunStore(path, IDENTITY) as store:
        monkeypatch.setattr(run_store.os, "fsync", synced.append)
        store.append_all({str(i): {"text": "x"} for i in range(100)})
    assert len(synced) == (2 if store.is_folder else 1)  # a new part syncs its folder as well


def test_a_record_is_on_disk_when_append_returns(path):
    """A process that is killed right after the append loses nothing."""
    code = f"""
import os
from grm_jax.run_store import RunStore
store = RunStore({str(path)!r}, {IDENTITY!r})
store.append("a", {{"text": "kept"}})
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert open_again(path) == {"a": {"key": "a", "text": "kept"}}


def test_a_torn_last_line_is_dropped_at_any_byte(tmp_path):
    path = tmp_path / "store.jsonl"
    with RunStore(path, IDENTITY) as store:
        for key in "abc":
            store.append(key, {"text": key * 5})
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = max(0, sum(end <= cut for end in ends) - 1)
        with RunStore(path, IDENTITY) as store:
            assert list(store) == list("abc")[:complete]
            store.append("d", {"text": "d"})
        assert list(open_again(path)) == [*"abc"[:complete], "d"]


def test_another_file_without_a_line_break_is_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text('{"my": "only copy"}')
    with pytest.raises(ValueError, match="does not begin with the settings of its run"):
        RunStore(path, IDENTITY)
    assert path.read_text() == '{"my": "only copy"}'


def test_a_damaged_line_is_an_error(path):
    with RunStore(path, IDENTITY) as store:
        store.append_all({"a": {}, "b": {}})
    file = path / "000000.jsonl" if path.is_dir() else path
    file.write_bytes(file.read_bytes().replace(b'{"key": "a"}', b'{"ke\x00'))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        RunStore(path, IDENTITY)


def test_another_identity_is_refused_with_the_field_and_both_values(path):
    with RunStore(path, IDENTITY) as store:
        store.append("a", {})
    with pytest.raises(IdentityMismatch, match="begun with k = 8, now it is 4: .*--overwrite"):
        RunStore(path, IDENTITY | {"k": 4})
    with pytest.raises(IdentityMismatch, match="begun with seed = None, now it is 1"):
        RunStore(path, IDENTITY | {"seed": 1})
    assert list(open_again(path)) == ["a"]


def test_existing_work_is_refused_resumed_or_overwritten(path):
    with RunStore(path, IDENTITY, existing="refuse") as store:
        store.append("a", {})
    with pytest.raises(FileExistsError, match="--resume.*--overwrite"):
        RunStore(path, IDENTITY, existing="refuse")
    assert list(open_again(path)) == ["a"]
    assert list(open_again(path, {"k": 9}, existing="overwrite")) == []
    with RunStore(path, {"k": 9}) as store:
        store.append("b", {})
    assert list(open_again(path, {"k": 9})) == ["b"]


def test_a_second_writer_is_refused(path):
    first = RunStore(path, IDENTITY)
    with pytest.raises(BlockingIOError, match="another run"):
        RunStore(path, IDENTITY)
    first.append("a", {})
    first.close()
    assert list(open_again(path)) == ["a"]


def test_finish_replaces_the_output_in_the_order_of_the_input(path, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    store = RunStore(path, IDENTITY, key="line")
    store.append(2, {"id": "zwei", "line": 2})
    with pytest.raises(ValueError, match="lacks 1 of 2 records, the first is line 1"):
        store.finish(output, order=[1, 2])
    assert output.read_text() == "old\n"
    store.append(1, {"id": "eins", "line": 1})
    store.finish(output, order=[1, 2])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows == [{"id": "eins", "line": 1}, {"id": "zwei", "line": 2}]
    assert not path.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "run"]


def test_text_of_any_kind_comes_back(path):
    texts = ["a\u2028b\nc\rd\x85", "ü", "half a pair \ud83d"]
    with RunStore(path, IDENTITY) as store:
        store.append_all({str(i): {"text": text} for i, text in enumerate(texts)})
    assert [record["text"] for record in open_again(path).values()] == texts


def test_parts_of_earlier_versions_are_resumed(tmp_path):
    """They have no header: their keys hash everything that a reply depends on."""
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "000000.jsonl").write_text('{"key": "a", "text": "x"}\n{"key": "b", "text": null}\n')
    with RunStore(folder, IDENTITY) as store:
        assert list(store) == ["a", "b"]
        store.append("c", {"text": "y"})
    assert (folder / "000001.jsonl").exists()
    assert list(open_again(folder)) == ["a", "b", "c"]


class TestSharedByProcesses:
    """All processes append; process 0 writes; the others hold the records in memory."""

    @pytest.fixture
    def process(self, monkeypatch):
        """Sets which process this is, of two, and which digests all of them have."""

        def become(index, digests=None):
            from jax.experimental import multihost_utils

            monkeypatch.setattr(run_store, "_process", lambda: (index == 0, 2))
            gather = lambda array: np.stack(digests or [array, array])  # noqa: E731
            monkeypatch.setattr(multihost_utils, "process_allgather", gather)

        return become

    def test_only_process_0_writes(self, path, process):
        process(0)
        first = RunStore(path, IDENTITY, shared=True)
        first.append("a", {"text": "x"})
        process(1)
        second = RunStore(path, IDENTITY, shared=True)  # no lock: process 0 has it
        for store in (first, second):
            store.append("b", {"text": "y"})
            assert [store[key]["text"] for key in "ab"] == ["x", "y"]
        second.close()
        first.close()
        assert [record["text"] for record in open_again(path).values()] == ["x", "y"]

    def test_different_records_are_an_error_on_all(self, path, process):
        process(1, [np.array([0]), np.array([1])])
        with pytest.raises(StoreMismatch, match="different records in .*all of them share"):
            RunStore(path, IDENTITY, shared=True)


def test_a_bucket_holds_numbered_parts(tmp_path, monkeypatch):
    """A bucket's address, served by a local folder."""
    monkeypatch.setattr(run_store, "is_remote", lambda path: True)
    with RunStore(tmp_path / "samples.jsonl", IDENTITY) as store:
        store.append("a", {"text": "x"})
        store.append_all({"b": {"text": "y"}, "c": {"text": "z"}})
    parts = sorted((tmp_path / "samples.jsonl").iterdir())
    assert [part.name for part in parts] == ["000000.jsonl", "000001.jsonl"]
    assert list(open_again(tmp_path / "samples.jsonl")) == ["a", "b", "c"]


def test_imports_nothing_heavy():
    code = "import sys, grm_jax.run_store; assert 'jax' not in sys.modules, 'jax is imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
