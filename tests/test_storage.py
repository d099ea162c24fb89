"""Tests paths on disk and in buckets."""

import concurrent.futures
import json
import os
import platform
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grm_jax import storage
from grm_jax.data.comparisons import read_rows

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A local folder used as gs://bucket."""
    folder = storage.epath.Path(tmp_path / "bucket")
    monkeypatch.setattr(
        storage, "as_path", lambda path: folder / str(path).removeprefix("gs://bucket/")
    )
    storage._fetch_from_bucket.cache_clear()
    yield folder
    storage._fetch_from_bucket.cache_clear()


def test_a_bucket_path_is_downloaded_once(bucket):
    (bucket / "model" / "deep").mkdir(parents=True)
    (bucket / "model" / "config.json").write_text("{}")
    (bucket / "model" / "deep" / "weights").write_bytes(b"1234")
    local = storage.fetch("gs://bucket/model")
    assert (local / "config.json").read_text() == "{}"
    assert (local / "deep" / "weights").read_bytes() == b"1234"
    assert storage.fetch("gs://bucket/model") == local
    assert storage.fetch("gs://bucket/model/config.json").read_text() == "{}"
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing does not exist"):
        storage.fetch("gs://bucket/nothing")


def test_fetch_returns_local_paths_unchanged(tmp_path):
    assert storage.fetch(str(tmp_path)) == tmp_path


def test_writing_uploads_a_folder_without_temporary_files(bucket):
    with storage.writing("gs://bucket/out") as local:
        (local / "deep").mkdir()
        (local / "deep" / "a.txt").write_text("1")
    assert (bucket / "out" / "deep" / "a.txt").read_text() == "1"
    storage.write_atomic(bucket / "new" / "b.json", "{}")
    assert [p.name for p in (bucket / "new").iterdir()] == ["b.json"]


