"""Keys of GGUF files: absent ones mean class defaults, unsupported ones are refused by name."""

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Type
from gguf_cases import CONFIGS, contents, set_field, write_toy
from gguf_toys import write

from grm_jax.checkpoints import open_checkpoint
from grm_jax.models.config import get_config

# One of Gemma, one with permuted keys, one that is neither.
ONE_OF_EACH = [
    pytest.param(arch, marks=[] if arch in ("gemma3", "llama", "qwen3") else pytest.mark.slow)
    for arch in CONFIGS
]


@pytest.mark.parametrize("arch", ONE_OF_EACH)
def test_without_a_key_a_file_means_the_same_or_is_refused_by_name(tmp_path, arch):
    full = write_toy(tmp_path / "full.gguf", arch)
    whole = contents(full, tmp_path / "full")
    metadata = gguf.GGUFReader(full).fields
    refused = set()
    for i, key in enumerate(k for k in metadata if not k.startswith("GGUF.")):
        path = write_toy(tmp_path / f"{i}.gguf", arch, lambda fields, key=key: fields.pop(key))
        try:
            own = contents(path, tmp_path / "own")
        except ValueError as error:
            assert key in str(error) or "chat_template" in key, (key, error)
            assert len(str(error).splitlines()) == 1 and "has no" not in key
            refused.add(key.removeprefix(f"{arch}."))
            continue
        assert own.cfg == whole.cfg, key
        assert own.ids == whole.ids, key
    assert {"block_count", "context_length", "tokenizer.ggml.tokens"} <= refused
    assert ("rope.freq_base" in refused) == (arch not in ("gemma2", "gemma3"))
    assert "attention.head_count_kv" not in refused and "attention.key_length" not in refused


@pytest.mark.parametrize("name", ["gemma3_270m", "gemma3_4b", "gemma3_27b", "gemma2_27b"])
def test_class_defaults_of_released_sizes(tmp_path, name):
    """Files of Ollama lack the epsilon, and the RoPE scaling of 4B and larger."""
    cfg = get_config(name)
    config = {
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "rope_theta": 1e6,
        "model_type": name.partition("_")[0],
    }
    values = {"model.embed_tokens.weight": np.zeros((1, cfg.d_model), np.float32)}

    def drop(writer):
        fields = writer.kv_data[0]
        for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
            del fields[f"{config['model_type']}.{key}"]
        fields["gemma3.vision.block_count"] = gguf.GGUFValue(27, Type.UINT32)
        writer.add_tensor("v.patch_embedding.weight", np.zeros((2, 2), np.float32))

    path = write(tmp_path / "ollama.gguf", config, values, add=drop)
    ours = open_checkpoint(path).model_config()
    assert ours == cfg.replace(vocab_size=1, max_length=128)


def test_missing_ids_of_special_tokens_are_those_of_their_pieces(tmp_path):
    def drop(fields):
        for name in ("bos", "eos", "unknown", "padding"):
            fields.pop(f"tokenizer.ggml.{name}_token_id")

    full = write_toy(tmp_path / "full.gguf", "gemma3")
    own = write_toy(tmp_path / "own.gguf", "gemma3", drop)
    assert contents(own, tmp_path / "own").ids == contents(full, tmp_path / "full").ids


REFUSED = {
    "rope.scaling.type": ("yarn", "longrope", "su", 1, 2.0, [1]),
    "rope.scaling.factor": (-1.0, float("nan"), float("inf"), "8"),
    "rope.scaling.attn_factor": (0.5,),
    "attention.scale": (0.5, float("nan")),
    "expert_count": (8,),
    "logit_scale": (0.0625,),
    "embedding_scale": (12.0,),
    "residual_scale": (0.22,),
    "attention.causal": (False,),
    "attention.layer_norm_rms_epsilon": (-1.0, float("nan"), "x", [1e-6]),
    "rope.dimension_count": (4,),
    "attention.value_length": (4,),
    "vocab_size": (63,),
    "block_count": (0, 4, 300_000_000, 2**60, True, 1.5, [3, 3, 3]),
    "attention.head_count": (0, 3, [8, 8, 8]),
    "embedding_length": (2**60, 31),
    "feed_forward_length": (95, [96, 96]),
    "nextn_predict_layers": (1,),
    "rope.freq_base": (float("nan"), 0.0, -1.0, "1e6"),
}


@pytest.mark.parametrize("arch", ONE_OF_EACH)
def test_values_that_change_the_numbers_are_refused(tmp_path, arch):
    cases = [(key, value) for key, values in REFUSED.items() for value in values]
    for i, (key, value) in enumerate(cases):
        path = write_toy(
            tmp_path / f"{i}.gguf", arch, lambda f, k=key, v=value: set_field(f, f"{arch}.{k}", v)
        )
        with pytest.raises(ValueError) as error:
            contents(path, tmp_path / "own")
        message = str(error.value)
        assert len(message.splitlines()) == 1 and message.startswith(str(path)), message
        assert "is damaged" not in message, message


def test_keys_without_an_effect_are_accepted(tmp_path):
    def add(fields):
        for key, value in (
            ("qwen3.expert_count", 0),
            ("qwen3.attention.value_length", 8),
            ("qwen3.vocab_size", 64),
            ("qwen3.rope.scaling.type", "none"),
            ("someone.note", "text"),
        ):
            set_field(fields, key, value)

    full = write_toy(tmp_path / "full.gguf", "qwen3")
    own = write_toy(tmp_path / "own.gguf", "qwen3", add)
    assert contents(own, tmp_path / "own").cfg == contents(full, tmp_path / "full").cfg
