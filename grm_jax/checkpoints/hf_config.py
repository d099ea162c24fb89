"""Converts Hugging Face's config.json to and from TransformerConfig.

`hf_fields.py` has the defaults, types and ranges of the fields.
"""

import logging
from typing import Any

from grm_jax.checkpoints.hf_fields import (
    DEFAULTS,
    FIELDS,
    check_field,
    check_supported,
    read_fields,
    read_rope,
)
from grm_jax.models.config import PLAIN, LayerSpec, Llama3Rope, TransformerConfig, find_config

__all__ = ["ARCHITECTURES", "DEFAULTS", "from_hf", "released_like", "to_hf"]

log = logging.getLogger(__name__)

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
INT8_TYPE = "grm_int8"  # model type of folders with our int8 weights
# Architectures that model types mean in files that name no architecture.
_BY_TYPE = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def from_hf(config: dict[str, Any], name: str = "model", source: str = "") -> TransformerConfig:
    """Returns the model that a config.json describes, named after the registered size, or `name`.

    source: names the folder in errors; `name` by default.

    Raises:
      ValueError: names the key and the value that is wrong or not supported: architecture, size,
        activation, RoPE, layer type, quantisation.
    """
    source = source or name
    for key in ("architectures", "model_type", "num_labels", "id2label"):
        check_field(key, config.get(key), FIELDS[key], source)
    architecture = _architecture(config, source)
    text = config.get("text_config", config)  # nested in Gemma3ForConditionalGeneration
    check_field("text_config", text, FIELDS["text_config"], source)
    classifier = architecture.endswith("SequenceClassification")
    labels = config.get("num_labels") or len(config.get("id2label") or {"0": ""})
    if classifier and labels != 1:
        raise ValueError(
            f"{source}: the classifier has {labels} labels: a reward model needs num_labels = 1"
        )
    model_type = ARCHITECTURES[architecture]
    _check_model_type(config, text, model_type, source)
    is_gemma = model_type.startswith("gemma")
    c = read_fields(text, model_type, source)
    check_supported(config, model_type, source)
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    if heads % (kv_heads or heads):
        raise ValueError(
            f"{source}: num_attention_heads={heads} in config.json is not a multiple of "
            f"num_key_value_heads={kv_heads}: correct one of them"
        )
    cfg = TransformerConfig(
        name=name,
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        d_model=c["hidden_size"],
        d_ff=c["intermediate_size"],
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        norm_eps=c["rms_norm_eps"],
        max_length=c["max_position_embeddings"],
        scalar_head=classifier,
        qk_norm=model_type in ("gemma3_text", "qwen3"),
        **(_gemma_fields if is_gemma else _plain_fields)(c, model_type, source),
    )
    if cfg.head_dim % 2:
        raise ValueError(
            f"{source}: head_dim={cfg.head_dim} in config.json is odd: RoPE rotates pairs"
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


def int8_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config.json of a folder with our int8 weights.

    Its model type is one that transformers and vLLM do not have, so that they refuse the folder.
    """
    return config | {"model_type": INT8_TYPE, "quantization_config": {"quant_method": INT8_TYPE}}


def float_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the config.json that `int8_config` made the given one of; None if it did not."""
    if config.get("model_type") != INT8_TYPE:
        return None
    return {k: v for k, v in config.items() if k not in ("model_type", "quantization_config")}


def read_padding_id(config: dict[str, Any], source: str = "") -> int | None:
    """Returns the `pad_token_id` of a config.json, 0 by default in Gemma's classes; None if unset.

    Raises ValueError for a value that is no id.
    """
    default = 0 if ARCHITECTURES[_architecture(config, source)].startswith("gemma") else None
    value = config.get("pad_token_id", default)
    check_field("pad_token_id", value, FIELDS["pad_token_id"], source)
    return value


def _architecture(config: dict[str, Any], source: str) -> str:
    """Returns the architecture that config.json names, or that its model type means."""
    names, model_type = config.get("architectures"), config.get("model_type")
    name = names[0] if names else _BY_TYPE.get(model_type or "")
    if name is None:
        raise ValueError(
            f"{source}: config.json names no architectures, and model_type={model_type!r:.40} is "
            f"not supported: use one of {', '.join(_BY_TYPE)}"
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(
            f"{source}: architecture {name!r:.60} is not supported: "
            f"use one of {', '.join(ARCHITECTURES)}"
        )
    return name


def _check_model_type(
    config: dict[str, Any], text: dict[str, Any], model_type: str, source: str
) -> None:
    """Raises ValueError where model_type, which decides in transformers, is of another class."""
    nested = text is not config
    allowed = {model_type, "gemma3"} if model_type == "gemma3_text" else {model_type}
    for value in (config.get("model_type"), text.get("model_type")):
        if value is not None and value not in allowed:
            raise ValueError(
                f"{source}: model_type={value!r:.40} in config.json contradicts its architecture, "
                f"which is of type {model_type}: correct one of them"
            )
    if nested and model_type != "gemma3_text":
        raise ValueError(
            f"{source}: text_config in config.json is not supported in a model of type {model_type}"
        )


def _gemma_fields(c: dict[str, Any], model_type: str, source: str) -> dict[str, Any]:
    return {
        "head_dim": c["head_dim"],
        "query_pre_attn_scalar": c["query_pre_attn_scalar"],
        "pattern": _pattern(c, model_type, source),
        "attn_cap": c["attn_logit_softcapping"],
        "final_cap": c["final_logit_softcapping"],
    }


def _plain_fields(c: dict[str, Any], model_type: str, source: str) -> dict[str, Any]:
    """Returns the fields of Llama and Qwen, whose layers are all alike."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    if not c["head_dim"] and hidden % heads:
        raise ValueError(
            f"{source}: hidden_size={hidden} in config.json is not a multiple of "
            f"num_attention_heads={heads}: correct one of them, or set head_dim"
        )
    _layer_types(c, ("full_attention",), source)
    head_dim = c["head_dim"] or hidden // heads
    return PLAIN | {
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "pattern": (LayerSpec(None, *_plain_rope(c, model_type, source)),),
        "qkv_bias": model_type == "qwen2",
        "tied": c["tie_word_embeddings"],
    }


def _plain_rope(
    c: dict[str, Any], model_type: str, source: str
) -> tuple[float, float, Llama3Rope | None]:
    """Returns (base, position scale, frequency scaling), from the keys of old and new files."""
    keys = {"rope_theta": c["rope_theta"]}
    keys |= (c.get("rope_scaling") or {}) | (c.get("rope_parameters") or {})
    rope = read_rope(keys, model_type, source)
    if rope.kind != "llama3":
        return rope.theta, rope.values.get("factor", 1.0), None
    factor, low, high, length = rope.values.values()
    return rope.theta, 1.0, Llama3Rope(factor, low, high, int(length))


SIZES = (
    "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim", "qk_norm", "qkv_bias",
    "post_norms",
)  # fmt: skip


def released_like(cfg: TransformerConfig) -> TransformerConfig | None:
    """Returns the registered model of the same sizes, or None.

    The vocabulary may differ: multimodal files have 64 more rows.
    """
    return find_config(**{field: getattr(cfg, field) for field in SIZES})


def _layer_types(c: dict[str, Any], known: tuple[str, ...], source: str) -> list[str] | None:
    """Returns layer_types, None if it is absent. Raises ValueError if they do not fit the model."""
    types, layers = c.get("layer_types"), c["num_hidden_layers"]
    if types is None:
        return None
    if len(types) != layers:
        raise ValueError(f"{source}: layer_types has {len(types)} entries for {layers} layers")
    if unknown := [one for one in types if one not in known]:
        raise ValueError(
            f"{source}: layer type {unknown[0]!r:.40} is unknown: use {' or '.join(known)}"
        )
    return types


def _pattern(c: dict[str, Any], model_type: str, source: str) -> tuple[LayerSpec, ...]:
    layers, period = c["num_hidden_layers"], c["sliding_window_pattern"]
    local, full = "sliding_attention", "full_attention"
    types = _layer_types(c, (local, full), source) or [
        full if (i + 1) % period == 0 else local for i in range(layers)
    ]
    rope = _rope(c, model_type, source)
    specs = {
        local: LayerSpec(c["sliding_window"], *rope[local]),
        full: LayerSpec(None, *rope[full]),
    }
    shortest = next(
        p for p in range(1, layers + 1) if all(types[i] == types[i % p] for i in range(layers))
    )
    return tuple(specs[t] for t in types[:shortest])


def _rope(c: dict[str, Any], model_type: str, source: str) -> dict[str, tuple[float, float]]:
    """Returns (base, position scale) by layer type.

    Old files use the keys `rope_theta` and `rope_scaling`, new files `rope_parameters`. In Gemma 3
    scaling applies to global layers only.
    """
    kinds = ("sliding_attention", "full_attention")
    new = c.get("rope_parameters") or {}
    full = {"rope_theta": c["rope_theta"]} | (c.get("rope_scaling") or {})
    if model_type == "gemma2":
        ropes = dict.fromkeys(kinds, full | new)
    else:
        for key, value in new.items():
            if key not in kinds or not isinstance(value, dict):
                raise ValueError(
                    f"{source}: rope_parameters in config.json has {key!r:.40}: {value!r:.40}, "
                    f"where Gemma 3 has an object for {' and '.join(kinds)}"
                )
        local = {"rope_theta": c["rope_local_base_freq"]}
        ropes = {
            "sliding_attention": local | new.get("sliding_attention", {}),
            "full_attention": full | new.get("full_attention", {}),
        }
    read = {
        kind: read_rope(rope, model_type, source, f" of {kind}") for kind, rope in ropes.items()
    }
    return {kind: (rope.theta, rope.values.get("factor", 1.0)) for kind, rope in read.items()}


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
        "sliding_window": a.window or 4096,  # an integer also where no layer has a window
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
