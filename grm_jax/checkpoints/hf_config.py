"""Converts Hugging Face's config.json to and from TransformerConfig.

A released config.json omits keys that equal the default of its class in transformers, so these
defaults are part of the format.
"""

import logging
from typing import Any

from grm_jax.models.config import PLAIN, LayerSpec, Llama3Rope, TransformerConfig, find_config

log = logging.getLogger(__name__)

# Defaults of the classes in transformers, which stand for missing keys.
_GEMMA_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "tie_word_embeddings": True, "attention_bias": False,
    "use_bidirectional_attention": False,
}  # fmt: skip
_PLAIN_DEFAULTS = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "use_sliding_window": False, "rope_theta": 10_000.0,
}  # fmt: skip
_QWEN_DEFAULTS = _PLAIN_DEFAULTS | {
    "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": _GEMMA_DEFAULTS | {
        "vocab_size": 256_000, "max_position_embeddings": 8192, "rope_theta": 10_000.0,
        "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": _GEMMA_DEFAULTS | {
        "vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "llama": _PLAIN_DEFAULTS | {
        "vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048,
    },
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": _QWEN_DEFAULTS | {"head_dim": 128},
}  # fmt: skip
# Supported architectures -> model type.
ARCHITECTURES = {
    "Gemma2ForCausalLM": "gemma2",
    "Gemma2ForSequenceClassification": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Gemma3TextForSequenceClassification": "gemma3_text",
    "LlamaForCausalLM": "llama",
    "LlamaForSequenceClassification": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2ForSequenceClassification": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3ForSequenceClassification": "qwen3",
}
# Keys with only one supported value. Gemma's `hidden_act` is not one of them: the first files set
# it to "gelu", but the models were trained with the tanh approximation.
_GEMMA_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}
_PLAIN_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}


def from_hf(config: dict[str, Any], name: str = "model") -> TransformerConfig:
    """Returns the model that a config.json describes, named after the registered size, or `name`.

    Raises:
      ValueError: names the key of an unsupported architecture, activation, RoPE or layer type.
    """
    is_gemma2 = config.get("model_type") == "gemma2"
    default = "Gemma2ForCausalLM" if is_gemma2 else "Gemma3ForCausalLM"
    architecture = (config.get("architectures") or [default])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{name}: architecture {architecture!r} is not supported: "
            f"use one of {', '.join(ARCHITECTURES)}"
        )
    text = config.get("text_config", config)  # nested in Gemma3ForConditionalGeneration
    model_type = ARCHITECTURES[architecture]
    is_gemma = model_type.startswith("gemma")
    present = {k: v for k, v in text.items() if v is not None or k.endswith("softcapping")}
    c = DEFAULTS[model_type] | present
    for key, value in (_GEMMA_FIXED if is_gemma else _PLAIN_FIXED).items():
        if c[key] != value:
            raise ValueError(
                f"{name}: {key}={c[key]!r} in config.json is not supported: "
                f"released models of type {model_type} have {value!r}"
            )
    classifier = architecture.endswith("SequenceClassification")
    labels = config.get("num_labels") or len(config.get("id2label") or {"0": ""})
    if classifier and labels != 1:
        raise ValueError(
            f"{name}: the classifier has {labels} labels: a reward model needs num_labels = 1"
        )
    cfg = TransformerConfig(
        name=name,
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        d_model=c["hidden_size"],
        d_ff=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"] or c["num_attention_heads"],
        norm_eps=c["rms_norm_eps"],
        max_length=c["max_position_embeddings"],
        scalar_head=classifier,
        qk_norm=model_type in ("gemma3_text", "qwen3"),
        **(_gemma_fields if is_gemma else _plain_fields)(c, model_type, name),
    )
    released = released_like(cfg)
    if released is None:
        return cfg
    if released.name == "gemma2_9b" and cfg.query_pre_attn_scalar == 224:
        log.warning(
            "%s: query_pre_attn_scalar 224 is an error of early Gemma 2 9B files; using 256", name
        )
        cfg = cfg.replace(query_pre_attn_scalar=256)
    return cfg.replace(name=released.name)


