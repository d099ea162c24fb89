"""Odd paths and tokenizers of `grm convert`: refused in one line, or the right ones written."""

import json

import numpy as np
import pytest
import toy_folders

from grm_jax.checkpoints import cli, load
from grm_jax.text import tokenizer as tokenizers


@pytest.fixture
def folder(tmp_path):
    files = toy_folders.weights("llama") | toy_folders.tokenizer_files("both")
    return toy_folders.write(tmp_path / "in", files)


@pytest.fixture
def convert(capsys):
    def run(*arguments):
        status = cli.main([*map(str, arguments), "--quiet"])
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["IN", ""], "DST is ''"),
        (["", "OUT"], "SRC is ''"),
        (["IN", "a\0b"], "DST is 'a\\x00b'"),
        (["IN", "gs://bucket/out"], "gs://bucket/out is not local"),
        (["gs://", "OUT"], "'gs://' names no bucket"),
        (["IN", "OUT", "--tokenizer", "/nonexistent"], "--tokenizer /nonexistent holds no"),
        (["IN", "OUT", "--tokenizer", "EMPTY"], "holds no tokenizer: give a folder"),
    ],
)
def test_odd_paths_are_one_line_and_nothing_is_written(
    arguments, message, folder, tmp_path, convert, monkeypatch
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    names = {"IN": folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    status, error = convert(*(names.get(argument, argument) for argument in arguments))
    assert status == 2 and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists() and not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
def test_another_tokenizer_replaces_the_one_of_the_source(as_file, folder, tmp_path, convert):
    other = toy_folders.write(tmp_path / "other", toy_folders.tokenizer_files("model"))
    status, error = convert(
        folder, tmp_path / "out", "--tokenizer", other / "tokenizer.model" if as_file else other
    )
    assert (status, error) == (0, "")
    assert not (tmp_path / "out/tokenizer.json").exists()
    assert (tmp_path / "out/tokenizer.model").exists()
    assert (tmp_path / "out/generation_config.json").exists()


def test_an_overwritten_folder_keeps_no_older_vocabulary(folder, tmp_path, convert):
    assert convert(folder, tmp_path / "out")[0] == 0
    (folder / "tokenizer.json").unlink()
    assert convert(folder, tmp_path / "out", "--overwrite") == (0, "")
    assert not (tmp_path / "out/tokenizer.json").exists()
    assert tokenizers.load(tmp_path / "out").encode("a") == tokenizers.load(folder).encode("a")


def test_tables_that_follow_from_the_config_are_no_weights(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = toy_folders.write(tmp_path / "in", toy_folders.weights("llama"))
    values = load_file(folder / "model.safetensors")
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file(values | table, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).cfg.num_layers == 3


@pytest.mark.parametrize("text", ["{}", "[]", '{"model": null}', '{"model": []}'])
def test_a_tokenizer_without_a_vocabulary_is_named(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match='no object "model", the vocabulary: download it again'):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize("entries", [{"x": {"content": "a"}}, {"1": "a"}, {"1": {}}, [], 3])
def test_damaged_lists_of_added_tokens_name_the_field(entries, tmp_path):
    toy_folders.write(tmp_path / "in", toy_folders.tokenizer_files("both"))
    settings = json.dumps({"added_tokens_decoder": entries})
    (tmp_path / "in/tokenizer_config.json").write_text(settings)
    if entries == []:  # as the absent list
        tokenizers.load(tmp_path / "in")
        return
    with pytest.raises(ValueError, match="added_tokens_decoder") as error:
        tokenizers.load(tmp_path / "in")
    assert len(str(error.value).splitlines()) == 1
