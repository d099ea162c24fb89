"""Tests GGUF files saved by the `gguf` package: values, norms, config and tokenizer."""

import json

import gguf
import numpy as np
import pytest
import sentencepiece as spm
from gguf import GGMLQuantizationType as Q
from gguf_toys import add_sentencepiece_tokenizer, write
from ml_collections import ConfigDict
from toys import GEMMA2, GEMMA3, K, tensors

from grm_jax.checkpoints import copy_tokenizer, load, open_checkpoint
from grm_jax.models import LayerSpec
from grm_jax.text import tokenizer
from grm_jax.training import sources


@pytest.mark.parametrize("quantization", [None, Q.Q8_0, Q.BF16])
@pytest.mark.parametrize("config", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_values_equal_those_saved(tmp_path, config, quantization):
    values = tensors(config, dtype=np.float32)
    model = load(write(tmp_path / "toy.gguf", config, values, quantization), dtype="float32")

    def stored(name):
        value = values[name]
        return (
            value
            if quantization is None
            else gguf.dequantize(gguf.quantize(value, quantization), quantization)
        )

    np.testing.assert_array_equal(
        model.embedder.table_VxD[...], stored("model.embed_tokens.weight")
    )
    width = len(model.cfg.pattern)
    last = model.cfg.num_units * width  # the first layer of the tail
    k = stored(f"model.layers.{last}.self_attn.k_proj.weight").reshape(K, -1, config["hidden_size"])
    np.testing.assert_array_equal(model.tail[0].attn.k_DxKxH[...], k.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        model.units[1].mlp.down_FxD[...][0], stored("model.layers.1.mlp.down_proj.weight").T
    )
    norm = values["model.layers.0.post_feedforward_layernorm.weight"]
    np.testing.assert_array_equal(
        model.units[0].post_ffw_norm.scale[...][0], (norm + 1) - np.float32(1)
    )


def test_norms_are_reduced_by_1_before_rounding(tmp_path):
    """bfloat16 keeps three digits of 0.001, but rounds 1.001 to 1: rounding first would give 0."""
    values = tensors(GEMMA2, dtype=np.float32) | {
        "model.norm.weight": np.full(32, 1e-3, np.float32)
    }
    scale = np.asarray(
        load(write(tmp_path / "toy.gguf", GEMMA2, values), dtype="bfloat16").final_norm.scale[...],
        np.float32,
    )
    np.testing.assert_allclose(scale, 1e-3, rtol=0.004)


def test_the_config_has_defaults_for_fields_that_gguf_lacks(tmp_path):
    cfg = open_checkpoint(
        write(tmp_path / "a.gguf", GEMMA3, tensors(GEMMA3, dtype=np.float32))
    ).model_config()
    assert cfg.pattern == (LayerSpec(6, 10_000.0),) * 5 + (LayerSpec(None, 1_000_000.0, 8.0),)
    assert cfg.qk_norm and cfg.query_pre_attn_scalar == cfg.head_dim and cfg.norm_eps == 1e-6
    cfg = open_checkpoint(
        write(tmp_path / "b.gguf", GEMMA2, tensors(GEMMA2, dtype=np.float32))
    ).model_config()
    assert cfg.pattern == (LayerSpec(6), LayerSpec(None)) and (cfg.attn_cap, cfg.final_cap) == (
        50.0,
        30.0,
    )


def test_the_query_scale_of_the_27b_is_computed_from_its_width(tmp_path):
    """GGUF has no query scale. It is 4608 / 32 = 144; the head width is 128."""
    sizes = {
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
    }
    config = GEMMA2 | sizes | {"num_hidden_layers": 46}
    path = write(
        tmp_path / "big.gguf",
        config,
        {"model.embed_tokens.weight": np.zeros((1, 4608), np.float32)},
    )
    cfg = open_checkpoint(path).model_config()
    assert (cfg.name, cfg.query_pre_attn_scalar) == ("gemma2_27b", 144)


def test_another_architecture_is_an_error(tmp_path):
    path = write(tmp_path / "toy.gguf", GEMMA2, {}, arch="mamba")
    with pytest.raises(ValueError, match=rf"^{path}: GGUF architecture 'mamba' is not supported"):
        load(path)


@pytest.fixture
def with_tokenizer(tmp_path):
    """Returns a GGUF file with a tokenizer, and that tokenizer."""
    own, add_tokenizer = add_sentencepiece_tokenizer(tmp_path)
    return write(tmp_path / "toy.gguf", GEMMA2, {}, add=add_tokenizer), own


def test_the_tokenizer_is_rebuilt(with_tokenizer, tmp_path):
    path, own = with_tokenizer
    open_checkpoint(path).write_tokenizer(tmp_path)
    rebuilt = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert [rebuilt.pad_id(), rebuilt.eos_id(), rebuilt.bos_id(), rebuilt.unk_id()] == [0, 1, 2, 3]
    for text in (
        "the quick  fox",
        "<start_of_turn>user\nthe dog<end_of_turn>",
        "  \u00e9 \u6f22 the\t",
    ):
        assert rebuilt.encode(text) == own.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == text


@pytest.mark.parametrize("name", ["file", "folder"])
def test_training_loads_and_exports_the_tokenizer_of_a_gguf_file(with_tokenizer, tmp_path, name):
    path, own = with_tokenizer
    source = path if name == "file" else path.parent / "folder"
    if name == "folder":
        source.mkdir()
        path.rename(source / path.name)
    config = ConfigDict({"tokenizer": str(source)})
    text = "the quick  fox"
    assert sources.load_tokenizer(config).encode(text) == own.encode(text)
    out = tmp_path / "hf"
    out.mkdir()
    assert "tokenizer.model" in copy_tokenizer(sources.tokenizer_path(config), out)
    assert tokenizer.load(out).encode(text) == own.encode(text)


@pytest.mark.parametrize("own", [False, True])
def test_a_chat_template_of_a_gguf_file_is_used_unless_it_is_gemmas(tmp_path, own):
    _, add_tokenizer = add_sentencepiece_tokenizer(tmp_path)
    check = "raise_exception('Conversation roles must alternate user/assistant/...')"
    text = f"{{% if false %}}{{{{ {check} }}}}{{% endif %}}" if own else "<<user>> "

    def with_template(writer):
        add_tokenizer(writer)
        writer.add_chat_template(text + "{{ messages[0].content }}")

    path = write(tmp_path / "toy.gguf", GEMMA2, {}, add=with_template)
    (tmp_path / "out").mkdir()
    open_checkpoint(path).write_tokenizer(tmp_path / "out")
    loaded = tokenizer.load(tmp_path / "out")
    ids = loaded.encode_chat([{"role": "user", "content": "the dog"}])
    expected = "user\nthe dog\nmodel\n" if own else "<<user>> the dog"
    assert loaded.decode(ids) == expected
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, loaded.id_of("<end_of_turn>")]
