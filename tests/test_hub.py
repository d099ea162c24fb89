"""Tests models by hub name, against the stand-in hub of tests/hub_server.py."""

import json
import types

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


# ---------------------------------------------------------------- which files


def test_sharded_weights_are_those_of_the_index(hub):
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    shards = dict.fromkeys(index["weight_map"].values(), WEIGHTS)
    hub.add("org/big", {"config.json": b"{}", "consolidated.safetensors": b"x"} | shards
            | {hubs.INDEX: json.dumps(index).encode()})  # fmt: skip
    hub.page = 2  # the listing comes in pages
    assert set(names(storage.fetch("org/big"))) == {"config.json", hubs.INDEX, *shards}
    hub.add(
        "org/bad",
        {hubs.INDEX: b'{"weight_map": {"a": "pytorch_model.bin"}}', "pytorch_model.bin": b"p"},
    )
    with pytest.raises(FileNotFoundError, match="names pytorch_model.bin, no safetensors file"):
        storage.fetch("org/bad")


def test_one_gguf_file_is_found_and_one_of_several_is_named(hub):
    hub.add("org/one-GGUF", {"m-Q8_0.gguf": WEIGHTS, "README.md": b""})
    hub.add("org/two-GGUF", {"m-Q8_0.gguf": WEIGHTS, "m-Q4_0.gguf": b"4"})
    assert names(storage.fetch("org/one-GGUF")) == ["m-Q8_0.gguf"]
    with pytest.raises(
        FileNotFoundError, match="has 2 .gguf files: name one, such as org/two-GGUF/m-Q4"
    ):
        storage.fetch("org/two-GGUF")
    assert storage.fetch("org/two-GGUF/m-Q4_0.gguf").read_bytes() == b"4"
    assert storage.fetch("org/two-GGUF@main/m-Q8_0.gguf").read_bytes() == WEIGHTS
    with pytest.raises(FileNotFoundError, match="org/two-GGUF has no file x.gguf at main"):
        storage.fetch("org/two-GGUF/x.gguf")


def test_pickles_are_never_downloaded(hub):
    hub.add(
        "org/old", {"config.json": b"{}", "pytorch_model.bin": b"p", "flax_model.msgpack": b"p"}
    )
    with pytest.raises(
        FileNotFoundError, match="neither safetensors nor a .gguf file; .* not opened"
    ):
        storage.fetch("org/old")
    assert hub.downloads() == ["config.json"]


@pytest.mark.parametrize(
    "text",
    [
        "model",
        "data/pairs.jsonl.gz",
        "a/b/c",
        "/org/model",
        "./org/model",
        "org/model@../../x",
        "a/tokenizer.model",
    ],
)
def test_other_paths_are_no_names(text):
    assert hubs.parse(text) is None


# ---------------------------------------------------------------- interruptions and errors


def test_complete_files_of_an_interrupted_download_are_kept(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    shards = {"model-1.safetensors": WEIGHTS, "model-2.safetensors": WEIGHTS[::-1]}
    index = {"weight_map": dict(zip("ab", shards))}
    hub.add("org/big", {**shards, hubs.INDEX: json.dumps(index).encode()})
    hub.broken.add("model-2.safetensors")
    stopped = r"^org/big: the download stopped \(.*\): run the command again, which continues it$"
    with pytest.raises(FileNotFoundError, match=stopped) as caught:
        storage.fetch("org/big")
    assert "\n" not in str(caught.value)
    hub.broken.clear()
    before = len(hub.downloads())
    folder = storage.fetch("org/big")
    assert hub.downloads()[before:] == ["model-2.safetensors"]
    assert {name: (folder / name).read_bytes() for name in shards} == shards


def test_offline_without_all_files_is_one_line(hub, monkeypatch):
    hub.add("org/model", FILES)
    storage.fetch("org/model", weights=False)
    hubs._listing.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert storage.fetch("org/model", weights=False)
    for name in ("org/model", "org/other"):
        with pytest.raises(
            FileNotFoundError, match=f"^{name}: HF_HUB_OFFLINE is set .* run `hf download {name}"
        ):
            storage.fetch(name)


def test_no_network_uses_the_cache_or_says_so(hub, monkeypatch):
    commit = hub.add("org/model", FILES)
    storage.fetch("org/model")
    hubs._listing.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert storage.fetch("org/model").name == commit
    assert hubs.pinned(hubs.parse("org/model")) == f"org/model@{commit}"
    with pytest.raises(
        FileNotFoundError, match="^org/other is no local path, http://127.0.0.1:9 is not"
    ):
        storage.fetch("org/other")


@pytest.mark.parametrize(
    "name, token, message",
    [
        ("org/model@v9", None, "^org/model has no revision 'v9'"),
        ("org/none", "hf_other", "^org/none is neither a local path nor a model on"),
        ("org/model", "hf_expired", r"refuses your token \(401\): run `hf auth login`"),
    ],
)
def test_wrong_names_revisions_and_tokens_are_one_line(hub, monkeypatch, name, token, message):
    hub.add("org/model", FILES)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        storage.fetch(name)
    assert "\n" not in str(caught.value)


def test_the_token_is_not_sent_to_the_host_of_large_files(hub, monkeypatch):
    hub.add("org/model", FILES, gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    storage.fetch("org/model")
    assert hub.cdn_tokens == {None}


def test_a_disk_that_is_too_small_is_found_before_the_download(hub, monkeypatch):
    hub.add("org/model", FILES)
    monkeypatch.setattr(hubs.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100))
    with pytest.raises(OSError, match="org/model needs 0.0 GB in .* set HF_HOME to a folder"):
        storage.fetch("org/model")
    assert "model.safetensors" not in hub.downloads()
