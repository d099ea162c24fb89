"""Tests loading and saving of Hugging Face folders: values, layers, shards, kinds of folders."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from toys import (
    BF16,
    GEMMA2,
    GEMMA3,
    LLAMA,
    QWEN2,
    QWEN3,
    SMOLLM2,
    D,
    F,
    H,
    K,
    N,
    V,
    raw,
    tensors,
    write_folder,
)

from grm_jax.checkpoints import load, open_checkpoint, save
from grm_jax.checkpoints.loading import flat_params
from grm_jax.sharding import make_mesh, state_shardings

CLASSIFIER = GEMMA2 | {"architectures": ["Gemma2ForSequenceClassification"], "num_labels": 1}
LLAMA_CLASSIFIER = LLAMA | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
CLASSIFIERS = [CLASSIFIER, LLAMA_CLASSIFIER] + [
    config | {"architectures": [f"{name}ForSequenceClassification"], "num_labels": 1}
    for name, config in {"Gemma3Text": GEMMA3, "Qwen2": QWEN2, "Qwen3": QWEN3}.items()
]
# As transformers 5 writes them: RoPE in one object.
NEW_LLAMA = {k: v for k, v in LLAMA.items() if not k.startswith("rope")} | {
    "rope_parameters": LLAMA["rope_scaling"] | {"rope_theta": LLAMA["rope_theta"]}
}
ROUND_TRIPS = [GEMMA2, GEMMA3, LLAMA, NEW_LLAMA, SMOLLM2, QWEN2, QWEN3, *CLASSIFIERS]


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("config", ROUND_TRIPS, ids=lambda config: config["architectures"][0])
def test_every_tensor_survives_a_round_trip_byte_for_byte(tmp_path, config, files):
    """Each tensor keeps its dtype."""
    source = write_folder(tmp_path / "in", config, tensors(config, norm_dtype=np.float32), files)
    save(
        load(source, dtype=None),
        tmp_path / "out",
        like=source,
        max_file_bytes=20_000 if files > 1 else 1 << 30,
    )
    written = len(list((tmp_path / "out").glob("*.safetensors")))
    assert written == 1 if files == 1 else written > 2
    assert raw(tmp_path / "out") == raw(source)
    cfg = open_checkpoint(tmp_path / "out").model_config()
    assert cfg == open_checkpoint(source).model_config().replace(name=cfg.name)


def test_an_output_head_of_its_own_is_required_where_the_config_unties_it(tmp_path):
    values = tensors(LLAMA)
    del values["lm_head.weight"]
    with pytest.raises(ValueError, match="missing: lm_head.weight"):
        load(write_folder(tmp_path, LLAMA, values))


def test_layers_are_stacked_in_the_order_of_the_pattern(tmp_path):
    """Layer i is unit i // 2 at position i % 2 of the pattern."""
    values = tensors(GEMMA2, dtype=np.float32)
    model = load(write_folder(tmp_path, GEMMA2, values), dtype="float32")
    q = values["model.layers.3.self_attn.q_proj.weight"].reshape(N, H, D)
    np.testing.assert_array_equal(model.units[1].attn.q_DxNxH[...][1], q.transpose(2, 0, 1))
    k = values["model.layers.2.self_attn.k_proj.weight"].reshape(K, H, D)
    np.testing.assert_array_equal(model.units[0].attn.k_DxKxH[...][1], k.transpose(2, 0, 1))
    o = values["model.layers.4.self_attn.o_proj.weight"].reshape(D, N, H)
    np.testing.assert_array_equal(model.tail[0].attn.o_NxHxD[...], o.transpose(1, 2, 0))
    np.testing.assert_array_equal(
        model.units[0].mlp.gate_DxF[...][0], values["model.layers.0.mlp.gate_proj.weight"].T
    )
    np.testing.assert_array_equal(
        model.tail[0].mlp.down_FxD[...], values["model.layers.4.mlp.down_proj.weight"].T
    )
    assert model.units[0].mlp.gate_DxF.shape == (2, D, F)
    assert model.embedder.table_VxD.shape == (V, D)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 2, 4), (2, 2, 2)])
def test_sharded_loading_gives_the_values_of_one_device(tmp_path, shape):
    source = write_folder(tmp_path, GEMMA3, tensors(GEMMA3))
    mesh = make_mesh(*shape)
    unsharded, sharded = load(source), load(source, mesh=mesh)
    state = nnx.state(sharded, nnx.Param)
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, mesh)), strict=True
    ):
        assert leaf.sharding == sharding
    jax.tree.map(np.testing.assert_array_equal, nnx.state(unsharded, nnx.Param), state)
    save(sharded, tmp_path / "out")
    assert raw(tmp_path / "out") == raw(tmp_path)


def test_float32_files_are_rounded_to_the_nearest_bfloat16(tmp_path):
    values = tensors(GEMMA2, dtype=np.float32)
    model = load(write_folder(tmp_path, GEMMA2, values), dtype="bfloat16")
    table = np.asarray(model.embedder.table_VxD[...])
    assert table.dtype == BF16
    np.testing.assert_array_equal(table, values["model.embed_tokens.weight"].astype(BF16))


def test_param_dtype_float32_keeps_bfloat16_compute(tmp_path):
    values = tensors(GEMMA2)
    model = load(write_folder(tmp_path, GEMMA2, values), param_dtype="float32", remat="full")
    cfg = model.cfg
    assert (cfg.dtype, cfg.param_dtype, cfg.remat) == ("bfloat16", "float32", "full")
    table = np.asarray(model.embedder.table_VxD[...])
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, values["model.embed_tokens.weight"].astype(np.float32))


