"""The table of tensor names: ours, Hugging Face's, DeepMind's and GGUF's, with each axis order.

Loading and saving both follow it. Axes: D model width, F ffn width, N query heads, K KV heads, H
head width, V vocabulary rows. A comma separates two dimensions of a tensor on disk; letters without
a comma between them are flattened together; a digit selects one index of a dimension that several
of our arrays share:

    "NH,D"      (N*H, D)                  HF q_proj           q_DxNxH = reshape(N, H, D), transposed
    "1,K,D,H"   index 1 of (2, K, D, H)   DeepMind kv_einsum  v_DxKxH = w[1], transposed

Sources: the released checkpoints; the parameter names of transformers (Gemma2ForCausalLM,
Gemma3ForCausalLM), of DeepMind's `gemma` and of the GGUF converter. All of them rotate halves
(RoPE), so nothing is permuted. All but GGUF store a norm as the w of (1 + w).
"""

import math
from typing import NamedTuple

from grm_jax.models.config import TransformerConfig


class Param(NamedTuple):
    """Names and axes of one of our parameters; GGUF's axes are those of Hugging Face."""

    ours: str
    axes: str
    hf: str
    hf_axes: str
    dm: str
    dm_axes: str
    gguf: str


# fmt: off
LAYER = (
    Param("pre_attn_norm.scale",  "D",   "input_layernorm.weight",            "D",
          "pre_attention_norm/scale",  "D",       "attn_norm.weight"),
    Param("attn.q_DxNxH",         "DNH", "self_attn.q_proj.weight",           "NH,D",
          "attn/q_einsum",             "N,D,H",   "attn_q.weight"),
    Param("attn.k_DxKxH",         "DKH", "self_attn.k_proj.weight",           "KH,D",
          "attn/kv_einsum",            "0,K,D,H", "attn_k.weight"),
    Param("attn.v_DxKxH",         "DKH", "self_attn.v_proj.weight",           "KH,D",
          "attn/kv_einsum",            "1,K,D,H", "attn_v.weight"),
    Param("attn.o_NxHxD",         "NHD", "self_attn.o_proj.weight",           "D,NH",
          "attn/attn_vec_einsum",      "N,H,D",   "attn_output.weight"),
    Param("attn.q_norm.scale",    "H",   "self_attn.q_norm.weight",           "H",
          "attn/_query_norm/scale",    "H",       "attn_q_norm.weight"),
    Param("attn.k_norm.scale",    "H",   "self_attn.k_norm.weight",           "H",
          "attn/_key_norm/scale",      "H",       "attn_k_norm.weight"),
    Param("post_attn_norm.scale", "D",   "post_attention_layernorm.weight",   "D",
          "post_attention_norm/scale", "D",       "post_attention_norm.weight"),
    Param("pre_ffw_norm.scale",   "D",   "pre_feedforward_layernorm.weight",  "D",
          "pre_ffw_norm/scale",        "D",       "ffn_norm.weight"),
    Param("mlp.gate_DxF",         "DF",  "mlp.gate_proj.weight",              "F,D",
          "mlp/gating_einsum",         "0,F,D",   "ffn_gate.weight"),
    Param("mlp.up_DxF",           "DF",  "mlp.up_proj.weight",                "F,D",
          "mlp/gating_einsum",         "1,F,D",   "ffn_up.weight"),
    Param("mlp.down_FxD",         "FD",  "mlp.down_proj.weight",              "D,F",
          "mlp/linear",                "F,D",     "ffn_down.weight"),
    Param("post_ffw_norm.scale",  "D",   "post_feedforward_layernorm.weight", "D",
          "post_ffw_norm/scale",       "D",       "post_ffw_norm.weight"),
)
GLOBAL = (
    Param("embedder.table_VxD",   "VD",  "model.embed_tokens.weight",         "V,D",
          "embedder/input_embedding",  "V,D",     "token_embd.weight"),
    Param("final_norm.scale",     "D",   "model.norm.weight",                 "D",
          "final_norm/scale",          "D",       "output_norm.weight"),
    Param("score_D",              "D",   "score.weight",                      "0,D",
          "score",                     "D",       "score.weight"),
)
# fmt: on

