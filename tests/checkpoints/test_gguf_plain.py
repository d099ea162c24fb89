"""Tests GGUF files of Llama and Qwen: interleaved heads, RoPE factors, heads, BPE tokenizers."""

import unicodedata

import numpy as np
import pytest
import tokenizers
from gguf_toys import add_byte_level_tokenizer, llama3_factors, write
from toys import LLAMA, QWEN2, QWEN3, tensors, write_folder

from grm_jax.checkpoints import load, open_checkpoint
from grm_jax.checkpoints.gguf_tokenizer import SPLITS
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