@pytest.mark.parametrize(
    ("language", "vision"),
    [("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")],
)
def test_the_text_model_of_a_multimodal_checkpoint(tmp_path, language, vision):
    """Tensor names of two versions of transformers; the config is nested and partial."""
    values = tensors(GEMMA3)
    source = {name.replace("model.", language, 1): v for name, v in values.items()}
    source |= {
        vision + "encoder.layers.0.mlp.fc1.weight": np.ones((2, 2), BF16),
        "multi_modal_projector.mm_input_projection_weight": np.ones((2, 2), BF16),
    }
    text = {k: v for k, v in GEMMA3.items() if k != "architectures"}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {},
    }
    model = load(write_folder(tmp_path / "in", config, source), dtype=None)
    save(model, tmp_path / "out")
    written = raw(tmp_path / "out")
    assert set(written) == set(values)
    assert all(written[name][2] == value.tobytes() for name, value in values.items())
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [
        "Gemma3ForCausalLM"
    ]


def test_the_reward_head_is_loaded_added_or_dropped(tmp_path):
    values = tensors(CLASSIFIER)
    head = load(write_folder(tmp_path / "rm", CLASSIFIER, values))
    np.testing.assert_array_equal(head.score_D[...], values["score.weight"][0])
    assert not load(tmp_path / "rm", scalar_head=False).cfg.scalar_head
    base = write_folder(tmp_path / "lm", GEMMA2, tensors(GEMMA2))
    fresh = load(base, scalar_head=True)
    np.testing.assert_array_equal(fresh.score_D[...], np.zeros(D, BF16))
    assert fresh.cfg.scalar_head


def test_a_copy_of_the_tied_head_is_accepted_and_another_head_is_an_error(tmp_path):
    values = tensors(GEMMA2)
    table = values["model.embed_tokens.weight"]
    load(write_folder(tmp_path / "same", GEMMA2, values | {"lm_head.weight": table.copy()}))
    other = table.copy()
    other[-1, -1] += 1
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        load(write_folder(tmp_path / "other", GEMMA2, values | {"lm_head.weight": other}))


def test_padding_rows_of_the_embedding_are_not_saved(tmp_path):
    cfg = (
        open_checkpoint(write_folder(tmp_path / "lm", GEMMA2, tensors(GEMMA2)))
        .model_config()
        .replace(vocab_size=V - 16, vocab_pad=16)
    )
    save(load(tmp_path / "lm", cfg=cfg), tmp_path / "out")
    dtype, shape, data = raw(tmp_path / "out")["model.embed_tokens.weight"]
    assert (
        shape == (V - 16, D)
        and data == raw(tmp_path / "lm")["model.embed_tokens.weight"][2][: len(data)]
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == V - 16


@pytest.mark.parametrize(
    "name, saved_name", [("world.model", "tokenizer.model"), ("mine.json", "tokenizer.json")]
)
def test_a_tokenizer_file_of_any_name_is_saved_under_the_standard_name(tmp_path, name, saved_name):
    """Training exports such folders with the world's vocabulary."""
    (tmp_path / name).write_text("a vocabulary")
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2))
    save(load(source), tmp_path / "out", like=tmp_path / name)
    assert (tmp_path / "out" / saved_name).read_text() == "a vocabulary"


def test_tokenizer_files_and_token_ids_are_saved(tmp_path):
    source = write_folder(tmp_path / "in", LLAMA | {"eos_token_id": [1, 107]}, tensors(LLAMA))
    names = (
        "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja", "generation_config.json",
    )  # fmt: skip
    for name in (*names, "unrelated.txt"):
        (source / name).write_text(name)
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 27, 53]}')
    save(load(source), tmp_path / "out", like=source)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    assert not (tmp_path / "out/unrelated.txt").exists()
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == [1, 107]


def test_weights_are_overwritten_only_on_request(tmp_path):
    model = load(write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2)))
    save(model, tmp_path / "out", max_file_bytes=30_000)
    with pytest.raises(FileExistsError, match="already holds model-00001-of"):
        save(model, tmp_path / "out")
    save(model, tmp_path / "out", overwrite=True)
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert raw(tmp_path / "out") == raw(tmp_path / "in")


def test_progress_reaches_the_total_bytes(tmp_path):
    calls = []
    model = load(
        write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2)),
        progress=lambda *done: calls.append(done),
    )
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert calls[-1] == (total, total) and calls == sorted(calls)
    calls.clear()
    save(model, tmp_path / "out", progress=lambda *done: calls.append(done), max_file_bytes=30_000)
    assert calls[-1] == (total, total) and calls == sorted(calls)


def test_parameter_names_equal_those_of_the_tensor_map(tmp_path):
    from grm_jax.checkpoints.tensor_map import tensor_map

    model = load(write_folder(tmp_path, CLASSIFIER, tensors(CLASSIFIER)))
    assert set(flat_params(nnx.state(model, nnx.Param))) == set(tensor_map(model.cfg, "hf"))
    assert ml_dtypes.bfloat16 == model.score_D.dtype


def test_an_incomplete_copy_is_an_error(tmp_path):
    source = write_folder(tmp_path / "in", GEMMA2, tensors(GEMMA2), files=3)
    shutil.copytree(source, tmp_path / "cut")
    (tmp_path / "cut/model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names missing files: model-00002-of-00003"):
        load(tmp_path / "cut")
    file = source / "model-00001-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="incomplete or damaged"):
        load(source)
