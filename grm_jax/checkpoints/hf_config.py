"""Converts Hugging Face's config.json to and from TransformerConfig.

A released config.json omits keys that equal the default of its class in transformers, so these
defaults are part of the format.
"""

import logging
from typing import Any

from grm_jax.models.config import LayerSpec, TransformerConfig, find_config

log = logging.getLogger(__name__)

# Defaults of transformers' Gemma2Config and Gemma3TextConfig, which stand for missing keys.
_SHARED_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "tie_word_embeddings": True, "attention_bias": False,
    "use_bidirectional_attention": False,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": _SHARED_DEFAULTS | {
        "vocab_size": 256_000, "max_position_embeddings": 8192, "rope_theta": 10_000.0,
        "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": _SHARED_DEFAULTS | {
        "vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
}  # fmt: skip
ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "Gemma2ForSequenceClassification",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3TextForSequenceClassification",
)
# Keys with only one supported value. `hidden_act` is not one of them: the first Gemma files set it
# to "gelu", but the models were trained with the tanh approximation.
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
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
    model_type = "gemma2" if architecture.startswith("Gemma2") else "gemma3_text"
    present = {k: v for k, v in text.items() if v is not None or k.endswith("softcapping")}
    c = DEFAULTS[model_type] | present
    for key, value in FIXED.items():
        if c[key] != value:
            raise ValueError(
                f"{name}: {key}={c[key]!r} in config.json is not supported: "
                f"released Gemma models have {value!r}"
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
        num_kv_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        query_pre_attn_scalar=c["query_pre_attn_scalar"],
        pattern=_pattern(c, model_type, name),
        attn_cap=c["attn_logit_softcapping"],
        final_cap=c["final_logit_softcapping"],
        qk_norm=model_type == "gemma3_text",
        norm_eps=c["rms_norm_eps"],
        max_length=c["max_position_embeddings"],
        scalar_head=classifier,
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


SIZES = ("num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim", "qk_norm")


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
    local = {spec for spec in cfg.pattern if spec.window is not None}
    full = {spec for spec in cfg.pattern if spec.window is None}
    a, b = next(iter(local or full)), next(iter(full or local))
    same_rope = (a.rope_theta, a.rope_scale) == (b.rope_theta, b.rope_scale)
    scaled_local = a.rope_scale != 1 and a is not b
    if max(len(local), len(full)) > 1 or scaled_local or not (cfg.qk_norm or same_rope):
        raise ValueError(
            f"{cfg.name}: layer pattern {cfg.pattern} cannot be written to a Gemma config.json"
        )
    family = "Gemma3" if cfg.qk_norm else "Gemma2"
    if cfg.scalar_head and cfg.qk_norm:
        family = "Gemma3Text"
    head = "ForSequenceClassification" if cfg.scalar_head else "ForCausalLM"
    specs = [cfg.pattern[i % len(cfg.pattern)] for i in range(cfg.num_layers)]
    scalar = cfg.query_pre_attn_scalar
    config: dict[str, Any] = {
        "architectures": [family + head],
        "model_type": "gemma3_text" if cfg.qk_norm else "gemma2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": cfg.attn_cap,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": cfg.final_cap,
        "head_dim": cfg.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": cfg.d_model,
        "initializer_range": 0.02,
        "intermediate_size": cfg.d_ff,
        "layer_types": ["sliding_attention" if s.window else "full_attention" for s in specs],
        "max_position_embeddings": cfg.max_length,
        "num_attention_heads": cfg.num_heads,
        "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.num_kv_heads,
        "pad_token_id": 0,
        # transformers' classes require an integer: 256, not 256.0.
        "query_pre_attn_scalar": int(scalar) if float(scalar).is_integer() else scalar,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": b.rope_theta,
        "sliding_window": a.window,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": cfg.vocab_size,
    }
    if cfg.qk_norm:
        config["rope_local_base_freq"] = a.rope_theta
    if b.rope_scale != 1:
        config["rope_scaling"] = {"rope_type": "linear", "factor": b.rope_scale}
    if cfg.scalar_head:
        config |= {
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "problem_type": "regression",
        }
    return config
