"""Stores of partial results: every damaged byte is noticed, and no damaged record is accepted."""

import json
import os

import fuzz
import pytest

from grm_jax.judging.codec import read_judged_rows
from grm_jax.run_store import RunStore

IDENTITY = {"model": "m@0123456789ab", "k": 8, "input": "f" * 64}
RECORDS = {
    i: {"line": i, "text": f"critique {i} é" * 3, "scores": [i / 3, 2.0], "critiques": []}
    for i in range(1, 9)
}


@pytest.fixture(params=["store.part", "folder"])
def path(request, tmp_path):
    """A store in one file, and one in a folder of parts, each with the same records."""
    path = tmp_path / request.param
    with RunStore(path, IDENTITY, key="line") as store:
        for start in (1, 4, 7):
            store.append_all({i: RECORDS[i] for i in range(start, min(start + 3, 9))})
    return path


def files_of(path):
    return sorted(path.iterdir()) if path.is_dir() else [path]


def records_of(path):
    with RunStore(path, IDENTITY, key="line") as store:
        return {key: store[key] for key in store}


def test_every_flipped_bit_is_noticed(tmp_path):
    """Each bit of a short store in turn: the record is dropped, or the store is refused."""
    path = tmp_path / "store.part"
    records = {i: {"line": i, "scores": [i, 2]} for i in (1, 2)}
    with RunStore(path, {"k": 8}, key="line") as store:
        store.append_all(records)
    whole = path.read_bytes()
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        try:
            with RunStore(path, {"k": 8}, key="line") as store:
                kept = dict(store)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert kept.items() < records.items(), damaged


def test_damaged_stores(path, cases, record_property):
    """What is accepted equals records that were written; a refusal names the file."""
    whole = {file: file.read_bytes() for file in files_of(path)}

    def draws(rng):
        for file, content in whole.items():
            file.write_bytes(content)
        file = rng.choice(list(whole))
        file.write_bytes(fuzz.change_bytes(rng, whole[file], rng.choice([1, 1, 1, 2, 5])))
        return path

    def check(path):
        try:
            kept = records_of(path)
        except ValueError as error:
            assert str(path) in str(error), error
            raise
        assert kept.items() <= RECORDS.items(), "a damaged record was accepted"
        with RunStore(path, IDENTITY, key="line") as store:  # the missing ones are made again
            store.append_all({i: RECORDS[i] for i in RECORDS if i not in store})
        assert records_of(path) == RECORDS

    tried = ((f"damage {i}", draws(rng)) for i, rng in cases(100, 500))
    fuzz.run(f"stores, {path.name}", tried, check, record_property)


def test_a_damaged_line_of_an_unfinished_run_is_named_in_its_report(tmp_path):
    path = tmp_path / "out.jsonl.part"
    with RunStore(path, IDENTITY, key="line") as store:
        store.append_all(RECORDS)
    assert [row["line"] for row in read_judged_rows(path)] == list(RECORDS)
    path.write_bytes(path.read_bytes().replace(b"critique 5", b"critique 6", 1))
    with pytest.raises(ValueError, match=f"{path}, line 6 is damaged: its checksum differs"):
        list(read_judged_rows(path))


def test_stores_of_earlier_versions_are_read(tmp_path):
    """They have no checksums, and their headers lack fields that were added later."""
    path = tmp_path / "store.part"
    lines = [{"model": "m@0123456789ab", "k": 8}, *(RECORDS[i] for i in (1, 2))]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    assert records_of(path) == {i: RECORDS[i] for i in (1, 2)}
    with RunStore(path, IDENTITY, key="line") as store:
        store.append(3, RECORDS[3])
        store.finish(tmp_path / "out", order=[3, 1, 2])
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert rows == [RECORDS[i] for i in (3, 1, 2)]
    path.write_text(json.dumps({"model": "m@0123456789ab", "k": 4}) + "\n")
    with pytest.raises(ValueError, match="begun with k = 4, now it is 8"):
        records_of(path)


def test_numbers_that_json_lacks_are_not_stored(tmp_path):
    with RunStore(tmp_path / "store.part", IDENTITY, key="line") as store:
        with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
            store.append(1, {"scores": [1.0, float("nan")]})


def test_a_store_is_a_regular_file(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious\n")
    (tmp_path / "link.part").symlink_to(target)
    os.mkfifo(tmp_path / "fifo.part")
    for name, problem in (("link.part", "is a symlink"), ("fifo.part", "is a FIFO")):
        for existing in ("resume", "overwrite"):
            with pytest.raises(ValueError, match=problem):
                RunStore(tmp_path / name, IDENTITY, existing=existing)
    assert target.read_text() == "precious\n"


def test_a_file_that_another_run_removed_is_not_locked(tmp_path, monkeypatch):
    """Run B opens the file; run A finishes, removes it and frees the lock; B gets the lock."""
    from grm_jax import run_store

    path = tmp_path / "store.part"
    first = RunStore(path, IDENTITY, key="line")
    lock = run_store.fcntl.flock

    def finish_first(*args):
        first.finish(tmp_path / "out", order=[])
        monkeypatch.setattr(run_store.fcntl, "flock", lock)
        return lock(*args)

    monkeypatch.setattr(run_store.fcntl, "flock", finish_first)
    with pytest.raises(BlockingIOError, match="another run"):
        RunStore(path, IDENTITY, key="line")
    assert not path.exists() and (tmp_path / "out").exists()


def test_what_a_killed_writer_left_is_removed(tmp_path, monkeypatch):
    """Killed while it wrote the output; the temporary file goes when the run is resumed."""
    from grm_jax import storage

    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(storage.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(storage.Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        with RunStore(tmp_path / "out.jsonl.part", IDENTITY, key="line") as store:
            store.append(1, RECORDS[1])
            store.finish(output)
    monkeypatch.undo()
    storage.write_atomic(tmp_path / "out.jsonl2", "another output")
    assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))
    with RunStore(tmp_path / "out.jsonl.part", IDENTITY, key="line") as store:
        store.finish(output)
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl2"]


def test_stray_files_in_a_folder_are_no_parts(tmp_path):
    folder = tmp_path / "folder"
    with RunStore(folder, IDENTITY, key="line") as store:
        store.append(1, RECORDS[1])
    (folder / "backup.jsonl").write_text("not a part\n")
    (folder / ".000001.jsonl.0.tmp").write_text("half a pa")
    with RunStore(folder, IDENTITY, key="line") as store:
        store.append(2, RECORDS[2])
    assert records_of(folder) == {i: RECORDS[i] for i in (1, 2)}
