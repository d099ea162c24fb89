"""Tests `grm convert`."""

import json

import numpy as np
import pytest
from toys import GEMMA2, raw, tensors, write_folder

from grm_jax.checkpoints import cli
from grm_jax.cli import main


def test_converting_a_folder_preserves_every_byte(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2), files=2)
    files = {"tokenizer.model": b"tokenizer", "judge.json": b"{}", "meta_rm.json": b"{ }"}
    for name, content in files.items():
        (source / name).write_bytes(content)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert raw(tmp_path / "out") == raw(source)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    log = capsys.readouterr().err
    assert "loading" in log and "saving" in log and "parameters" in log


def test_a_hub_name_is_converted_without_its_pickles(hub, tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2), files=2)
    (source / "tokenizer.model").write_bytes(b"tokenizer")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "judge.json").write_text("{}")
    hub.add("org/model", source)
    assert main(["convert", "org/model", str(tmp_path / "out"), "--quiet"]) == 0
    assert raw(tmp_path / "out") == raw(source) and capsys.readouterr().err == ""
    assert (tmp_path / "out/tokenizer.model").read_bytes() == b"tokenizer"
    assert "pytorch_model.bin" not in hub.downloads()
    assert (tmp_path / "out/judge.json").exists()
    assert main(["convert", "org/no-model", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "org/no-model is neither a local path nor a model on" in error
    assert error.count("\n") == 1


def test_options_dtype_file_gb_and_tokenizer(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2, dtype=np.float32))
    (tmp_path / "tokenizer.model").write_bytes(b"tokenizer")
    options = ["--dtype", "bfloat16", "--file-gb", "3e-5", "--quiet"]
    options += ["--tokenizer", str(tmp_path / "tokenizer.model")]
    assert cli.main([str(source), str(tmp_path / "out"), *options]) == 0
    written = raw(tmp_path / "out")
    assert {dtype for dtype, _, _ in written.values()} == {"BF16"}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == written.keys()
    assert (tmp_path / "out/tokenizer.model").exists() and capsys.readouterr().err == ""


def test_a_folder_without_a_tokenizer_is_a_warning(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    assert cli.main([str(source), str(tmp_path / "out"), "--quiet"]) == 0
    assert "has no tokenizer:" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--config", "gemma9"]])
def test_errors_go_to_stderr_with_status_2(tmp_path, capsys, options):
    source, message = tmp_path / "absent", "does not exist"
    if options:
        source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
        message = "unknown model 'gemma9'"
    assert cli.main([str(source), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "loading" not in error and error.count("\n") == 1


def test_weights_of_the_destination_stay_without_overwrite(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    target = write_folder(tmp_path / "out", GEMMA2, tensors(GEMMA2))
    assert cli.main([str(source), str(target), "--quiet"]) == 2
    assert "or replace them with --overwrite" in capsys.readouterr().err


def test_source_and_destination_must_differ(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    assert cli.main([str(source), str(source), "--overwrite", "--quiet"]) == 2
    assert "both the source and the destination" in capsys.readouterr().err
    assert raw(source)


def test_templates_of_a_folder_are_copied_with_those_that_they_include(tmp_path):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    names = ("prompt_mine.jinja", "intro.jinja", "prompt_utils.py")
    for name in names:
        (source / name).write_text(name)
    assert cli.main([str(source), str(tmp_path / "out"), "--quiet"]) == 0
    assert [(tmp_path / "out" / name).exists() for name in names] == [True, True, False]
