"""Hugging Face's config.json <-> TransformerConfig, with the traps that old and new files hold.

A released config.json leaves out what equals the default of its class in transformers, so those defaults are part of the format.
"""

import logging
from typing import Any

from grm_jax.models.config import CONFIGS, LayerSpec, TransformerConfig

log = logging.getLogger(__name__)

# What a missing key means: the defaults of transformers' Gemma2Config and Gemma3TextConfig.
_BOTH = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "tie_word_embeddings": True, "attention_bias": False, "use_bidirectional_attention": False,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": _BOTH | {"vocab_size": 256_000, "max_position_embeddings": 8192, "rope_theta": 10_000.0, "sliding_window_pattern": 2,
                       "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _BOTH | {"vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0,
                            "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6,
                            "attn_logit_softcapping": None, "final_logit_softcapping": None},
}  # fmt: skip
ARCHITECTURES = (
    "Gemma2ForCausalLM", "Gemma2ForSequenceClassification", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
    "Gemma3TextForSequenceClassification",
)  # fmt: skip
# What our arithmetic has no other way for.
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}


def from_hf(config: dict[str, Any], name: str = "model") -> TransformerConfig:
    """The model that a config.json describes, named after the released size it equals, or `name`.

    Raises ValueError that names the key for an architecture, activation, RoPE type or layer kind that Gemma 2 and 3 do not have.
    """
    architecture = (
        config.get("architectures")
        or ["Gemma2ForCausalLM" if config.get("model_type") == "gemma2" else "Gemma3ForCausalLM"]
    )[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{name}: architecture {architecture!r} is not read here: use one of {', '.join(ARCHITECTURES)}"
        )
    text = config.get(
        "text_config", config
    )  # Gemma3ForConditionalGeneration nests the language model
    kind = "gemma2" if architecture.startswith("Gemma2") else "gemma3_text"
    given = {k: v for k, v in text.items() if v is not None or k.endswith("softcapping")}
    c = DEFAULTS[kind] | given
    for key, value in FIXED.items():
        # `hidden_act` is no key of these models: the first Gemma files say "gelu" there and mean the tanh approximation.
        if c[key] != value:
            raise ValueError(
                f"{name}: {key}={c[key]!r} in config.json is not a released Gemma: only {value!r} is supported"
            )
    classifier = architecture.endswith("SequenceClassification")
    labels = config.get("num_labels") or len(config.get("id2label") or {"0": ""})
    if classifier and labels != 1:
        raise ValueError(
            f"{name}: a classifier of {labels} labels has no single reward: num_labels must be 1"
        )
    cfg = TransformerConfig(
        name=name, vocab_size=c["vocab_size"], num_layers=c["num_hidden_layers"], d_model=c["hidden_size"], d_ff=c["intermediate_size"],
        num_heads=c["num_attention_heads"], num_kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"],
        query_pre_attn_scalar=c["query_pre_attn_scalar"], pattern=_pattern(c, kind, name), attn_cap=c["attn_logit_softcapping"],
        final_cap=c["final_logit_softcapping"], qk_norm=kind == "gemma3_text", norm_eps=c["rms_norm_eps"],
        max_length=c["max_position_embeddings"], scalar_head=classifier,
    )  # fmt: skip
    released = released_like(cfg)
    if released is None:
        return cfg
    if released.name == "gemma2_9b" and cfg.query_pre_attn_scalar == 224:
        log.warning(
            "%s: query_pre_attn_scalar 224 is a known mistake of early Gemma 2 9B files: 256 is used",
            name,
        )
        cfg = cfg.replace(query_pre_attn_scalar=256)
    return cfg.replace(name=released.name)


def released_like(cfg: TransformerConfig) -> TransformerConfig | None:
    """The named config of the same sizes, or None. The vocabulary may differ: multimodal files have 64 rows more."""

    def sizes(c):
        return (c.num_layers, c.d_model, c.d_ff, c.num_heads, c.num_kv_heads, c.head_dim, c.qk_norm)

    return next(
        (c for c in CONFIGS.values() if not c.name.startswith("tiny") and sizes(c) == sizes(cfg)),
        None,
    )


