"""Tests models by hub name, against the stand-in hub of tests/hub_server.py."""

import pytest
from huggingface_hub import constants

from grm_jax import hub as hubs, storage

WEIGHTS = bytes(range(256)) * 8
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": 1}',
    "model.safetensors": WEIGHTS,
    "README.md": b"#",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"other",
}
NEEDED = ["config.json", "model.safetensors", "tokenizer.json"]


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_only_the_files_that_are_needed_are_downloaded(hub):
    commit = hub.add("org/model", FILES)
    tokenizer = storage.fetch("org/model", weights=False)
    assert names(tokenizer) == ["config.json", "tokenizer.json"]
    folder = storage.fetch("org/model")
    assert folder == tokenizer and folder.name == commit and names(folder) == NEEDED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(hub.downloads()) == NEEDED
    assert storage.fetch("org/model") == folder and len(hub.downloads()) == 3


def test_a_local_folder_wins_over_a_name(hub, tmp_path, monkeypatch):
    hub.add("org/model", FILES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert str(storage.fetch("org/model")) == "org/model" and not hub.requests


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub):
    first = hub.add("org/model", FILES, revision="v1")
    second = hub.add("org/model", FILES | {"config.json": b'{"a": 1}'})
    assert storage.fetch("org/model@v1").name == storage.fetch(f"org/model@{first}").name == first
    assert storage.fetch("org/model").name == second
    assert hubs.pinned(hubs.parse("org/model")) == f"org/model@{second}"


def test_a_connection_that_is_cut_is_resumed_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.add("org/model", FILES)
    hub.cut["model.safetensors"] = 1000
    folder = storage.fetch("org/model")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [range for _, path, range in hub.requests if path.endswith("/model.safetensors")]
    assert ranges[-1] == "bytes=1000-"


def test_offline_with_a_full_cache_works(hub, monkeypatch):
    commit = hub.add("org/model", FILES)
    storage.fetch("org/model")
    hubs._listing.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert storage.fetch("org/model").name == commit and len(hub.requests) == count


@pytest.mark.parametrize("token, remedy", [(None, "accept its terms at"), ("hf_other", "request")])
def test_a_gated_model_names_its_page(hub, monkeypatch, token, remedy):
    hub.add("org/model", FILES, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileNotFoundError, match="^org/model is gated.*") as caught:
        storage.fetch("org/model")
    message = str(caught.value)
    assert remedy in message and "https://huggingface.co/org/model" in message
    assert "\n" not in message
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert names(storage.fetch("org/model")) == NEEDED


def test_a_name_that_does_not_exist_is_one_line(hub):
    with pytest.raises(FileNotFoundError, match="^org/none is neither a local path nor a model on"):
        storage.fetch("org/none")
