"""Toy GGUF files of every supported architecture, saved with the `gguf` package."""

import json

import gguf
import numpy as np
import sentencepiece as spm
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from grm_jax.checkpoints.gguf_tokenizer import SPLITS

NAMES = {
    "embed_tokens": "token_embd", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "q_proj": "attn_q", "k_proj": "attn_k",
    "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip
# Llama and Qwen name the norm before the MLP after its place.
PLAIN_NAMES = NAMES | {"post_attention_layernorm": "ffn_norm"}


def gguf_name(name: str, names: dict[str, str] = NAMES) -> str:
    """Returns the GGUF name of a Hugging Face tensor."""
    *path, last, kind = name.split(".")
    return (f"blk.{path[2]}." if "layers" in path else "") + f"{names[last]}.{kind}"


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
    """As the GGUF converter does for Llama: the two halves of each head alternate."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write(path, config, values, quantization=None, arch=None, factors=None, add=None):
    """Saves a GGUF file with the sizes of a config.json, and returns its path.

    factors: of Llama 3's RoPE. add(writer): adds or changes metadata before it is written.
    """
    arch = arch or config["model_type"].removesuffix("_text")
    is_gemma = arch.startswith("gemma")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(config["rope_theta"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    if is_gemma and "rope_scaling" in config:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    for name, value in values.items():
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            kind_of_head = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            value = interleaved(value, config[kind_of_head])
        if is_gemma and value.ndim == 1:
            value = value + 1
        kind = quantization if value.ndim > 1 else None
        if kind is not None:
            value = gguf.quantize(value, kind)
        writer.add_tensor(
            gguf_name(name, NAMES if is_gemma else PLAIN_NAMES), value, raw_dtype=kind
        )
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    if add:
        add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Of the toy's four frequencies, 500000 ** -(0, 1/4, 1/2, 3/4), two have wavelengths within the
# original context of Llama 3.1; the last is longer than it, the third in between.
def llama3_factors() -> list[float]:
    turns = 8192 * 500_000.0**-0.5 / (2 * np.pi)
    kept = (turns - 1) / (4 - 1)
    return [1.0, 1.0, 1 / (kept + (1 - kept) / 8), 8.0]


def add_sentencepiece_tokenizer(tmp_path):
    """Returns (a trained SentencePiece tokenizer, the function that adds it to a GGUF file)."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog, again and again\n" * 50)
    spm.SentencePieceTrainer.Train(
        input=str(corpus), model_prefix=str(tmp_path / "own"), vocab_size=320, model_type="bpe",
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        bos_piece="<bos>", eos_piece="<eos>",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\u2581\u2581"],
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    own = spm.SentencePieceProcessor(model_file=str(tmp_path / "own.model"))
    pieces = range(own.vocab_size())

    def add_tokenizer(writer):
        writer.add_tokenizer_model("llama")
        # The GGUF converter stores turn tokens as control tokens, and runs of spaces as spaces.
        writer.add_token_list([own.id_to_piece(i).replace("\u2581\u2581", "  ") for i in pieces])
        writer.add_token_scores([own.get_score(i) for i in pieces])
        special = {i: 3 for i in (0, 1, 2, 3, 4, 5)} | {6: 4}
        writer.add_token_types([6 if own.is_byte(i) else special.get(i, 1) for i in pieces])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)

    return own, add_tokenizer


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
