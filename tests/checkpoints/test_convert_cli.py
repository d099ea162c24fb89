"""grm convert, as called from a shell."""

import json

import numpy as np
import pytest
from toys import GEMMA2, raw, tensors, write_folder

from grm_jax.checkpoints import cli
from grm_jax.cli import main


def test_folder_to_folder_keeps_every_byte(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2), files=2)
    (source / "tokenizer.model").write_bytes(b"tokenizer")
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert raw(tmp_path / "out") == raw(source)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == b"tokenizer"
    shown = capsys.readouterr().err
    assert "loading" in shown and "saving" in shown and "parameters" in shown


def test_dtype_file_size_and_tokenizer_from_elsewhere(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2, dtype=np.float32))
    (tmp_path / "tokenizer.model").write_bytes(b"tokenizer")
    options = [
        "--dtype",
        "bfloat16",
        "--file-gb",
        "3e-5",
        "--tokenizer",
        str(tmp_path / "tokenizer.model"),
        "--quiet",
    ]
    assert cli.main([str(source), str(tmp_path / "out"), *options]) == 0
    written = raw(tmp_path / "out")
    assert {dtype for dtype, _, _ in written.values()} == {"BF16"}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert (
        json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"].keys()
        == written.keys()
    )
    assert (tmp_path / "out/tokenizer.model").exists() and capsys.readouterr().err == ""


def test_a_folder_without_a_tokenizer_is_said_to_be_one(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    assert cli.main([str(source), str(tmp_path / "out"), "--quiet"]) == 0
    assert "has no tokenizer:" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--config", "gemma9"]])
def test_reasons_go_to_stderr_with_status_1(tmp_path, capsys, options):
    source = (
        tmp_path / "absent"
        if not options
        else write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    )
    assert cli.main([str(source), str(tmp_path / "out"), "--quiet", *options]) == 1
    assert (
        "does not exist" if not options else "unknown model 'gemma9'"
    ) in capsys.readouterr().err


def test_a_folder_is_not_converted_onto_itself(tmp_path, capsys):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    assert cli.main([str(source), str(source), "--overwrite", "--quiet"]) == 1
    assert "both the source and the destination" in capsys.readouterr().err
    assert raw(source)
