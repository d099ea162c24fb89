"""Converts the metadata of a GGUF file to TransformerConfig, by way of its config.json.

A missing key stands for the default of its class in transformers, as in config.json. Where the
class has none, or the released models differ from it, the key is required.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grm_jax.checkpoints.hf_config import from_hf, released_like
from grm_jax.checkpoints.hf_fields import Field
from grm_jax.models.config import LLAMA_3_1, LLAMA_3_2, LayerSpec, Llama3Rope, TransformerConfig
from grm_jax.models.rope import rope_frequencies

if TYPE_CHECKING:
    from grm_jax.checkpoints.gguf_file import GgufFile

# GGUF architecture -> architecture in config.json.
ARCHITECTURES = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
GEMMA = ("gemma2", "gemma3")
# Sizes that a file must have, by the key of config.json.
SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_SIZE, _LAYERS = Field(int, 1, 1 << 24), Field(int, 1, 1000)
_AMOUNT, _BASE, _EPSILON = Field(float, 0, 1e12), Field(float, 1, 1e12), Field(float, 0, 1)
# Other keys that are read, and those that do not change the model's numbers.
_READ = (
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.scale", "attention.sliding_window",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "vocab_size",
)  # fmt: skip
_READ_OF_GEMMA = (
    "attention.sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
_READ_OF_GEMMA3 = ("rope.freq_base_swa", "rope.global.freq_base", "rope.local.freq_base")
_WITHOUT_EFFECT = ("rope.scaling.original_context_length", "rope.scaling.finetuned", "pooling_type")
VISION = ("vision.", "mm.", "v.")  # the image encoder that some files of Gemma 3 have beside it
# Keys that have one supported value.
_FIXED: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "use_parallel_residual": False,
    "rope.scaling.attn_factor": 1.0,
}
ROPE_FACTORS = "rope_freqs.weight"  # divisors of the frequencies of a Llama 3.1 or newer
_CONVERT = "convert the Hugging Face folder instead"


def read_config(file: "GgufFile") -> TransformerConfig:
    """Returns the model that the metadata describes.

    The query scale, which GGUF does not store, is that of the registered model of these sizes, or
    else the head width.

    Raises:
      ValueError: names a key that is missing and has no default, or that is not supported.
    """
    if file.architecture not in ARCHITECTURES:
        raise ValueError(
            f"GGUF architecture {file.architecture!r:.80} is not supported: "
            f"use {', '.join(ARCHITECTURES)}"
        )
    _check_keys(file)
    name = Path(file.path).stem
    sizes = _sizes(file)
    released = released_like(from_hf(sizes, name, file.path))
    cfg = from_hf(sizes | _details(file, sizes, released), name, file.path)
    _check_scale(file, cfg)
    return cfg if file.architecture in GEMMA else _scaled(file, cfg, released)


def _check_keys(file: "GgufFile") -> None:
    """Refuses keys of the architecture that change its numbers in an unsupported way."""
    known = {*SIZES.values(), *_READ, *_WITHOUT_EFFECT}
    known |= set(_READ_OF_GEMMA if file.architecture in GEMMA else ())
    is_gemma3 = file.architecture == "gemma3"
    known |= set(_READ_OF_GEMMA3 if is_gemma3 else ())
    for key in file.fields:
        name = key.removeprefix(f"{file.architecture}.")
        if name == key or name in known or (is_gemma3 and name.startswith(VISION)):
            continue
        value = file.field(key)
        if name not in _FIXED or value != _FIXED[name]:
            raise ValueError(f"{key} = {value!r:.80} is not supported: {_CONVERT}")


def _sizes(file: "GgufFile") -> dict[str, Any]:
    """Returns the sizes in the keys of config.json, checked against the tensors."""
    arch, sizes = file.architecture, {}
    if (table := file.tensors.get("token_embd.weight")) is None:
        raise ValueError("the tensor token_embd.weight is missing")
    for key, name in SIZES.items():
        sizes[key] = _number(file, name, _LAYERS if key == "num_hidden_layers" else _SIZE)
        if sizes[key] is None:
            raise ValueError(f"{arch}.{name} is missing, and has no default")
    if table.shape[1:] != (sizes["hidden_size"],):
        raise ValueError(
            f"{arch}.embedding_length = {sizes['hidden_size']}, and token_embd.weight has the "
            f"shape {table.shape}"
        )
    blocks = set(map(_block_of, file.tensors)) - {None}
    if blocks and blocks != set(range(sizes["num_hidden_layers"])):
        raise ValueError(
            f"{arch}.block_count = {sizes['num_hidden_layers']}, and the tensors are of "
            f"{len(blocks)} layers"
        )
    head_dim = _number(file, "attention.key_length", _SIZE)
    head_dim = head_dim or _rows(file, "attn_q", sizes["num_attention_heads"])
    kv_heads = _number(file, "attention.head_count_kv", _SIZE)
    kv_heads = kv_heads or _rows(file, "attn_k", head_dim)
    rows = table.shape[0]
    for name, expected in (
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("vocab_size", rows),
    ):
        if (value := _number(file, name, _SIZE)) not in (None, expected):
            raise ValueError(f"{arch}.{name} = {value} is not supported: use {expected}")
    return sizes | {
        "architectures": [ARCHITECTURES[arch]],
        "vocab_size": rows,
        "head_dim": head_dim,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _rows(file: "GgufFile", tensor: str, width: int) -> int:
    """Returns the rows of a tensor of the first layer / width, for a missing size."""
    first = file.tensors.get(f"blk.0.{tensor}.weight")
    if first is None or first.shape[0] % width:
        raise ValueError(
            f"{file.architecture}.attention.key_length or head_count_kv is missing, and "
            f"blk.0.{tensor}.weight does not give it"
        )
    return int(first.shape[0]) // width


def _details(
    file: "GgufFile", sizes: dict[str, Any], released: TransformerConfig | None
) -> dict[str, Any]:
    """Returns norms, RoPE, windows and caps in the keys of config.json; absent: the default.

    released: the registered model of these sizes, for what differs among the released models.
    """
    arch = file.architecture
    fields: dict[str, Any] = {}
    eps = _number(file, "attention.layer_norm_rms_epsilon", _EPSILON)
    theta = _number(file, "rope.freq_base", _BASE)
    theta = theta or _number(file, "rope.global.freq_base", _BASE)
    window = _number(file, "attention.sliding_window", _SIZE)
    if arch not in GEMMA:
        # Released models differ in both; of Llama 1 and 2, the base is the class default.
        if eps is None:
            raise ValueError(f"{arch}.attention.layer_norm_rms_epsilon is missing: {_CONVERT}")
        if theta is None and (arch, sizes["vocab_size"]) != ("llama", 32_000):
            raise ValueError(f"{arch}.rope.freq_base is missing: {_CONVERT}")
        if window is not None and window < sizes["max_position_embeddings"]:
            raise ValueError(f"{arch}.attention.sliding_window is not supported: {_CONVERT}")
    if eps is not None:
        fields["rms_norm_eps"] = float(f"{eps:.6g}")
    if theta is not None:
        fields["rope_theta"] = theta
    fields |= _rope_scaling(file, released)
    return fields | (_gemma_details(file, sizes, released, window) if arch in GEMMA else {})


def _gemma_details(
    file: "GgufFile", sizes: dict[str, Any], released: TransformerConfig | None, window: int | None
) -> dict[str, Any]:
    """Returns query scale, windows, caps and local RoPE of Gemma in the keys of config.json."""
    scalar = released.query_pre_attn_scalar if released else sizes["head_dim"]
    fields: dict[str, Any] = {"query_pre_attn_scalar": scalar}
    if file.architecture == "gemma3":
        if window is None:
            if released is None:
                raise ValueError(
                    "gemma3.attention.sliding_window is missing: it is 512 or 1024 by model size"
                )
            window = released.pattern[0].window
        local = _number(file, "rope.freq_base_swa", _BASE)
        local = local or _number(file, "rope.local.freq_base", _BASE)
        if local is not None:
            fields["rope_local_base_freq"] = local
    if window is not None:
        fields["sliding_window"] = window
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (value := _number(file, cap, _AMOUNT)) is not None:
            fields[cap] = value or None  # 0 disables it
    return fields | _pattern(file, sizes["num_hidden_layers"])


def _pattern(file: "GgufFile", layers: int) -> dict[str, Any]:
    """Returns which layers are local, of Gemma: every n-th is global, or a list of booleans."""
    key = f"{file.architecture}.attention.sliding_window_pattern"
    value = file.field(key)
    if value is None:
        return {}
    if type(value) is int and 1 <= value <= layers:
        return {"sliding_window_pattern": value}
    if isinstance(value, list) and len(value) == layers and set(value) <= {True, False}:
        names = {True: "sliding_attention", False: "full_attention"}
        return {"layer_types": [names[local] for local in value]}
    raise ValueError(f"{key} = {value!r:.80} is not a period, nor a list of {layers} booleans")


def _rope_scaling(file: "GgufFile", released: TransformerConfig | None) -> dict[str, Any]:
    """Returns the scaling of RoPE: none or linear, as llama.cpp a factor alone means linear.

    Gemma 3 models of 4B and more have a factor of 8, which some files lack.
    """
    arch = file.architecture
    kind = file.field(f"{arch}.rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise ValueError(f"RoPE scaling {kind!r:.80} ({arch}.rope.scaling.type) is not supported")
    factor = _number(file, "rope.scaling.factor", _AMOUNT)
    if kind == "none":
        return {}
    if not factor and arch == "gemma3" and released is not None:
        factor = released.pattern[-1].rope_scale
    if not factor and kind == "linear":
        raise ValueError(f"{arch}.rope.scaling.factor is missing, and the type is linear")
    if not factor or factor == 1:
        return {}
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}}


def _check_scale(file: "GgufFile", cfg: TransformerConfig) -> None:
    """Raises ValueError if the scale of the attention logits differs from the model's own."""
    scale, own = _number(file, "attention.scale", _AMOUNT), cfg.query_pre_attn_scalar**-0.5
    if scale and abs(scale - own) > 1e-4 * own:
        raise ValueError(
            f"{file.architecture}.attention.scale = {scale:g} is not supported: "
            f"the scale of this model is {own:g}"
        )


