"""Tests that invalid checkpoints are rejected before loading, with all faults in one error."""

from types import SimpleNamespace

import numpy as np
import pytest
from toys import BF16, GEMMA2, GEMMA3, D, H, N, tensors, write_folder

from grm_jax.checkpoints import load
from grm_jax.checkpoints.loading import check_names
from grm_jax.checkpoints.tensor_map import axis_sizes, disk_shape, tensor_map
from grm_jax.models import get_config
from grm_jax.sharding import make_mesh


def test_one_error_lists_all_wrong_names_and_shapes(tmp_path):
    values = tensors(GEMMA2)
    del values["model.norm.weight"], values["model.layers.2.mlp.up_proj.weight"]
    values["model.layers.5.mlp.up_proj.weight"] = np.ones((1, 1), BF16)
    values["model.layers.0.self_attn.q_proj.weight"] = np.ones((N * H, D + 1), BF16)
    with pytest.raises(ValueError) as error:
        load(write_folder(tmp_path, GEMMA2, values))
    message = str(error.value)
    assert "missing: model.layers.2.mlp.up_proj.weight, model.norm.weight" in message
    assert "unexpected: model.layers.5.mlp.up_proj.weight" in message
    assert f"model.layers.0.self_attn.q_proj.weight is (64, {D + 1}), not (64, {D})" in message


@pytest.mark.parametrize("format", ["hf", "dm", "gguf"])
def test_weights_of_another_size_are_an_error_of_two_lines(format):
    """The names of each format tell the number of layers and the width."""
    cfg = get_config("tiny_gemma2")
    large, small = get_config("gemma2_2b"), tensor_map(cfg, format)
    reader = SimpleNamespace(path="toy", format=format, tensors={})
    for source in small.values():
        for tensor in source.tensors:
            shape = disk_shape(tensor, axis_sizes(cfg))
            reader.tensors[tensor.name] = SimpleNamespace(shape=shape)
    check_names(reader, cfg, small)
    with pytest.raises(ValueError) as error:
        check_names(reader, large, tensor_map(large, format))
    assert str(error.value) == (
        f"toy has {cfg.num_layers} layers of width {cfg.d_model}; gemma2_2b wants 26 of 2304.\n"
        "Give the weights of gemma2_2b, or name the model that these weights are of."
    )


def test_a_long_list_of_names_is_cut(tmp_path):
    values = tensors(GEMMA2)
    missing = sorted(name for name in values if ".mlp." in name or "self_attn" in name)
    for name in missing:
        del values[name]
    with pytest.raises(ValueError) as error:
        load(write_folder(tmp_path, GEMMA2, values))
    names, _, rest = str(error.value).partition("missing: ")[2].rpartition(", ")
    assert names.split(", ") == missing[:6] and rest == f"and {len(missing) - 6} more"


def test_a_gemma3_checkpoint_does_not_load_as_gemma2(tmp_path):
    with pytest.raises(ValueError, match="unexpected: .*layers.0.self_attn.k_norm.weight"):
        load(write_folder(tmp_path, GEMMA2 | {"num_hidden_layers": 8}, tensors(GEMMA3)))


def test_a_mesh_that_does_not_divide_the_model_is_an_error(tmp_path):
    source = write_folder(tmp_path, GEMMA2, {})
    message = "tensor=8 does not divide the 4 KV heads of .*: use 1, 2 or 4"
    with pytest.raises(ValueError, match=message):
        load(source, mesh=make_mesh(tensor=8))


def test_float16_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="float16 overflows"):
        load(tmp_path, dtype="float16")


def test_another_dtype_or_mesh_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="dtype 'fp16' is unknown: use bfloat16 or float32"):
        load(tmp_path, dtype="fp16")
    with pytest.raises(TypeError, match="mesh is the str 'fsdp=1': pass grm_jax.sharding.make_me"):
        load(tmp_path, mesh="fsdp=1")


def test_integer_weights_are_an_error(tmp_path):
    values = tensors(GEMMA2) | {"model.norm.weight": np.ones(D, np.int8)}
    with pytest.raises(ValueError, match="model.norm.weight has dtype I8: convert"):
        load(write_folder(tmp_path, GEMMA2, values))


def test_paths_without_a_checkpoint_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give a Hugging Face folder"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="is not a supported checkpoint"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        load(tmp_path)
    for i in "ab":
        (tmp_path / f"{i}.safetensors").write_bytes(b"")
    message = "2 safetensors files and no model.safetensors.index.json"
    with pytest.raises(FileNotFoundError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00not json and more"]
)
def test_malformed_safetensors_files_are_an_error(tmp_path, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(tmp_path)
