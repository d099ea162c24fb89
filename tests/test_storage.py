"""Tests paths on disk and in buckets."""

import concurrent.futures
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from grm_jax import checksums, storage
from grm_jax.data.comparisons import read_rows


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
    with storage.replace_folder("gs://bucket/out") as local:
        (local / "deep").mkdir()
        (local / "deep" / "a.txt").write_text("1")
    assert (bucket / "out" / "deep" / "a.txt").read_text() == "1"
    storage.write_atomic(bucket / "new" / "b.json", "{}")
    assert [p.name for p in (bucket / "new").iterdir()] == ["b.json"]


SPLITS = {"train": "pairs", "test": "test"}


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
    (bucket / "test.jsonl").write_text(json.dumps({**pair, "query": "p"}) + "\n")
    files = {split: f"gs://bucket/{name}.jsonl" for split, name in SPLITS.items()}
    mixtures.add_comparisons("pairs", files)
    mixtures.add_examples("chats", {"train": "general.jsonl"})
    config.data.update(judging="pairs", held_out="pairs", general="chats", folder="gs://bucket")
    assert [sources.judging(config, split).at(0).id for split in (None, "test")] == ["one", "one"]
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


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "hf"
    for content in ("old", "new"):
        with storage.replace_folder(folder) as local:
            (local / f"{content}.txt").write_text(content)
        assert [p.name for p in folder.iterdir()] == [f"{content}.txt"]
    with pytest.raises(ZeroDivisionError), storage.replace_folder(folder) as local:
        (local / "half.txt").write_text("x")
        assert [p.name for p in folder.iterdir()] == ["new.txt"]
        raise ZeroDivisionError
    assert [p.name for p in folder.iterdir()] == ["new.txt"]
    for name in (".hf.partial", ".hf.old"):  # left by a process that was killed
        (tmp_path / name).mkdir()
        (tmp_path / name / "left.txt").write_text("x")
    with storage.replace_folder(folder) as local:
        assert not list(local.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_kill_between_the_two_renames_loses_no_folder(tmp_path):
    for name in (".hf.old", ".hf.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name[4:]}.txt").write_text("x")
    with pytest.raises(ZeroDivisionError), storage.replace_folder(tmp_path / "hf"):
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "hf").iterdir()] == ["old.txt"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    with storage.replace_folder(tmp_path / "hf") as local:
        (local / "old.txt").write_text("x")
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise OSError("full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="full"), storage.replace_folder(tmp_path / "hf") as local:
        (local / "new.txt").write_text("x")
    assert [p.name for p in (tmp_path / "hf").iterdir()] == ["old.txt"]


def test_downloads_from_a_bucket_are_deleted_when_the_process_ends(tmp_path):
    code = (
        "import pathlib; from grm_jax import storage; "
        "storage.is_remote = lambda _: True; "
        f"print(storage.local_copy(pathlib.Path({str(tmp_path)!r})))"
    )
    (tmp_path / "a.txt").write_text("x")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "grm_jax-" in run.stdout and not Path(run.stdout.strip()).exists()


def test_a_folder_of_a_bucket_loses_the_files_that_its_new_content_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_remote", lambda path: True)
    for content in ("old", "new"):
        with storage.replace_folder(tmp_path / "hf") as local:
            (local / "same.txt").write_text(content)
            (local / "deep").mkdir()
            (local / "deep" / f"{content}.txt").write_text(content)
    copy = storage.local_copy(tmp_path / "hf")
    assert copy != tmp_path / "hf" and (copy / "same.txt").read_text() == "new"
    assert [p.name for p in (copy / "deep").iterdir()] == ["new.txt"]


@pytest.mark.parametrize("name", ["a.npy", "b.json", checksums.FILE])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_checksums_notice_damage_of_any_file(tmp_path, name, damage):
    (tmp_path / "a.npy").write_bytes(b"0123456789")
    (tmp_path / "sub").mkdir()
    checksums.write(tmp_path, {"b.json": "{}\n"})
    (tmp_path / "b.json").write_text("{}\n")
    before = checksums.digest(tmp_path)
    assert checksums.problem(tmp_path) == ""
    file = tmp_path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    if damage == "missing":
        file.unlink()
    problem = checksums.problem(tmp_path)
    if (name, damage) == (checksums.FILE, "missing"):  # as in folders of earlier versions
        assert problem == "" and checksums.digest(tmp_path) == before
    else:
        assert problem.endswith(("is damaged", "is missing"))
