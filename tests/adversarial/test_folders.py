"""Hostile and damaged model folders: each is loaded rightly or refused in one line."""

import json
import os
import struct

import numpy as np
import pytest
import toy_folders
from checkpoints import toys
from safetensors.numpy import save_file

from grm_jax.checkpoints import cli, load, open_checkpoint, save, saving
from grm_jax.checkpoints.hf_config import from_hf
from grm_jax.judging.loading import fingerprint
from grm_jax.judging.metadata import JudgeMetadata, MetaRMMetadata
from grm_jax.models import get_config

HEADER = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.fixture
def folder(tmp_path):
    return toy_folders.write(tmp_path / "toy", toy_folders.weights("gemma2"))


@pytest.fixture
def sharded(tmp_path):
    return toy_folders.write(tmp_path / "sharded", toy_folders.weights("gemma2", 3))


def refused(path, *parts):
    with pytest.raises((ValueError, OSError)) as error:
        load(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    for part in (path.name, *parts):
        assert part in message, message


def set_field(folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))


# ---------------------------------------------------------------- which file holds the weights


def test_a_whole_file_beside_an_index_and_its_shards_is_ambiguous(sharded):
    save_file({"new": np.ones(1, np.float32)}, sharded / "model.safetensors")
    refused(sharded, "model.safetensors and model.safetensors.index.json", "remove the older one")


def test_a_whole_file_beside_an_index_without_its_shards_loads(folder, sharded):
    index = "model.safetensors.index.json"
    (folder / index).write_bytes((sharded / index).read_bytes())
    assert load(folder).cfg.num_layers == 3


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": {}}', b'{"weight_map": [1]}', b"[]"])
def test_an_index_without_a_weight_map_is_named(folder, content):
    (folder / "model.safetensors.index.json").write_bytes(content)
    refused(folder, "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", 5])
def test_an_index_names_files_of_its_own_folder_only(folder, name):
    save_file(toys.tensors(toys.GEMMA2), folder.parent / "x.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, repr(name), "of the same folder")


def test_an_index_that_puts_a_tensor_into_the_wrong_file_is_refused(sharded):
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    index["weight_map"]["model.layers.0.mlp.up_proj.weight"] = "model-00001-of-00003.safetensors"
    file.write_text(json.dumps(index))
    refused(sharded, "which lacks it")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_not_supported_yet(folder, name):
    (folder / name).write_bytes(b"{}")
    refused(folder, name, "adapter", "merge it into the weights")


def test_the_same_tensor_in_two_files_is_refused(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {f"{i}": file.name for i, file in enumerate(files)}})
    )
    for file in files:
        save_file({f"{files.index(file)}": np.ones(1, np.float32), "same": np.ones(2)}, file)
    refused(sharded, "same is in", "remove one")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, toys.BF16])
def test_a_tied_head_of_another_dtype_with_equal_values_is_accepted(tmp_path, dtype):
    values = toys.tensors(toys.GEMMA2)
    head = values["model.embed_tokens.weight"].astype(dtype)
    load(toys.write_folder(tmp_path / "same", toys.GEMMA2, values | {"lm_head.weight": head}))
    head = head.copy()
    head[3, 3] += 1
    toys.write_folder(tmp_path / "toy", toys.GEMMA2, values | {"lm_head.weight": head})
    refused(tmp_path / "toy", "lm_head.weight differs from model.embed_tokens.weight")


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize("name", toy_folders.CONFIGS)
def test_toy_folders_of_every_family_load(tmp_path, name):
    for files in (1, 3):
        path = toy_folders.write(tmp_path / str(files), toy_folders.weights(name, files))
        assert load(path, dtype=None).cfg.vocab_size == toy_folders.ROWS


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_hidden_layers", 300_000_000),
        ("num_hidden_layers", 3.0),
        ("num_hidden_layers", "3"),
        ("num_hidden_layers", True),
        ("hidden_size", -32),
        ("hidden_size", None),
        ("hidden_size", 10**250),
        ("head_dim", 0),
        ("head_dim", 7),
        ("vocab_size", 2**40),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", None),
        ("query_pre_attn_scalar", -12),
        ("attn_logit_softcapping", 0),
        ("sliding_window", 0),
        ("sliding_window", [6]),
        ("rope_theta", 0.0),
        ("rope_theta", {"a": 1}),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"factor": 8.0}),
        ("rope_scaling", {"rope_type": "default", "factor": 8.0}),
        ("rope_parameters", [1]),
        ("layer_types", ["full_attention"]),
        ("layer_types", [[], {}, None]),
        ("layer_types", "full_attention"),
        ("architectures", "Gemma2ForCausalLM"),
        ("architectures", [["Gemma2ForCausalLM"]]),
        ("model_type", "llama"),
        ("model_type", 5),
        ("text_config", {"hidden_size": 8}),
        ("hidden_activation", "relu"),
        ("attention_bias", True),
        ("attention_bias", 0),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("is_causal", False),
        ("max_position_embeddings", 0),
    ],
)
def test_a_wrong_field_of_config_json_is_refused_by_name(folder, key, value):
    set_field(folder, key, value)
    message = "layer" if key == "layer_types" else key
    message = "rope_type" if key == "rope_scaling" and isinstance(value, dict) else message
    refused(folder, "architecture" if key == "architectures" else message)