def _gemma_fields(c: dict[str, Any], model_type: str, name: str) -> dict[str, Any]:
    return {
        "head_dim": c["head_dim"],
        "query_pre_attn_scalar": c["query_pre_attn_scalar"],
        "pattern": _pattern(c, model_type, name),
        "attn_cap": c["attn_logit_softcapping"],
        "final_cap": c["final_logit_softcapping"],
    }


def _plain_fields(c: dict[str, Any], model_type: str, name: str) -> dict[str, Any]:
    """Returns the fields of Llama and Qwen, whose layers are all alike."""
    head_dim = c["head_dim"] or c["hidden_size"] // c["num_attention_heads"]
    return PLAIN | {
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "pattern": (LayerSpec(None, *_plain_rope(c, model_type, name)),),
        "qkv_bias": model_type == "qwen2",
        "tied": c["tie_word_embeddings"],
    }


def _plain_rope(
    c: dict[str, Any], model_type: str, name: str
) -> tuple[float, float, Llama3Rope | None]:
    """Returns (base, position scale, frequency scaling), from the keys of old and new files."""
    rope = {"rope_theta": c["rope_theta"]} | (c.get("rope_scaling") or {})
    rope |= c.get("rope_parameters") or {}
    rope_type, theta = rope.get("rope_type", rope.get("type", "default")), float(rope["rope_theta"])
    if rope_type == "default":
        return theta, 1.0, None
    if rope_type == "linear":
        return theta, float(rope["factor"]), None
    if rope_type == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor")
        factor, low, high = (float(rope[key]) for key in keys)
        return theta, 1.0, Llama3Rope(factor, low, high, rope["original_max_position_embeddings"])
    raise ValueError(
        f"{name}: rope_type {rope_type!r} is not supported: "
        f"released models of type {model_type} have default, linear or llama3"
    )


SIZES = (
    "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim", "qk_norm", "qkv_bias",
    "post_norms",
)  # fmt: skip


def released_like(cfg: TransformerConfig) -> TransformerConfig | None:
    """Returns the registered model of the same sizes, or None.

    The vocabulary may differ: multimodal files have 64 more rows.
    """
    return find_config(**{field: getattr(cfg, field) for field in SIZES})


def _pattern(c: dict[str, Any], model_type: str, name: str) -> tuple[LayerSpec, ...]:
    layers, period = c["num_hidden_layers"], c["sliding_window_pattern"]
    types = c.get("layer_types") or [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)
    ]
    if len(types) != layers:
        raise ValueError(f"{name}: layer_types has {len(types)} entries for {layers} layers")
    rope = _rope(c, model_type, name)
    specs = {
        "sliding_attention": LayerSpec(c["sliding_window"], *rope["sliding_attention"]),
        "full_attention": LayerSpec(None, *rope["full_attention"]),
    }
    if unknown := set(types) - set(specs):
        raise ValueError(
            f"{name}: layer type {sorted(unknown)[0]!r} is unknown: use {' or '.join(specs)}"
        )
    shortest = next(
        p for p in range(1, layers + 1) if all(types[i] == types[i % p] for i in range(layers))
    )
    return tuple(specs[t] for t in types[:shortest])


def _rope(c: dict[str, Any], model_type: str, name: str) -> dict[str, tuple[float, float]]:
    """Returns (base, position scale) by layer type.

    Old files use the keys `rope_theta` and `rope_scaling`, new files `rope_parameters`. In Gemma 3
    scaling applies to global layers only.
    """
    new = c.get("rope_parameters") or {}
    full = {"rope_theta": c["rope_theta"]} | (c.get("rope_scaling") or {})
    if model_type == "gemma2":
        ropes = dict.fromkeys(("sliding_attention", "full_attention"), full | new)
    else:
        local = {"rope_theta": c["rope_local_base_freq"]}
        ropes = {
            "sliding_attention": local | new.get("sliding_attention", {}),
            "full_attention": full | new.get("full_attention", {}),
        }
    out = {}
    for layer_type, rope in ropes.items():
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "linear"):
            raise ValueError(
                f"{name}: rope_type {rope_type!r} of {layer_type} is not supported: "
                "released Gemma models have default or linear"
            )
        scale = float(rope["factor"]) if rope_type == "linear" else 1.0
        out[layer_type] = (float(rope["rope_theta"]), scale)
    return out


