"""Tests that invalid checkpoints are rejected before loading, with all faults in one error."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from toys import BF16, GEMMA2, GEMMA3, LLAMA, QWEN2, D, H, N, raw, tensors, write_folder

from grm_jax.checkpoints import load, open_checkpoint, save
from grm_jax.checkpoints.hf_config import from_hf
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


def test_a_classifier_without_an_output_head_gives_no_language_model(tmp_path):
    config = LLAMA | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    folder = write_folder(tmp_path / "rm", config, tensors(config))
    assert load(folder).cfg.scalar_head
    with pytest.raises(ValueError, match="scalar_head=False leaves no language model"):
        load(folder, scalar_head=False)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, np.dtype("float32")])
def test_a_dtype_may_be_given_as_such(tmp_path, dtype):
    folder = write_folder(tmp_path, GEMMA2, tensors(GEMMA2))
    model = load(folder, dtype=dtype)
    assert model.cfg.dtype == jnp.dtype(dtype).name == model.embedder.table_VxD.dtype
    with pytest.raises(ValueError, match="float16 overflows"):
        load(folder, dtype=jnp.float16)


def test_saving_needs_a_local_folder_and_a_tokenizer_that_is_there(tmp_path):
    model = load(write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2)))
    with pytest.raises(ValueError, match="gs://bucket/x is not local: save to a local folder"):
        save(model, "gs://bucket/x")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(model, tmp_path / "out", like=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no tokenizer and no config.json"):
        save(model, tmp_path / "out", like=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_a_model_that_config_json_cannot_describe_replaces_nothing(tmp_path):
    config = GEMMA2 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    model = load(write_folder(tmp_path / "in", config, tensors(config)))
    old = write_folder(tmp_path / "old", GEMMA2, tensors(GEMMA2))
    before = raw(old)
    with pytest.raises(ValueError, match="cannot be written"):
        save(model, old, overwrite=True)
    assert raw(old) == before and (old / "config.json").exists()


def test_a_gemma_without_windows_is_read_back(tmp_path):
    config = GEMMA2 | {"layer_types": ["full_attention"] * 5}
    model = load(write_folder(tmp_path / "in", config, tensors(config)))
    save(model, tmp_path / "out")
    assert load(tmp_path / "out").cfg.pattern == model.cfg.pattern


def test_null_key_value_heads_are_as_many_as_heads(tmp_path):
    cfg = from_hf(QWEN2 | {"num_key_value_heads": None}, "toy", "toy")
    assert cfg.num_kv_heads == cfg.num_heads == N


def test_int8_weights_load_with_a_named_config(tmp_path):
    folder = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    save(load(folder, quantize="int8"), tmp_path / "int8")
    cfg = open_checkpoint(folder).model_config()
    assert load(tmp_path / "int8", cfg=cfg).cfg.quantize == "int8"
    assert load(folder, cfg=cfg.replace(quantize="int8")).cfg.quantize == "int8"
