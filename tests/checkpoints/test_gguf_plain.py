"""Tests GGUF files of Llama and Qwen: interleaved heads, RoPE factors, heads, BPE tokenizers."""

import dataclasses
import json
import unicodedata

import numpy as np
import pytest
import tokenizers
from gguf_toys import add_byte_level_tokenizer, llama3_factors, write
from toys import LLAMA, QWEN2, QWEN3, tensors, write_folder

from grm_jax.checkpoints import gguf_config, load, open_checkpoint
from grm_jax.checkpoints.gguf_tokenizer import SPLITS
from grm_jax.cli import main
from grm_jax.judging.loading import load_tokenizer
from grm_jax.models.config import LLAMA_3_1
from grm_jax.text import tokenizer as own_tokenizers

TOKENS = np.arange(3, 43)[None]


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3], ids=lambda c: c["model_type"])
def test_a_gguf_file_gives_the_logits_of_the_folder(tmp_path, config):
    values = tensors(config, dtype=np.float32)
    factors = llama3_factors() if config is LLAMA else None
    ours = load(write(tmp_path / "toy.gguf", config, values, factors=factors), dtype="float32")
    folder = write_folder(tmp_path / "hf", config | {"rms_norm_eps": 1e-6}, values)
    expected = load(folder, dtype="float32")
    assert ours.cfg == expected.cfg.replace(name=ours.cfg.name)
    np.testing.assert_array_equal(ours(TOKENS), expected(TOKENS))


def test_rope_factors_of_another_model_are_an_error(tmp_path):
    path = write(
        tmp_path / "toy.gguf", LLAMA, tensors(LLAMA, dtype=np.float32), factors=[1, 1, 2, 3]
    )
    with pytest.raises(ValueError, match="RoPE factors 1 to 3 are not those of Llama 3.1 or 3.2"):
        load(path)


TEXTS = (
    "the quick  brown fox's 1234 jumps\n\n over THE lazy dog!?",
    "<|im_start|>user\nthe dog<|im_end|>",
    "  \u00e9 e\u0301 \u6f22 the\t\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
)


@pytest.mark.parametrize("rule", SPLITS)
def test_a_byte_level_tokenizer_is_rebuilt(tmp_path, rule):
    own, add = add_byte_level_tokenizer(rule)
    open_checkpoint(write(tmp_path / "toy.gguf", QWEN2, {}, add=add)).write_tokenizer(tmp_path)
    rebuilt = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS[:2]:
        assert rebuilt.encode(text).ids == own.encode(text).ids
    loaded = own_tokenizers.load(tmp_path)
    assert loaded.stop_ids == (2,) and loaded.encode("the dog")[0] != 0
    chat = [{"role": "user", "content": "<|im_end|> the dog"}]
    assert loaded.encode_chat(chat)[0] == 1 and 2 not in loaded.encode_chat(chat)
    for text in TEXTS:
        same = text if rule != "qwen2" else unicodedata.normalize("NFC", text)
        assert loaded.decode(loaded.encode(text), skip_controls=False) == same


def test_another_split_rule_is_an_error(tmp_path):
    _, add = add_byte_level_tokenizer("qwen2")

    def add_renamed(writer):
        add(writer)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "gpt-4o"

    path = write(tmp_path / "toy.gguf", QWEN2, {}, add=add_renamed)
    with pytest.raises(ValueError, match="split rule 'gpt-4o' is not supported"):
        open_checkpoint(path).write_tokenizer(tmp_path)


def test_a_tokenizer_of_a_gguf_file_brings_its_stop_ids_for_other_programs(tmp_path):
    _, add = add_byte_level_tokenizer("qwen2")

    def with_turns(writer):
        add(writer)
        writer.kv_data[0]["tokenizer.ggml.eos_token_id"].value = 0

    open_checkpoint(write(tmp_path / "a.gguf", QWEN2, {}, add=with_turns)).write_tokenizer(tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": [0, 2]}
    assert own_tokenizers.load(tmp_path).stop_ids == (0, 2)


def test_a_gguf_file_with_a_tokenizer_that_cannot_be_written_leaves_nothing(tmp_path, capsys):
    _, add = add_byte_level_tokenizer("qwen2")

    def renamed(writer):
        add(writer)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "gpt-4o"

    path = write(tmp_path / "toy.gguf", QWEN2, tensors(QWEN2, dtype=np.float32), add=renamed)
    assert main(["convert", str(path), str(tmp_path / "out"), "--quiet"]) == 2
    assert "split rule 'gpt-4o' is not supported" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_with_config_json_and_one_gguf_file_is_that_file(tmp_path):
    values = tensors(QWEN2, dtype=np.float32)
    (tmp_path / "hub").mkdir()
    path = write(tmp_path / "hub/toy.gguf", QWEN2, values)
    (tmp_path / "hub/config.json").write_text(json.dumps(QWEN2))
    assert open_checkpoint(tmp_path / "hub").path == str(path)


def test_other_models_of_llamas_sizes_need_no_rope_factors(tmp_path, monkeypatch):
    """As Mistral 7B v0.3 and Llama 3 8B 262k, whose base of RoPE is not that of Llama 3.1."""
    plain = LLAMA | {"rope_scaling": None, "rope_theta": 1e6}

    def long(writer):
        writer.kv_data[0]["llama.context_length"].value = 32768

    values = tensors(plain, dtype=np.float32)
    path = write(tmp_path / "toy.gguf", plain, values, add=long)
    cfg = open_checkpoint(path).model_config()
    released = dataclasses.replace(cfg.pattern[0], rope_theta=5e5, llama3_rope=LLAMA_3_1)
    monkeypatch.setattr(gguf_config, "released_like", lambda _: cfg.replace(pattern=(released,)))
    assert open_checkpoint(path).model_config().pattern == cfg.pattern
    same = plain | {"rope_theta": 5e5}
    path = write(tmp_path / "same.gguf", same, values, add=long)
    with pytest.raises(ValueError, match="the tensor rope_freqs.weight is missing"):
        open_checkpoint(path).model_config()


def test_the_judge_takes_the_tokenizer_of_a_gguf_file(tmp_path):
    own, add = add_byte_level_tokenizer("qwen2")
    path = write(tmp_path / "toy.gguf", QWEN2, {}, add=add)
    loaded = load_tokenizer(tmp_path / "elsewhere", path)
    assert loaded.vocab_size == own.get_vocab_size()
    (tmp_path / "tokenizer.json").write_text("of another model")
    assert load_tokenizer(tmp_path / "elsewhere", path).vocab_size == own.get_vocab_size()