def to_hf(cfg: TransformerConfig, dtype: str) -> dict[str, Any]:
    """Returns the config.json of a model, in keys that old and new transformers and vLLM accept.

    Raises:
      ValueError: the layer pattern has no representation in the format.
    """
    config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": cfg.head_dim,
        "hidden_size": cfg.d_model,
        "initializer_range": 0.02,
        "intermediate_size": cfg.d_ff,
        "max_position_embeddings": cfg.max_length,
        "num_attention_heads": cfg.num_heads,
        "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.num_kv_heads,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": cfg.vocab_size,
    }
    config |= _gemma_to_hf(cfg) if cfg.post_norms else _plain_to_hf(cfg)
    if cfg.scalar_head:
        config |= {
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "problem_type": "regression",
        }
    return dict(sorted(config.items()))


def _head(cfg: TransformerConfig) -> str:
    return "ForSequenceClassification" if cfg.scalar_head else "ForCausalLM"


def _gemma_to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    local = {spec for spec in cfg.pattern if spec.window is not None}
    full = {spec for spec in cfg.pattern if spec.window is None}
    a, b = next(iter(local or full)), next(iter(full or local))
    same_rope, scaled_local = a.rope == b.rope, a.rope_scale != 1 and a is not b
    if max(len(local), len(full)) > 1 or scaled_local or not (cfg.qk_norm or same_rope):
        raise ValueError(
            f"{cfg.name}: layer pattern {cfg.pattern} cannot be written to a Gemma config.json"
        )
    family = "Gemma3" if cfg.qk_norm else "Gemma2"
    if cfg.scalar_head and cfg.qk_norm:
        family = "Gemma3Text"
    specs = [cfg.pattern[i % len(cfg.pattern)] for i in range(cfg.num_layers)]
    scalar = cfg.query_pre_attn_scalar
    config: dict[str, Any] = {
        "architectures": [family + _head(cfg)],
        "model_type": "gemma3_text" if cfg.qk_norm else "gemma2",
        "attn_logit_softcapping": cfg.attn_cap,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": cfg.final_cap,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention" if s.window else "full_attention" for s in specs],
        "pad_token_id": 0,
        # transformers' classes require an integer: 256, not 256.0.
        "query_pre_attn_scalar": int(scalar) if float(scalar).is_integer() else scalar,
        "rope_theta": b.rope_theta,
        "sliding_window": a.window,
    }
    if cfg.qk_norm:
        config["rope_local_base_freq"] = a.rope_theta
    if b.rope_scale != 1:
        config["rope_scaling"] = {"rope_type": "linear", "factor": b.rope_scale}
    return config


def _plain_to_hf(cfg: TransformerConfig) -> dict[str, Any]:
    if len(cfg.pattern) > 1 or cfg.pattern[0].window:
        raise ValueError(
            f"{cfg.name}: layer pattern {cfg.pattern} cannot be written to a Llama or Qwen "
            "config.json"
        )
    model_type = "qwen2" if cfg.qkv_bias else "qwen3" if cfg.qk_norm else "llama"
    (spec,) = cfg.pattern
    config: dict[str, Any] = {
        "architectures": [model_type.capitalize() + _head(cfg)],
        "model_type": model_type,
        "hidden_act": "silu",
        "rope_theta": spec.rope_theta,
    }
    if model_type == "llama":
        config["mlp_bias"] = False
    else:
        config["use_sliding_window"] = False
    if spec.rope_scale != 1:
        config["rope_scaling"] = {"rope_type": "linear", "factor": spec.rope_scale}
    if (rope := spec.llama3_rope) is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low,
            "high_freq_factor": rope.high,
            "original_max_position_embeddings": rope.original_length,
        }
    return config
