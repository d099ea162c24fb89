"""The one table of names: ours <-> Hugging Face <-> DeepMind <-> GGUF, with the axis order of each. Reading and writing both use it.

Axes: D model width, F ffn width, N query heads, K KV heads, H head width, V vocabulary rows.

An axis string lists a tensor's dimensions on disk, a comma between two dimensions; several letters in one are flattened together, and a
digit picks one index of a dimension that holds several of our arrays:

    "NH,D"      (N*H, D)         Hugging Face q_proj           our q_DxNxH  = reshape(N, H, D) -> transpose to D, N, H
    "1,K,D,H"   index 1 of (2, K, D, H)   DeepMind kv_einsum   our v_DxKxH  = w[1] -> transpose to D, K, H

Sources: the released checkpoints themselves; the parameter names of transformers (Gemma2ForCausalLM, Gemma3ForCausalLM), of DeepMind's `gemma`
and of the GGUF converter. Every side rotates halves, so that no permutation is needed; every side but GGUF stores norms as w of (1 + w).
"""

from typing import NamedTuple

from grm_jax.models.config import TransformerConfig


class Row(NamedTuple):
    """One of our arrays: our name and axes, then each format's. The axes of GGUF are those of Hugging Face."""

    ours: str
    axes: str
    hf: str
    hf_axes: str
    dm: str
    dm_axes: str
    gguf: str


# fmt: off
BLOCK = (
    Row("pre_attn_norm.scale",  "D",   "input_layernorm.weight",            "D",    "pre_attention_norm/scale",  "D",       "attn_norm.weight"),
    Row("attn.q_DxNxH",         "DNH", "self_attn.q_proj.weight",           "NH,D", "attn/q_einsum",             "N,D,H",   "attn_q.weight"),
    Row("attn.k_DxKxH",         "DKH", "self_attn.k_proj.weight",           "KH,D", "attn/kv_einsum",            "0,K,D,H", "attn_k.weight"),
    Row("attn.v_DxKxH",         "DKH", "self_attn.v_proj.weight",           "KH,D", "attn/kv_einsum",            "1,K,D,H", "attn_v.weight"),
    Row("attn.o_NxHxD",         "NHD", "self_attn.o_proj.weight",           "D,NH", "attn/attn_vec_einsum",      "N,H,D",   "attn_output.weight"),
    Row("attn.q_norm.scale",    "H",   "self_attn.q_norm.weight",           "H",    "attn/_query_norm/scale",    "H",       "attn_q_norm.weight"),
    Row("attn.k_norm.scale",    "H",   "self_attn.k_norm.weight",           "H",    "attn/_key_norm/scale",      "H",       "attn_k_norm.weight"),
    Row("post_attn_norm.scale", "D",   "post_attention_layernorm.weight",   "D",    "post_attention_norm/scale", "D",       "post_attention_norm.weight"),
    Row("pre_ffw_norm.scale",   "D",   "pre_feedforward_layernorm.weight",  "D",    "pre_ffw_norm/scale",        "D",       "ffn_norm.weight"),
    Row("mlp.gate_DxF",         "DF",  "mlp.gate_proj.weight",              "F,D",  "mlp/gating_einsum",         "0,F,D",   "ffn_gate.weight"),
    Row("mlp.up_DxF",           "DF",  "mlp.up_proj.weight",                "F,D",  "mlp/gating_einsum",         "1,F,D",   "ffn_up.weight"),
    Row("mlp.down_FxD",         "FD",  "mlp.down_proj.weight",              "D,F",  "mlp/linear",                "F,D",     "ffn_down.weight"),
    Row("post_ffw_norm.scale",  "D",   "post_feedforward_layernorm.weight", "D",    "post_ffw_norm/scale",       "D",       "post_ffw_norm.weight"),
)
OUTSIDE = (
    Row("embedder.table_VxD",   "VD",  "model.embed_tokens.weight",         "V,D",  "embedder/input_embedding",  "V,D",     "token_embd.weight"),
    Row("final_norm.scale",     "D",   "model.norm.weight",                 "D",    "final_norm/scale",          "D",       "output_norm.weight"),
    Row("score_D",              "D",   "score.weight",                      "0,D",  "score",                     "D",       "score.weight"),
)
# fmt: on

# Where the layers stand in each format.
LAYER = {"hf": "model.layers.{}.", "dm": "layer_{}/", "dm_df": "layer_{}/", "gguf": "blk.{}."}


# The norms, which GGUF stores as 1 + w.
GGUF_NORMS = tuple(row.gguf for row in BLOCK + OUTSIDE if row.ours.endswith("scale"))


class Part(NamedTuple):
    """Where one array, or one layer of a stacked array, lies on disk. `unit` is its index on the stacked axis (None: not stacked)."""

    unit: int | None
    name: str
    axes: str


class Place(NamedTuple):
    """One of our arrays: its own axes without the stacked one, and its parts in order."""

    axes: str
    parts: tuple[Part, ...]


def places(cfg: TransformerConfig, form: str) -> dict[str, Place]:
    """Our parameter path -> where it lies in format `form`, for every parameter of the model.

    form: "hf", "gguf", "dm", or "dm_df" for DeepMind's Gemma 2 2B, whose gates lie as (2, D, F) and not (2, F, D).
    Layer i is unit i // len(pattern), place i % len(pattern); the layers past the last whole unit are `tail`.
    """
    out = {}
    for row in OUTSIDE:
        if row.ours != "score_D" or cfg.scalar_head:
            out[row.ours] = Place(row.axes, (_part(row, form, None, ""),))
    width = len(cfg.pattern)
    for row in BLOCK:
        if row.ours in ("attn.q_norm.scale", "attn.k_norm.scale") and not cfg.qk_norm:
            continue
        for p in range(width):
            parts = tuple(
                _part(row, form, u, LAYER[form].format(u * width + p)) for u in range(cfg.num_units)
            )
            out[f"units.{p}.{row.ours}"] = Place(row.axes, parts)
        for t in range(len(cfg.tail)):
            out[f"tail.{t}.{row.ours}"] = Place(
                row.axes, (_part(row, form, None, LAYER[form].format(cfg.num_units * width + t)),)
            )
    return out


def _part(row: Row, form: str, unit: int | None, prefix: str) -> Part:
    if form == "hf":
        return Part(unit, prefix + row.hf, row.hf_axes)
    if form == "gguf":
        return Part(unit, prefix + row.gguf, row.hf_axes)
    swapped = form == "dm_df" and row.dm.endswith("gating_einsum")
    return Part(
        unit, prefix + row.dm, row.dm_axes.replace("F,D", "D,F") if swapped else row.dm_axes
    )


def axis_sizes(cfg: TransformerConfig) -> dict[str, int]:
    return {
        "D": cfg.d_model,
        "F": cfg.d_ff,
        "N": cfg.num_heads,
        "K": cfg.num_kv_heads,
        "H": cfg.head_dim,
        "V": cfg.vocab_size + cfg.vocab_pad,
    }


# How many arrays share a tensor whose axes begin with a digit.
SHARED = {"attn/kv_einsum": 2, "mlp/gating_einsum": 2}


def disk_shape(part: Part, sizes: dict[str, int]) -> tuple[int, ...]:
    """Shape that the tensor of `part` must have on disk."""
    shared = next((n for name, n in SHARED.items() if part.name.endswith(name)), 1)
    shape = []
    for dim in part.axes.split(","):
        size = 1
        for letter in dim:
            size *= shared if letter.isdigit() else sizes[letter]
        shape.append(size)
    return tuple(shape)