def test_plain_families_without_a_head_width_need_divisible_heads(tmp_path):
    config = {k: v for k, v in toys.LLAMA.items() if k != "head_dim"}
    with pytest.raises(ValueError, match="hidden_size=32.*multiple of num_attention_heads=12"):
        from_hf(config | {"num_attention_heads": 12, "num_key_value_heads": 12})
    with pytest.raises(ValueError, match="layer type 'sliding_attention'"):
        from_hf(toys.QWEN2 | {"layer_types": ["sliding_attention"] * 3})
    with pytest.raises(ValueError, match="high_freq_factor=1.0"):
        rope = toys.LLAMA["rope_scaling"] | {"high_freq_factor": 1.0}
        from_hf(toys.LLAMA | {"rope_scaling": rope})


def test_absent_keys_have_the_defaults_of_their_class():
    for model_type, rope_theta in (("gemma2", 1e4), ("llama", 1e4), ("qwen3", 1e4)):
        cfg = from_hf({"model_type": model_type})
        assert cfg.pattern[-1].rope_theta == rope_theta
    assert from_hf({"model_type": "gemma2"}).pattern[0].window == 4096
    assert from_hf({"model_type": "llama"}).qkv_bias is False  # not a Gemma
    with pytest.raises(ValueError, match="names no architectures, and model_type='mamba'"):
        from_hf({"model_type": "mamba"})


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"a": NaN}', b"\xff\xfe{}", b"[" * 200_000, b'{"a": 1' + b"0" * 5000]
)
def test_a_damaged_config_json_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


def test_another_width_than_that_of_the_weights_is_one_line(folder):
    set_field(folder, "hidden_size", 64)
    refused(folder, "hidden_size=64", "model.norm.weight")


# ---------------------------------------------------------------- files that are none


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_only_regular_files_are_opened(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name} is a FIFO")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} is a folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder_are_refused(folder, name):
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")
    refused(folder, f"{name} is a link to", "outside its folder")
    (folder / name).unlink()
    (folder.parent / "outside").rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert load(folder).cfg.num_layers == 3


def test_links_of_the_hub_cache_lead_to_its_blobs(folder):
    """snapshots/COMMIT/FILE -> ../../blobs/HASH."""
    repo = folder.parent / "models--org--toy"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "abc").mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(repo / "blobs" / str(i))
        (repo / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{i}")
    assert load(repo / "snapshots" / "abc").cfg.num_layers == 3


@pytest.mark.parametrize(
    "name, content, field",
    [
        ("judge.json", {"template": 5}, "template=5"),
        ("judge.json", {"max_new_tokens": "64"}, "max_new_tokens='64'"),
        ("judge.json", {"max_new_tokens": 0}, "max_new_tokens=0"),
        ("judge.json", {"max_new_tokens": 10**30}, "max_new_tokens=1000"),
        ("judge.json", {"single": ["grm"]}, "single=['grm']"),
        ("meta_rm.json", {"likelihood": True}, "likelihood=True"),
        ("meta_rm.json", {"likelihood": 1e300}, "likelihood=1e+300"),
        ("meta_rm.json", [], "not a JSON object"),
    ],
)
def test_metadata_of_a_judge_is_refused_by_field(folder, name, content, field):
    (folder / name).write_text(json.dumps(content))
    kind = JudgeMetadata if name == "judge.json" else MetaRMMetadata
    with pytest.raises(ValueError) as error:
        kind.load(folder)
    message = str(error.value)
    assert f"{name} should hold" in message and field in message
    assert len(message.splitlines()) == 1


def test_metadata_is_no_special_file_and_no_link_out_of_the_folder(folder):
    os.mkfifo(folder / "judge.json")
    with pytest.raises(ValueError, match="judge.json should hold .*is a FIFO"):
        JudgeMetadata.load(folder)
    (folder / "judge.json").unlink()
    (folder / "judge.json").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="outside its folder"):
        JudgeMetadata.load(folder)