def _scaled(
    file: "GgufFile", cfg: TransformerConfig, released: TransformerConfig | None
) -> TransformerConfig:
    """Returns the configuration with Llama 3's scaling of RoPE if the file has its factors."""
    (spec,) = cfg.pattern
    if file.rope_factors is None:
        own = released.pattern[0] if released and released.vocab_size == cfg.vocab_size else spec
        scaled = own.llama3_rope is not None and own.rope_theta == spec.rope_theta
        if scaled and cfg.max_length > 8192:  # not Llama 3.0
            raise ValueError(f"the tensor {ROPE_FACTORS} is missing: {_CONVERT}")
        return cfg
    spec = dataclasses.replace(spec, llama3_rope=_llama3_rope(file, spec, cfg.head_dim))
    return cfg.replace(pattern=(spec,))


def _number(file: "GgufFile", name: str, kind: Field) -> Any:
    """Returns a number of the architecture, None if it is absent.

    Raises ValueError for another type or a number outside its range.
    """
    value = file.field(f"{file.architecture}.{name}")
    if value is None:
        return None
    if not kind.accepts(value):
        raise ValueError(f"{file.architecture}.{name} = {value!r:.80} is wrong: use {kind}")
    return kind.kind(value)


def _llama3_rope(file: "GgufFile", spec: LayerSpec, head_dim: int) -> Llama3Rope:
    """Returns the scaling of Llama 3 with the frequency divisors of the file."""
    stored = np.empty(head_dim // 2, np.float32)
    assert file.rope_factors is not None
    if file.rope_factors.shape != stored.shape:
        raise ValueError(f"{ROPE_FACTORS} has the shape {file.rope_factors.shape}")
    file.rope_factors.read_into(stored.shape, (slice(0, len(stored)),), stored)
    for rope in (LLAMA_3_1, LLAMA_3_2):
        if np.allclose(stored, llama3_divisors(spec, head_dim, rope), rtol=1e-3):
            return rope
    raise ValueError(
        f"the RoPE factors {stored.min():g} to {stored.max():g} are not those of "
        f"Llama 3.1 or 3.2: {_CONVERT}"
    )


def _block_of(name: str) -> int | None:
    """Returns the layer of a tensor `blk.N....`."""
    prefix, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if prefix == "blk" and number.isascii() and number.isdigit() else None


def llama3_divisors(spec: LayerSpec, head_dim: int, rope: Llama3Rope) -> np.ndarray:
    """Returns what Llama 3's scaling divides each RoPE frequency by, float32 (head_dim / 2,)."""
    scaled = dataclasses.replace(spec, llama3_rope=rope)
    return np.asarray(
        rope_frequencies(spec, head_dim) / rope_frequencies(scaled, head_dim), np.float32
    )
