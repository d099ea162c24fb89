"""Tests GGUF files of Llama and Qwen: interleaved heads, RoPE factors, heads, BPE tokenizers."""

import json
import unicodedata

import numpy as np
import pytest
import tokenizers
from test_gguf import NAMES, close, writer_of
from tokenizers import decoders, models, pre_tokenizers, trainers
from toys import LLAMA, QWEN2, QWEN3, D, H, K, N, tensors, write_folder

from grm_jax.checkpoints import load, open_checkpoint
from grm_jax.checkpoints.gguf_tokenizer import SPLITS
from grm_jax.text import tokenizer as own_tokenizers

TOKENS = np.arange(3, 43)[None]


def gguf_name(name: str, bias_or_weight: str) -> str:
    *path, last, _ = name.split(".")
    if last in ("norm", "lm_head"):
        return {"norm": "output_norm", "lm_head": "output"}[last] + ".weight"
    stem = {"post_attention_layernorm": "ffn_norm"}.get(last) or NAMES[last]
    return (f"blk.{path[2]}." if "layers" in path else "") + f"{stem}.{bias_or_weight}"


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
    """As the GGUF converter does for Llama: the two halves of each head alternate."""
    return w.reshape(heads, 2, H // 2, D).swapaxes(1, 2).reshape(w.shape)


def write(path, config, values, factors=None, add_tokenizer=None):
    arch = config["model_type"]
    writer = writer_of(path, config, arch)
    for name, value in values.items():
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            value = interleaved(value, N if "q_proj" in name else K)
        writer.add_tensor(gguf_name(name, name.rpartition(".")[2]), value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    if add_tokenizer:
        add_tokenizer(writer)
    return close(writer, path)


# Of the toy's four frequencies, 500000 ** -(0, 1/4, 1/2, 3/4), two have wavelengths within the
# original context of Llama 3.1; the last is longer than it, the third in between.
def llama3_factors() -> list[float]:
    turns = 8192 * 500_000.0**-0.5 / (2 * np.pi)
    kept = (turns - 1) / (4 - 1)
    return [1.0, 1.0, 1 / (kept + (1 - kept) / 8), 8.0]


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3], ids=lambda c: c["model_type"])
def test_a_gguf_file_gives_the_logits_of_the_folder(tmp_path, config):
    values = tensors(config, dtype=np.float32)
    factors = llama3_factors() if config is LLAMA else None
    ours = load(write(tmp_path / "toy.gguf", config, values, factors), dtype="float32")
    folder = write_folder(tmp_path / "hf", config | {"rms_norm_eps": 1e-6}, values)
    expected = load(folder, dtype="float32")
    assert ours.cfg == expected.cfg.replace(name=ours.cfg.name)
    np.testing.assert_array_equal(ours(TOKENS), expected(TOKENS))


def test_rope_factors_of_another_model_are_an_error(tmp_path):
    path = write(tmp_path / "toy.gguf", LLAMA, tensors(LLAMA, dtype=np.float32), [1, 1, 2, 3])
    with pytest.raises(ValueError, match="RoPE factors 1 to 3 are not those of Llama 3.1 or 3.2"):
        load(path)


TEXTS = (
    "the quick  brown fox's 1234 jumps\n\n over THE lazy dog!?",
    "<|im_start|>user\nthe dog<|im_end|>",
    "  \u00e9 e\u0301 \u6f22 the\t\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
)


def add_byte_level_tokenizer(rule: str):
    """Returns (a trained byte-level BPE tokenizer, the function that adds it to a GGUF file)."""
    own = tokenizers.Tokenizer(models.BPE())
    by_rule = (
        pre_tokenizers.Digits(individual_digits=True)
        if SPLITS[rule] is None
        else pre_tokenizers.Split(tokenizers.Regex(SPLITS[rule]), "isolated")
    )
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [by_rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[rule] is None)]
    )
    own.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(["the quick brown fox jumps over the lazy dog 1234\n"] * 50, trainer)

    def add(writer):
        merges = json.loads(own.to_str())["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(rule)
        tokens = [own.id_to_token(i) for i in range(own.get_vocab_size())]
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in special else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")

    return own, add


@pytest.mark.parametrize("rule", SPLITS)
def test_a_byte_level_tokenizer_is_rebuilt(tmp_path, rule):
    own, add = add_byte_level_tokenizer(rule)
    open_checkpoint(write(tmp_path / "toy.gguf", QWEN2, {}, add_tokenizer=add)).write_tokenizer(
        tmp_path
    )
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

    path = write(tmp_path / "toy.gguf", QWEN2, {}, add_tokenizer=add_renamed)
    with pytest.raises(ValueError, match="split rule 'gpt-4o' is not supported"):
        open_checkpoint(path).write_tokenizer(tmp_path)