def test_training_reads_data_samples_and_weights_from_a_bucket(bucket, monkeypatch):
    from experiments import spct_tiny
    from grm_jax import checkpoints
    from grm_jax.data import mixtures
    from grm_jax.training import rft, sources

    bucket.mkdir()
    pair = {"id": "one", "query": "q", "responses": ["x", "y"], "label": 1}
    (bucket / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (bucket / "general.jsonl").write_text(json.dumps({"query": "q", "answer": "a"}) + "\n")
    (bucket / "samples.jsonl").write_text(json.dumps({"id": "one", "text": "t"}) + "\n")
    config = spct_tiny.get_config()
    mixtures.add_comparisons("pairs", dict.fromkeys(("train", "test"), "gs://bucket/pairs.jsonl"))
    mixtures.add_examples("chats", {"train": "general.jsonl"})
    config.data.update(judging="pairs", held_out="pairs", general="chats", folder="gs://bucket")
    assert [sources.judging(config, split).at(0).id for split in ("train", "test")] == [
        "one",
        "one",
    ]
    assert [example.completion for example in sources.general(config)] == ["a"]
    config.rft.sampler, config.rft.sampling = "file", {"path": "gs://bucket/samples.jsonl"}
    assert callable(rft.make_sampler(config, None, None))

    def load(path, mesh):
        raise FileNotFoundError(path)

    monkeypatch.setattr(checkpoints, "load", load)
    (bucket / "weights").mkdir()
    config.rft.sampler = "model"
    config.rft.sampling = {"path": "gs://bucket/weights", "max_new_tokens": 8}
    with pytest.raises(FileNotFoundError, match="^[^:]*bucket/weights$"):
        rft.make_sampler(config, None, None)


@pytest.mark.parametrize(
    "path, what, answer",
    [
        ("https://huggingface.co/org/model/tree/main", "model", "give org/model$"),
        ("hf://org/model", "model", "give org/model$"),
        ("hf://org/set", "data", "give hf://datasets/org/set$"),
        ("https://huggingface.co/datasets/org/set", "data", "give hf://datasets/org/set$"),
        ("https://huggingface.co/datasets/org/set", "model", "is a data set: give a model"),
        ("s3://b/x", "data", "s3:// is not supported: give a local path, gs:.* or hf://datasets/"),
        ("https://a.org/x", "path", "https:// is not supported: give a local path, gs://BUCKET"),
    ],
)
def test_an_address_of_another_scheme_is_answered_with_what_is_accepted(path, what, answer):
    with pytest.raises(ValueError, match=answer):
        storage.check_scheme(path, what)
    if what == "model":
        from grm_jax import Judge

        with pytest.raises(ValueError, match=answer):
            storage.fetch(path)
        with pytest.raises(ValueError, match=answer):
            Judge.load(path)
    if what == "data":
        with pytest.raises(ValueError, match=answer):
            list(read_rows(path))
    with pytest.raises(ValueError, match=f"^{path}: "):
        storage.as_path(path)


def test_a_model_in_a_bucket_has_the_name_of_its_copy_here(bucket, tmp_path):
    from grm_jax.judging.loading import model_name

    for folder in (bucket / "rl" / "hf", storage.epath.Path(tmp_path / "rl" / "hf")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert model_name("gs://bucket/rl/hf").split("@")[1] == model_name(tmp_path / "rl/hf")[-12:]
    assert model_name("gs://bucket/rl/hf").startswith("bucket/rl@")


# ---------------------------------------------------------------- atomic writes


def test_write_atomic_replaces_text_and_bytes_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    storage.write_atomic(path, "old")
    storage.write_atomic(path, "é\ud800")
    assert path.read_text() == "é\ufffd"
    storage.write_atomic(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_write_that_fails_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), storage.open_atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_write_atomic_follows_a_symlink_and_keeps_the_mode(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    storage.write_atomic(link, "first")  # the target does not exist yet
    target.chmod(0o640)
    storage.write_atomic(link, "second")
    assert link.is_symlink() and target.read_text() == "second"
    assert target.stat().st_mode & 0o777 == 0o640


def test_write_atomic_refuses_special_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path, kind in [
        (tmp_path / "fifo", "a FIFO"),
        (tmp_path / "link", "a FIFO"),
        (tmp_path, "a folder"),
        ("/dev/null", "a device"),
    ]:
        with pytest.raises(ValueError, match=f"{path} is {kind}, not a regular file"):
            storage.write_atomic(path, "x")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_writers_of_one_file_at_once_never_mix(tmp_path):
    path = tmp_path / "a.txt"
    texts = [str(i) * 100_000 for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: storage.write_atomic(path, text), texts * 4))
    assert path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


HOLD = """
import sys, time
from grm_jax import storage
with storage.locked(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_holds_is_refused_with_host_and_pid(tmp_path, other):
    start = time.monotonic()
    where = f"{tmp_path}/run is in use: training on host {platform.node()}, pid {other.pid}, since"
    with pytest.raises(BlockingIOError, match=where), storage.locked(tmp_path / "run"):
        raise AssertionError("two processes hold the folder")
    assert time.monotonic() - start < 2


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / storage.HOLDER).exists()  # names a process that is gone
    with storage.locked(tmp_path / "run"):
        with pytest.raises(BlockingIOError, match=f"run on host .* pid {os.getpid()}"):
            with storage.locked(tmp_path / "run"):
                raise AssertionError
    assert not list((tmp_path / "run").iterdir())
    with storage.locked(tmp_path / "run"):
        pass


def test_without_locks_of_the_file_system_a_file_names_the_process(tmp_path, monkeypatch):
    import filelock

    monkeypatch.setattr(storage.filelock, "FileLock", filelock.SoftFileLock)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / storage.LOCK).write_text(f"{gone.pid}\n{platform.node()}\n")
    with storage.locked(tmp_path):
        pass
    (tmp_path / storage.LOCK).write_text("7\nanother-host\n")
    with pytest.raises(BlockingIOError, match=f"if that process is gone, remove {tmp_path}/.lock"):
        with storage.locked(tmp_path):
            raise AssertionError


def holder(name):
    return {"what": "training", "host": name, "pid": 1, "since": "now", "token": name}


def test_a_bucket_is_held_while_its_lock_is_renewed(tmp_path):
    folder = storage.epath.Path(tmp_path)
    with storage._leased(folder, holder("a"), 0.1):
        with pytest.raises(storage.InUse, match="training on host a, pid 1"):
            with storage._leased(folder, holder("b"), 0.1):
                raise AssertionError
        assert json.loads((tmp_path / storage.HOLDER).read_text())["token"] == "a"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [json.dumps(holder("crashed")), '{"host": "cut off'])
def test_a_lock_of_a_bucket_that_is_not_renewed_is_stale(tmp_path, content):
    (tmp_path / storage.HOLDER).write_text(content)
    start = time.monotonic()
    with storage._leased(storage.epath.Path(tmp_path), holder("b"), 0.1):
        assert json.loads((tmp_path / storage.HOLDER).read_text())["host"] == "b"
    assert 0.3 <= time.monotonic() - start < 3


def test_a_process_whose_lock_of_a_bucket_was_taken_over_ends(tmp_path, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(storage, "_leave", lambda folder: left.set())
    with storage._leased(storage.epath.Path(tmp_path), holder("a"), 0.05):
        (tmp_path / storage.HOLDER).write_text(json.dumps(holder("b")))
        assert left.wait(5)
    assert json.loads((tmp_path / storage.HOLDER).read_text())["host"] == "b"