def test_the_fingerprint_reads_no_device_and_nothing_outside_the_folder(folder):
    first = fingerprint(folder)
    (folder / "endless").symlink_to("/dev/zero")
    (folder / "outside").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    assert fingerprint(folder) == first


def test_an_interrupted_overwrite_does_not_load(folder, tmp_path, monkeypatch):
    model = load(folder)
    save(model, tmp_path / "out")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(saving, "write_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        save(model, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "config.json").exists()
    refused(tmp_path / "out")


@pytest.mark.parametrize("size", ["nan", "inf", "-1", "0"])
def test_wrong_file_sizes_of_convert_are_one_line(folder, tmp_path, capsys, size):
    assert cli.main([str(folder), str(tmp_path / "out"), "--file_gb", size]) == 2
    error = capsys.readouterr().err
    assert "file_gb" in error and error.count("\n") == 1


def test_a_repository_with_two_copies_of_the_weights_is_ambiguous(hub, sharded):
    save_file({"new": np.ones(1, np.float32)}, sharded / "model.safetensors")
    hub.add("org/toy", sharded)
    with pytest.raises(ValueError, match="org/toy holds two copies of the weights"):
        load("org/toy")
    for file in sharded.glob("model-*"):
        file.unlink()
    (sharded / "model.safetensors").write_bytes(toy_folders.weights("gemma2")["model.safetensors"])
    hub.add("org/whole", sharded)
    assert load("org/whole").cfg.num_layers == 3
    (sharded / "adapter_config.json").write_text("{}")
    hub.add("org/adapter", sharded)
    with pytest.raises(ValueError, match="org/adapter holds an adapter"):
        load("org/adapter")


# ---------------------------------------------------------------- safetensors headers


def with_header(folder, header, body=b"1234"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    "header, body",
    [
        ({"a": HEADER, "b": HEADER}, b"1234"),  # overlap
        ({"a": HEADER | {"data_offsets": [-4, 0]}}, b"1234"),
        ({"a": HEADER | {"data_offsets": [4, 8]}}, b"12345678"),  # a gap
        ({"a": HEADER}, b"12345678"),  # bytes of no tensor
        ({"a": HEADER}, b"12"),
        ({"a": HEADER | {"dtype": "F64"}}, b"1234"),
        ({"a": HEADER | {"dtype": "F7"}}, b"1234"),
        ({"a": HEADER | {"shape": [2**62, 2**62]}}, b"1234"),
        ({"a": HEADER | {"shape": [-1]}}, b"1234"),
        ({"a": {"dtype": "F32"}}, b"1234"),
        ({"a": None}, b"1234"),
        (b"[" * 50_000, b""),
        (b'{"__metadata__": 5}', b""),
    ],
)
def test_headers_that_the_official_library_refuses(folder, header, body):
    with_header(folder, header, body)
    refused(folder, "model.safetensors is not a safetensors file")


def test_a_header_longer_than_the_file_is_refused(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"x" * 64)
    refused(folder, "model.safetensors is not a safetensors file")


def test_names_of_tensors_do_not_break_the_line(folder):
    with_header(folder, {"a\nb": HEADER})
    refused(folder, "unexpected: a b")


def test_sizes_are_compared_before_anything_is_allocated(tmp_path, monkeypatch):
    """A config that fits its bounds, of a model that would take terabytes."""
    from grm_jax.checkpoints import loading

    monkeypatch.setattr(loading, "abstract_model", lambda *_: pytest.fail("sizes come first"))
    config = toys.GEMMA2 | {"num_hidden_layers": 1000, "intermediate_size": 2**20}
    toys.write_folder(tmp_path / "toy", config, toys.tensors(toys.GEMMA2))
    refused(tmp_path / "toy", "missing: ", "model.layers.10.input_layernorm.weight")
    assert open_checkpoint(tmp_path / "toy").model_config().num_layers == 1000


def test_a_named_config_of_another_width_is_one_line(folder):
    with pytest.raises(ValueError) as error:
        load(folder, cfg=get_config("gemma2_2b"))
    message = str(error.value)
    assert "has 3 layers of width 32; gemma2_2b wants 26 of 2304" in message
    assert len(message.splitlines()) == 1