# Prefix of a layer's tensors in each format.
LAYER_PREFIX = {
    "hf": "model.layers.{}.",
    "dm": "layer_{}/",
    "dm_df": "layer_{}/",
    "gguf": "blk.{}.",
}
# Tensors that hold two of our arrays, at the indices given by a digit in their axes.
SHARED = ("attn/kv_einsum", "mlp/gating_einsum")
# Norms, which GGUF stores as 1 + w.
GGUF_NORMS = tuple(param.gguf for param in LAYER + GLOBAL if param.ours.endswith("scale"))


class DiskTensor(NamedTuple):
    """A tensor that holds one parameter, or one layer of a stacked parameter.

    unit: index on the stacked axis; None for a parameter that is not stacked.
    """

    unit: int | None
    name: str
    axes: str


class ParamSource(NamedTuple):
    """Axes of one of our parameters without the stacked axis, and its tensors on disk in order."""

    axes: str
    tensors: tuple[DiskTensor, ...]


def tensor_map(cfg: TransformerConfig, format: str) -> dict[str, ParamSource]:
    """Returns the tensors on disk of every parameter of the model, by our parameter path.

    Layer i is `units.{i % p}` at index i // p, where p is the length of the layer pattern; layers
    after the last whole unit are `tail`.

    Args:
      format: "hf", "gguf", "dm", or "dm_df" for DeepMind's Gemma 2 2B, whose gates are (2, D, F)
        instead of (2, F, D).
    """
    out = {}
    for param in GLOBAL:
        if param.ours != "score_D" or cfg.scalar_head:
            out[param.ours] = ParamSource(param.axes, (_disk_tensor(param, format),))
    period = len(cfg.pattern)
    for param in LAYER:
        if param.ours in ("attn.q_norm.scale", "attn.k_norm.scale") and not cfg.qk_norm:
            continue
        for p in range(period):
            layers = range(p, cfg.num_units * period, period)
            tensors = tuple(_disk_tensor(param, format, i, i // period) for i in layers)
            out[f"units.{p}.{param.ours}"] = ParamSource(param.axes, tensors)
        for t in range(len(cfg.tail)):
            tensor = _disk_tensor(param, format, cfg.num_units * period + t)
            out[f"tail.{t}.{param.ours}"] = ParamSource(param.axes, (tensor,))
    return out


def _disk_tensor(
    param: Param, format: str, layer: int | None = None, unit: int | None = None
) -> DiskTensor:
    prefix = "" if layer is None else LAYER_PREFIX[format].format(layer)
    if format in ("hf", "gguf"):
        return DiskTensor(unit, prefix + getattr(param, format), param.hf_axes)
    swapped = format == "dm_df" and param.dm.endswith("gating_einsum")
    axes = param.dm_axes.replace("F,D", "D,F") if swapped else param.dm_axes
    return DiskTensor(unit, prefix + param.dm, axes)


def axis_sizes(cfg: TransformerConfig) -> dict[str, int]:
    """Returns the length of each axis letter."""
    return {
        "D": cfg.d_model,
        "F": cfg.d_ff,
        "N": cfg.num_heads,
        "K": cfg.num_kv_heads,
        "H": cfg.head_dim,
        "V": cfg.vocab_size + cfg.vocab_pad,
    }


def disk_shape(tensor: DiskTensor, sizes: dict[str, int]) -> tuple[int, ...]:
    """Returns the shape that a tensor must have on disk."""
    shared = 2 if tensor.name.endswith(SHARED) else 1
    return tuple(
        math.prod(shared if axis.isdigit() else sizes[axis] for axis in dimension)
        for dimension in tensor.axes.split(",")
    )
