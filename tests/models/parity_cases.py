"""Toy models for our code, transformers and DeepMind's `gemma`: configs, weights and batches.

Only numpy is needed. The tests import this module, and so does make_goldens.py in the peers'
environment. Weights come from raw PCG64 bits, which are stable across numpy versions, so both sides
build the same weights and the repository stores only the results.
"""

import dataclasses
from typing import Any

import numpy as np

VOCAB, ROWS, LENGTH = 64, 2, 32

# The square root of d_model (44) is not a bfloat16. Query scale (11) and head width (8) differ, as
# in the 27B models. The length is over four windows of 7. 5 layers leave one after the repeats of
# Gemma 2's pattern, 8 layers leave two after those of Gemma 3's.
_TOY = {
    "vocab_size": VOCAB, "hidden_size": 44, "intermediate_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "query_pre_attn_scalar": 11, "sliding_window": 7, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu",
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
# Width over heads (11) and head width (8) differ.
_PLAIN = {
    "vocab_size": VOCAB, "hidden_size": 44, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "hidden_act": "silu", "attention_bias": False,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": _TOY | {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 5,
        "rope_theta": 10_000.0, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3": _TOY | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 8,
        "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    # The sequence is longer than the original context of 16 tokens.
    "llama3": _PLAIN | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0, "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": _PLAIN | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "tie_word_embeddings": True, "use_sliding_window": False,
        "sliding_window": 7,
    },
    "qwen3": _PLAIN | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "tie_word_embeddings": False, "use_sliding_window": False,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A toy model and its batch.

    family: key of CONFIGS.
    pad: side of the padding, or "gap": positions jump by 5 halfway.
    attn_gain, head_gain: factors of q and k, and of the final norm; above 1, soft caps are active.
    embed_gain: factor of the embeddings; far below 1, the epsilon of the norms matters.
    attn_cap: overrides the config's.
    gradients, bf16: whether the goldens contain gradients and bfloat16 logits.
    scalar: a sequence classifier with one label.
    """

    family: str
    pad: str = "none"
    attn_gain: float = 1.0
    head_gain: float = 1.0
    embed_gain: float = 1.0
    attn_cap: float | None = None
    gradients: bool = False
    bf16: bool = False
    scalar: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The case's config.json."""
        config = CONFIGS[self.family]
        if self.scalar:
            prefix = "Gemma3Text" if self.family == "gemma3" else self.family.capitalize()
            prefix = prefix.removesuffix("3") if prefix == "Llama3" else prefix
            architecture = f"{prefix}ForSequenceClassification"
            config = config | {"architectures": [architecture], "num_labels": 1}
        return config | ({"attn_logit_softcapping": self.attn_cap} if self.attn_cap else {})


CASES = {
    "gemma2": Case("gemma2", gradients=True, bf16=True),
    "gemma2_caps": Case("gemma2", attn_gain=3.6, head_gain=20.0),
    # Many attention logits are at the cap, also below zero.
    "gemma2_tight": Case("gemma2", attn_gain=3.0, attn_cap=8.0),
    "gemma2_left": Case("gemma2", pad="left"),
    "gemma2_right": Case("gemma2", pad="right"),
    "gemma2_gap": Case("gemma2", pad="gap"),
    "gemma3": Case("gemma3", gradients=True, bf16=True),
    "gemma3_left": Case("gemma3", pad="left"),
    "gemma3_right": Case("gemma3", pad="right"),
    "llama3": Case("llama3", gradients=True, bf16=True),
    "llama3_left": Case("llama3", pad="left"),
    "llama3_right": Case("llama3", pad="right"),
    "llama3_small": Case("llama3", embed_gain=0.01),
    "qwen2": Case("qwen2", gradients=True, bf16=True),
    "qwen2_left": Case("qwen2", pad="left"),
    "qwen2_right": Case("qwen2", pad="right"),
    "qwen3": Case("qwen3", gradients=True, bf16=True),
    "qwen3_left": Case("qwen3", pad="left"),
    "qwen3_right": Case("qwen3", pad="right"),
    "qwen3_small": Case("qwen3", embed_gain=0.01),
}

# Sequence classifiers, whose row 1 is padded.
SCALARS = {
    f"{family}_{pad}": Case(family, pad=pad, scalar=True)
    for family in CONFIGS
    for pad in ("left", "right")
}

# Greedy text of a case: the ids that end it, and the prompt's and the text's most tokens.
STOP_CASE, STOPS, PROMPT, NEW = "llama3", (1, 27, 53), 8, 16

# transformers applies windows by slot, so it has no result for "gap"; DeepMind's applies them by
# position, as we do.
PEERS = {
    "transformers": [name for name, case in CASES.items() if case.pad != "gap"],
    "deepmind": [name for name, case in CASES.items() if "gemma" in case.family],
}


def _uniform(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1) from raw bits."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape. Independent of the package's tensor map, which it checks."""
    d, f, h = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    n, k = config["num_attention_heads"] * h, config["num_key_value_heads"] * h
    out: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], d),
        "model.norm.weight": (d,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        norms = ("input", "post_attention")
        if config["model_type"].startswith("gemma"):
            norms = (*norms, "pre_feedforward", "post_feedforward")
        for norm in norms:
            out[f"{layer}{norm}_layernorm.weight"] = (d,)
        for name, shape in {"q": (n, d), "k": (k, d), "v": (k, d), "o": (d, n)}.items():
            out[f"{layer}self_attn.{name}_proj.weight"] = shape
        for name, shape in {"gate": (f, d), "up": (f, d), "down": (d, f)}.items():
            out[f"{layer}mlp.{name}_proj.weight"] = shape
        if config["model_type"] == "qwen2":
            for name, size in {"q": n, "k": k, "v": k}.items():
                out[f"{layer}self_attn.{name}_proj.bias"] = (size,)
        if config["model_type"] in ("gemma3_text", "qwen3"):
            out[f"{layer}self_attn.q_norm.weight"] = out[f"{layer}self_attn.k_norm.weight"] = (h,)
    if config["architectures"][0].endswith("SequenceClassification"):
        out["score.weight"] = (1, d)
    elif not config.get("tie_word_embeddings", True):
        out["lm_head.weight"] = (config["vocab_size"], d)
    return out


def weights(case: Case) -> dict[str, np.ndarray]:
    """Hugging Face name -> float32 weights: matrices of variance 1/fan_in, norms not close to 0."""
    out, is_gemma = {}, "gemma" in case.family
    for seed, (name, shape) in enumerate(sorted(shapes(case.config).items())):
        values = _uniform(seed, shape)
        if len(shape) == 1:
            values *= 0.5
            values += (
                0.0 if is_gemma or name.endswith("bias") else 1.0
            )  # these norms are w, not 1 + w
        else:
            values *= np.sqrt(3.0 / shape[1])
        if case.family == "qwen3" and ("q_norm" in name or "k_norm" in name):
            values *= 1.4
        if case.family == "gemma3" and ("q_norm" in name or "k_norm" in name):
            values = (1 + values) * 1.4 - 1  # sharper attention, so that positions matter
        if "q_proj" in name or "k_proj" in name:
            values *= case.attn_gain
        if name == "model.embed_tokens.weight":
            values *= case.embed_gain
        if name == "model.norm.weight" and is_gemma:
            values = (1 + values) * case.head_gain - 1
        out[name] = values.astype(np.float32)
    return out


def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), int32 (ROWS, LENGTH). BOS comes first; row 1 has 9 padding slots."""
    raw = np.random.PCG64(99).random_raw(ROWS * LENGTH) % np.uint64(VOCAB - 3)
    tokens = 3 + raw.astype(np.int32).reshape(ROWS, LENGTH)
    mask = np.ones_like(tokens)
    if case.pad == "left":
        mask[1, :9] = 0
    elif case.pad == "right":
        mask[1, -9:] = 0
    tokens[np.arange(ROWS), mask.argmax(axis=1)] = 2
    return tokens * mask, mask


def positions(case: Case) -> np.ndarray:
    """int32 (ROWS, LENGTH): the position of each token in its sequence."""
    indices = np.maximum(batch(case)[1].cumsum(axis=-1) - 1, 0)
    jump = 5 * (case.pad == "gap") * (np.arange(LENGTH) >= LENGTH // 2)
    return (indices + jump).astype(np.int32)


def sample(values: np.ndarray, count: int = 192) -> np.ndarray:
    """At most `count` evenly spaced entries of an array, to store of a gradient."""
    flat = np.asarray(values, np.float32).reshape(-1)
    return flat[np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int)]
