"""The table of tensor names: ours, Hugging Face's, DeepMind's and GGUF's, with each axis order.

Loading and saving both follow it. Axes: D model width, F ffn width, N query heads, K KV heads, H
head width, V vocabulary rows. A comma separates two dimensions of a tensor on disk; letters without
a comma between them are flattened together; a digit selects one index of a dimension that several
of our arrays share:

    "NH,D"      (N*H, D)                  HF q_proj           q_DxNxH = reshape(N, H, D), transposed
    "1,K,D,H"   index 1 of (2, K, D, H)   DeepMind kv_einsum  v_DxKxH = w[1], transposed

To add a family, add its names below: a parameter may have several rows, of which `when` chooses.

Sources: the released checkpoints; the parameter names of transformers (Gemma2ForCausalLM,
Gemma3ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM), of DeepMind's `gemma` and
of the GGUF converter. All of them rotate halves (RoPE), so nothing is permuted, except that GGUF
interleaves the halves of Llama's queries and keys. GGUF stores a norm of Gemma as 1 + w, the other
formats as w.
"""

import math
from typing import NamedTuple

from grm_jax.models.config import TransformerConfig


class Param(NamedTuple):
    """Names and axes of one of our parameters; GGUF's axes are those of Hugging Face.

    when: a boolean field of the config that the row needs; after "!", it must be false.
    """

    ours: str
    axes: str
    hf: str
    hf_axes: str
    dm: str
    dm_axes: str
    gguf: str
    when: str = ""

    def applies(self, cfg: TransformerConfig) -> bool:
        field = self.when.lstrip("!")
        return not field or bool(getattr(cfg, field)) != self.when.startswith("!")


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
    Param("attn.q_bias_NxH",      "NH",  "self_attn.q_proj.bias",             "NH",
          "", "",                                 "attn_q.bias", when="qkv_bias"),
    Param("attn.k_bias_KxH",      "KH",  "self_attn.k_proj.bias",             "KH",
          "", "",                                 "attn_k.bias", when="qkv_bias"),
    Param("attn.v_bias_KxH",      "KH",  "self_attn.v_proj.bias",             "KH",
          "", "",                                 "attn_v.bias", when="qkv_bias"),
    Param("attn.q_norm.scale",    "H",   "self_attn.q_norm.weight",           "H",
          "attn/_query_norm/scale",    "H",       "attn_q_norm.weight", when="qk_norm"),
    Param("attn.k_norm.scale",    "H",   "self_attn.k_norm.weight",           "H",
          "attn/_key_norm/scale",      "H",       "attn_k_norm.weight", when="qk_norm"),
    Param("post_attn_norm.scale", "D",   "post_attention_layernorm.weight",   "D",
          "post_attention_norm/scale", "D",       "post_attention_norm.weight", when="post_norms"),
    Param("pre_ffw_norm.scale",   "D",   "pre_feedforward_layernorm.weight",  "D",
          "pre_ffw_norm/scale",        "D",       "ffn_norm.weight", when="post_norms"),
    # Families without norms after a block name the norm before the MLP after its place.
    Param("pre_ffw_norm.scale",   "D",   "post_attention_layernorm.weight",   "D",
          "", "",                                 "ffn_norm.weight", when="!post_norms"),
    Param("mlp.gate_DxF",         "DF",  "mlp.gate_proj.weight",              "F,D",
          "mlp/gating_einsum",         "0,F,D",   "ffn_gate.weight"),
    Param("mlp.up_DxF",           "DF",  "mlp.up_proj.weight",                "F,D",
          "mlp/gating_einsum",         "1,F,D",   "ffn_up.weight"),
    Param("mlp.down_FxD",         "FD",  "mlp.down_proj.weight",              "D,F",
          "mlp/linear",                "F,D",     "ffn_down.weight"),
    Param("post_ffw_norm.scale",  "D",   "post_feedforward_layernorm.weight", "D",
          "post_ffw_norm/scale",       "D",       "post_ffw_norm.weight", when="post_norms"),
)
GLOBAL = (
    Param("embedder.table_VxD",   "VD",  "model.embed_tokens.weight",         "V,D",
          "embedder/input_embedding",  "V,D",     "token_embd.weight"),
    Param("final_norm.scale",     "D",   "model.norm.weight",                 "D",
          "final_norm/scale",          "D",       "output_norm.weight"),
    Param("embedder.head_VxD",    "VD",  "lm_head.weight",                    "V,D",
          "", "",                                 "output.weight", when="!tied"),
    Param("score_D",              "D",   "score.weight",                      "0,D",
          "score",                     "D",       "score.weight", when="scalar_head"),
)
# fmt: on

# Prefix of a layer's tensors in each format.
LAYER_PREFIX = {
    "hf": "model.layers.{}.",
    "dm": "layer_{}/",
    "dm_df": "layer_{}/",
    "gguf": "blk.{}.",
}
# Suffixes of an int8 matrix and of its scales: no other library takes one for the float weights.
INT8, SCALE = "_int8", "_scale"
# Tensors that hold two of our arrays, at the indices given by a digit in their axes.
SHARED = ("attn/kv_einsum", "mlp/gating_einsum")
# Norms, which GGUF stores as 1 + w in Gemma's architectures.
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
        instead of (2, F, D); "hf_int8" for our folders of int8 weights.
    """
    if format == "hf_int8":
        return _int8_map(tensor_map(cfg, "hf"))
    out = {}
    for param in GLOBAL:
        if param.applies(cfg):
            out[param.ours] = ParamSource(param.axes, (_disk_tensor(param, format),))
    period = len(cfg.pattern)
    for param in LAYER:
        if not param.applies(cfg):
            continue
        for p in range(period):
            layers = range(p, cfg.num_units * period, period)
            tensors = tuple(_disk_tensor(param, format, i, i // period) for i in layers)
            out[f"units.{p}.{param.ours}"] = ParamSource(param.axes, tensors)
        for t in range(len(cfg.tail)):
            tensor = _disk_tensor(param, format, cfg.num_units * period + t)
            out[f"tail.{t}.{param.ours}"] = ParamSource(param.axes, (tensor,))
    return out


def _int8_map(sources: dict[str, ParamSource]) -> dict[str, ParamSource]:
    """Returns the tensors of values and scales for every matrix of a Hugging Face folder.

    A matrix on disk is (outputs, inputs): it has one scale per output.
    """
    out = {}
    for path, source in sources.items():
        outputs, _, inputs = source.tensors[0].axes.partition(",")
        if not inputs or outputs.isdigit():  # a norm, a bias or the reward head
            out[path] = source
            continue
        values = tuple(t._replace(name=t.name + INT8) for t in source.tensors)
        scales = tuple(t._replace(name=t.name + SCALE, axes=outputs) for t in source.tensors)
        kept = "".join(axis for axis in source.axes if axis in outputs)
        out[f"{path}.values"] = ParamSource(source.axes, values)
        out[f"{path}.scale"] = ParamSource(kept, scales)
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
