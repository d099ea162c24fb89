"""Tests config.json -> TransformerConfig: released files, old and new keys, invalid files."""

import logging

import pytest
from toys import GEMMA2, GEMMA3, LLAMA

from grm_jax.checkpoints.hf_config import from_hf, read_padding_id, to_hf
from grm_jax.models import CONFIGS, LayerSpec, TransformerConfig, get_config

# Released files, shortened to the fields of the model.
GEMMA2_27B = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 128,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_size": 4608,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "intermediate_size": 36864, "max_position_embeddings": 8192, "num_attention_heads": 32,
    "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
    "sliding_window_size": 4096, "vocab_size": 256000,
}  # fmt: skip
GEMMA3_4B = {  # the text config has only fields that differ from the defaults of its class
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "vision_config": {"hidden_size": 1152},
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}  # fmt: skip
GEMMA3_270M = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 256,
    "hidden_size": 640, "intermediate_size": 2048, "max_position_embeddings": 32768,
    "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
    "vocab_size": 262144, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0,
    "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "_sliding_window_pattern": 6,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
}  # fmt: skip

LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
    "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "tie_word_embeddings": True, "vocab_size": 128256,
}  # fmt: skip
QWEN_7B = {  # it states a window that it does not use
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
    "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768,
    "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
QWEN3_32B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 25600,
    "max_position_embeddings": 40960, "max_window_layers": 64, "num_attention_heads": 64,
    "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def assert_is(cfg: TransformerConfig, name: str, **changes):
    assert cfg == get_config(name, **changes)


def test_released_files():
    assert_is(from_hf(GEMMA2_27B), "gemma2_27b")
    assert_is(from_hf(GEMMA3_4B), "gemma3_4b", vocab_size=262_208)
    assert_is(from_hf(GEMMA3_270M), "gemma3_270m")
    assert_is(from_hf(LLAMA_1B), "llama3_1b")
    assert_is(from_hf(QWEN_7B), "qwen2_7b")
    assert_is(from_hf(QWEN3_32B), "qwen3_32b")


@pytest.mark.parametrize(("config", "unset"), [(GEMMA2, 0), (GEMMA3, 0), (LLAMA, None)])
def test_the_padding_id_has_the_default_of_transformers(config, unset):
    config = {key: value for key, value in config.items() if key != "pad_token_id"}
    assert read_padding_id(config) == unset
    assert read_padding_id(config | {"pad_token_id": 3}) == 3
    assert read_padding_id(config | {"pad_token_id": None}) is None
    with pytest.raises(ValueError, match="pad_token_id"):
        read_padding_id(config | {"pad_token_id": "3"})


def test_an_empty_gemma2_config_is_the_2b():
    """The defaults of transformers' Gemma2Config are the 2B's values."""
    assert_is(
        from_hf({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}), "gemma2_2b"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_round_trip(name):
    for head in (False, True):
        cfg = get_config(name, scalar_head=head)
        loaded = from_hf(to_hf(cfg, "bfloat16"), name)
        assert loaded == cfg.replace(dtype=loaded.dtype)


def test_old_and_new_rope_keys_give_the_same_config():
    new = {k: v for k, v in GEMMA3.items() if not k.startswith("rope")}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert from_hf(new) == from_hf(GEMMA3)
    new = {k: v for k, v in GEMMA2.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    assert from_hf(new) == from_hf(GEMMA2)


def test_layer_types_may_be_a_list_or_a_period():
    assert from_hf(GEMMA2).pattern == (LayerSpec(6), LayerSpec(None))
    local, full = "sliding_attention", "full_attention"
    swapped = GEMMA2 | {"layer_types": [full, local, full, local, full]}
    assert from_hf(swapped).pattern == (LayerSpec(None), LayerSpec(6))
    every_four = from_hf(GEMMA3 | {"sliding_window_pattern": 4}).pattern
    assert [s.window for s in every_four] == [6, 6, 6, None]
    irregular = from_hf(GEMMA2 | {"layer_types": [local, full, full, local, full]}).pattern
    assert [s.window for s in irregular] == [6, None, None]


def test_caps_may_be_disabled():
    cfg = from_hf(GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (cfg.attn_cap, cfg.final_cap) == (None, None)
    assert (from_hf(GEMMA2).attn_cap, from_hf(GEMMA2).final_cap) == (50.0, 30.0)


def test_hidden_act_is_ignored_and_hidden_activation_is_checked():
    """The first files have hidden_act "gelu" for its tanh approximation."""
    assert from_hf(GEMMA2 | {"hidden_act": "gelu"}) == from_hf(GEMMA2)
    with pytest.raises(ValueError, match="hidden_activation='gelu' in config.json"):
        from_hf(GEMMA2 | {"hidden_activation": "gelu"})


def test_the_wrong_scale_of_early_9b_files_is_corrected_with_a_warning(caplog):
    old = to_hf(get_config("gemma2_9b"), "bfloat16") | {"query_pre_attn_scalar": 224}
    with caplog.at_level(logging.WARNING):
        assert_is(from_hf(old), "gemma2_9b")
    assert "query_pre_attn_scalar 224" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "architecture 'MixtralForCausalLM' is not supported",
        ),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types has 3 entries for 8 layers"),
        (
            {"layer_types": ["sliding_attention"] * 7 + ["chunked_attention"]},
            "layer type 'chunked_attention' is unknown",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type 'yarn' of full_attention",
        ),
        ({"architectures": ["Gemma2ForSequenceClassification"], "num_labels": 3}, "has 3 labels"),
    ],
)
def test_unsupported_configs_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf(GEMMA3 | change)


def test_a_pattern_that_config_json_cannot_express_is_an_error():
    cfg = get_config("tiny_gemma2", pattern=(LayerSpec(6), LayerSpec(8)))
    with pytest.raises(ValueError, match="cannot be written to a Gemma config.json"):
        to_hf(cfg, "float32")


PLAIN_MODELS = [n for n in CONFIGS if n.startswith(("llama", "qwen", "smollm", "tiny_llama"))]


@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_llama_and_qwen_configs_survive_a_round_trip(name):
    cfg = get_config(name, dtype="bfloat16")
    assert from_hf(to_hf(cfg, "bfloat16"), name) == cfg


def test_new_and_old_rope_keys_give_the_same_llama():
    old = to_hf(get_config("llama3_8b"), "bfloat16")
    new = {key: value for key, value in old.items() if not key.startswith("rope")}
    new["rope_parameters"] = {"rope_theta": old["rope_theta"], **old["rope_scaling"]}
    assert from_hf(new) == from_hf(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
    ],
)
def test_unsupported_plain_configs_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf(to_hf(get_config("qwen3_8b"), "bfloat16") | change)
