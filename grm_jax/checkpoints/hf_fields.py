"""The fields of config.json that are read: class defaults, types, ranges, supported values.

A released config.json omits keys that equal the default of its class in transformers, so these
defaults are part of the format.
"""

import math
from typing import Any, NamedTuple

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
# Keys with only one supported value. Gemma's `hidden_act` is not one of them: the first files set
# it to "gelu", but the models were trained with the tanh approximation.
_FIXED = {
    "attention_bias": False,
    "quantization_config": None,
    "is_causal": True,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
}
_GEMMA_FIXED = _FIXED | {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}
_PLAIN_FIXED = _FIXED | {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False}


class Field(NamedTuple):
    """A type, and the bounds of a number. null: whether JSON's null is a value of its own."""

    kind: type
    low: float = -math.inf
    high: float = math.inf
    null: bool = False

    def __str__(self) -> str:
        names = {bool: "true or false", str: "a text", dict: "an object", list: "a list"}
        number = f"a {'whole ' * (self.kind is int)}number from {self.low:,g} to {self.high:,g}"
        return names.get(self.kind, number) + " or null" * self.null

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.null
        kinds = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in kinds:  # not isinstance: true is no number
            return False
        return self.kind not in (int, float) or self.low <= value <= self.high


# The bounds exceed every released model by far; within them, a shape is computed in no time.
_COUNT = Field(int, 1, 1 << 13)
FIELDS = {
    "architectures": Field(list, null=True),
    "model_type": Field(str, null=True),
    "text_config": Field(dict),
    "num_labels": Field(int, 1, 1 << 20, null=True),
    "id2label": Field(dict, null=True),
    "pad_token_id": Field(int, -1, 1 << 24, null=True),
    "vocab_size": Field(int, 1, 1 << 24),
    "hidden_size": Field(int, 1, 1 << 18),
    "intermediate_size": Field(int, 1, 1 << 20),
    "num_hidden_layers": Field(int, 1, 1 << 10),
    "num_attention_heads": _COUNT,
    "num_key_value_heads": _COUNT,
    "head_dim": Field(int, 2, 1 << 13),
    "max_position_embeddings": Field(int, 1, 1 << 25),
    "rms_norm_eps": Field(float, 1e-12, 0.1),
    "query_pre_attn_scalar": Field(float, 1e-3, 1e6),
    "attn_logit_softcapping": Field(float, 1e-3, 1e6, null=True),
    "final_logit_softcapping": Field(float, 1e-3, 1e6, null=True),
    "sliding_window": Field(int, 1, 1 << 25),
    "sliding_window_pattern": Field(int, 1, 1 << 10),
    "layer_types": Field(list, null=True),
    "rope_theta": Field(float, 1, 1e12),
    "rope_local_base_freq": Field(float, 1, 1e12),
    "rope_scaling": Field(dict, null=True),
    "rope_parameters": Field(dict, null=True),
    "tie_word_embeddings": Field(bool),
}
# Keys of Llama and Qwen that their files may set to null, and that only Gemma reads.
_NULL_IN_PLAIN = ("num_key_value_heads", "head_dim", "sliding_window")
_OF_GEMMA = (
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window",
    "sliding_window_pattern", "rope_local_base_freq",
)  # fmt: skip
# Keys of rope_scaling and rope_parameters.
ROPE_FIELDS = {
    "rope_type": Field(str),
    "type": Field(str),
    "rope_theta": FIELDS["rope_theta"],
    "factor": Field(float, 1, 1e6),
    "low_freq_factor": Field(float, 1e-3, 1e6),
    "high_freq_factor": Field(float, 1e-3, 1e6),
    "original_max_position_embeddings": FIELDS["max_position_embeddings"],
    "partial_rotary_factor": Field(float, 1, 1),
}
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip


def read_fields(text: dict[str, Any], model_type: str, source: str) -> dict[str, Any]:
    """Returns the fields of a model's class, with its defaults for absent keys.

    Args:
      text: config.json, or its text_config.
      source: names the folder in errors.

    Raises:
      ValueError: names the field with a wrong type, range or unsupported value.
    """
    is_gemma = model_type.startswith("gemma")
    defaults = DEFAULTS[model_type]
    fields = {}
    for key, value in (defaults | text).items():
        if key not in FIELDS or (not is_gemma and key in _OF_GEMMA):
            continue
        field = FIELDS[key]
        if not is_gemma and key in _NULL_IN_PLAIN:
            field = field._replace(null=True)
            # Without this field there are as many key-value heads as heads.
            value = defaults[key] if value is None and key != "num_key_value_heads" else value
        check_field(key, value, field, source)
        fields[key] = value
    check_supported(text, model_type, source)
    return fields


def check_supported(config: dict[str, Any], model_type: str, source: str) -> None:
    """Raises ValueError for a value that changes the numbers and is not supported."""
    fixed = _GEMMA_FIXED if model_type.startswith("gemma") else _PLAIN_FIXED
    for key, supported in fixed.items():
        value = config.get(key, supported)
        if value is not None and (value != supported or type(value) is not type(supported)):
            raise ValueError(
                f"{source}: {key}={value!r:.60} in config.json is not supported: "
                f"released models of type {model_type} have {supported!r}"
            )


def check_field(key: str, value: Any, field: Field, source: str) -> None:
    """Raises ValueError with the field and the value if it is not of this type and range."""
    if not field.accepts(value):
        raise ValueError(f"{source}: {key}={value!r:.60} in config.json is wrong: give {field}")


class Rope(NamedTuple):
    """RoPE of one kind of layer. values: of the other keys of its type, ordered as ROPE_KEYS."""

    theta: float
    kind: str
    values: dict[str, float]


def read_rope(rope: dict[str, Any], model_type: str, source: str, layers: str = "") -> Rope:
    """Returns a rope_scaling or rope_parameters, to which rope_theta was added.

    layers: " of KIND", for errors.

    Raises:
      ValueError: names the key that is unknown, missing or wrong.
    """
    rope = {key: value for key, value in rope.items() if value is not None}
    for key, value in rope.items():
        if key not in ROPE_FIELDS:
            raise ValueError(
                f"{source}: {key!r:.40} of RoPE in config.json is unknown: remove it, or give one "
                f"of {', '.join(ROPE_FIELDS)}"
            )
        check_field(key, value, ROPE_FIELDS[key], source)
    kind = rope.get("rope_type", rope.get("type"))
    if kind is None and not rope.keys() - {"rope_theta", "partial_rotary_factor"}:
        kind = "default"
    kinds = [k for k in ROPE_KEYS if k != "llama3" or not model_type.startswith("gemma")]
    if kind not in kinds:
        raise ValueError(
            f"{source}: rope_type {kind!r:.40}{layers} is not supported: "
            f"released models of type {model_type} have {', '.join(kinds)}"
        )
    if missing := [key for key in ROPE_KEYS[kind] if key not in rope]:
        raise ValueError(
            f"{source}: rope_type {kind!r}{layers} in config.json lacks {missing[0]}: add it"
        )
    if kind == "default" and rope.get("factor", 1) != 1:
        raise ValueError(
            f"{source}: factor={rope['factor']} in config.json has no effect with rope_type "
            f"'default'{layers}: set rope_type, or remove the factor"
        )
    values = {key: float(rope[key]) for key in ROPE_KEYS[kind]}
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise ValueError(
            f"{source}: high_freq_factor={values['high_freq_factor']} in config.json is not above "
            f"low_freq_factor={values['low_freq_factor']}: correct them"
        )
    return Rope(float(rope["rope_theta"]), kind, values)