def _pattern(c: dict[str, Any], kind: str, name: str) -> tuple[LayerSpec, ...]:
    layers, every = c["num_hidden_layers"], c["sliding_window_pattern"]
    types = c.get("layer_types") or [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)
    ]
    if len(types) != layers:
        raise ValueError(f"{name}: layer_types lists {len(types)} layers of {layers}")
    rope = _rope(c, kind, name)
    specs = {
        "sliding_attention": LayerSpec(c["sliding_window"], *rope["sliding_attention"]),
        "full_attention": LayerSpec(None, *rope["full_attention"]),
    }
    if unknown := set(types) - set(specs):
        raise ValueError(
            f"{name}: layer type {sorted(unknown)[0]!r} is unknown: Gemma 2 and 3 have {' and '.join(specs)}"
        )
    period = next(
        p for p in range(1, layers + 1) if all(types[i] == types[i % p] for i in range(layers))
    )
    return tuple(specs[t] for t in types[:period])


def _rope(c: dict[str, Any], kind: str, name: str) -> dict[str, tuple[float, float]]:
    """(base, position scale) of both kinds of layer, from the old keys (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`)."""
    new = c.get("rope_parameters") or {}
    if kind == "gemma2":
        both = {"rope_theta": c["rope_theta"]} | (c.get("rope_scaling") or {}) | new
        read = {"sliding_attention": both, "full_attention": both}
    else:  # scaling is of the global layers only
        read = {
            "sliding_attention": {"rope_theta": c["rope_local_base_freq"]}
            | new.get("sliding_attention", {}),
            "full_attention": {"rope_theta": c["rope_theta"]}
            | (c.get("rope_scaling") or {})
            | new.get("full_attention", {}),
        }
    out = {}
    for layer_type, rope in read.items():
        how = rope.get("rope_type", rope.get("type", "default"))
        if how not in ("default", "linear"):
            raise ValueError(
                f"{name}: rope_type {how!r} of {layer_type} is not a released Gemma: only default and linear are supported"
            )
        out[layer_type] = (
            float(rope["rope_theta"]),
            float(rope["factor"]) if how == "linear" else 1.0,
        )
    return out


def to_hf(cfg: TransformerConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model, in the keys that old and new versions of transformers and vLLM read.

    Raises ValueError if the layers differ in a way that the format has no word for.
    """
    local = {s for s in cfg.pattern if s.window is not None}
    full = {s for s in cfg.pattern if s.window is None}

    def one(specs, other):
        return next(iter(specs or other))

    a, b = one(local, full), one(full, local)
    same_rope = (a.rope_theta, a.rope_scale) == (b.rope_theta, b.rope_scale)
    if (
        len(local) > 1
        or len(full) > 1
        or (a.rope_scale != 1 and a is not b)
        or not (cfg.qk_norm or same_rope)
    ):
        raise ValueError(
            f"{cfg.name}: its layer pattern {cfg.pattern} cannot be said in a config.json of Gemma 2 or 3"
        )
    specs = [cfg.pattern[i % len(cfg.pattern)] for i in range(cfg.num_layers)]
    head = "ForSequenceClassification" if cfg.scalar_head else "ForCausalLM"
    config = {
        "architectures": [("Gemma3Text" if cfg.qk_norm and cfg.scalar_head else "Gemma3" if cfg.qk_norm else "Gemma2") + head],
        "model_type": "gemma3_text" if cfg.qk_norm else "gemma2",
        "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": cfg.attn_cap, "bos_token_id": 2, "eos_token_id": 1,
        "final_logit_softcapping": cfg.final_cap, "head_dim": cfg.head_dim, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": cfg.d_model, "initializer_range": 0.02, "intermediate_size": cfg.d_ff,
        "layer_types": ["full_attention" if s.window is None else "sliding_attention" for s in specs],
        "max_position_embeddings": cfg.max_length, "num_attention_heads": cfg.num_heads, "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.num_kv_heads, "pad_token_id": 0, "query_pre_attn_scalar": _whole(cfg.query_pre_attn_scalar),
        "rms_norm_eps": cfg.norm_eps, "rope_theta": b.rope_theta, "sliding_window": a.window, "tie_word_embeddings": True,
        "torch_dtype": dtype, "use_cache": True, "vocab_size": cfg.vocab_size,
    }  # fmt: skip
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


def _whole(x: float) -> float | int:
    """256 for 256.0: the format's classes want an integer there."""
    return int(x) if float(x).is_integer() else x
