"""Toy checkpoints, saved and loaded with the formats' own libraries instead of grm_jax."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

BF16 = ml_dtypes.bfloat16
D, F, N, K, H, V = 32, 96, 8, 4, 8, 64

_SIZES = {
    "hidden_size": D, "intermediate_size": F, "num_attention_heads": N, "num_key_value_heads": K,
    "head_dim": H, "vocab_size": V, "query_pre_attn_scalar": 12, "sliding_window": 6,
    "max_position_embeddings": 128,
}  # fmt: skip
GEMMA2 = _SIZES | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "num_hidden_layers": 5,
    "rope_theta": 10000.0,
}
GEMMA3 = _SIZES | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 8,
    "rope_theta": 1000000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_PLAIN = {
    key: n for key, n in _SIZES.items() if key not in ("query_pre_attn_scalar", "sliding_window")
}
LLAMA = _PLAIN | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
}
SMOLLM2 = LLAMA | {"rope_theta": 100000.0, "rope_scaling": None, "tie_word_embeddings": True}
QWEN2 = _PLAIN | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 3,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
QWEN3 = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "tie_word_embeddings": False,
}


def tensors(config: dict, seed: int = 0, dtype=BF16, norm_dtype=None) -> dict[str, np.ndarray]:
    """Returns {Hugging Face name: random values}."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (D,),
            layer + "post_attention_layernorm.weight": (D,),
            layer + "self_attn.q_proj.weight": (N * H, D),
            layer + "self_attn.k_proj.weight": (K * H, D),
            layer + "self_attn.v_proj.weight": (K * H, D),
            layer + "self_attn.o_proj.weight": (D, N * H),
            layer + "mlp.gate_proj.weight": (F, D),
            layer + "mlp.up_proj.weight": (F, D),
            layer + "mlp.down_proj.weight": (D, F),
        }
        if config["model_type"].startswith("gemma"):
            shapes |= {
                layer + "pre_feedforward_layernorm.weight": (D,),
                layer + "post_feedforward_layernorm.weight": (D,),
            }
        if config["model_type"] == "qwen2":
            shapes |= {
                layer + "self_attn.q_proj.bias": (N * H,),
                layer + "self_attn.k_proj.bias": (K * H,),
                layer + "self_attn.v_proj.bias": (K * H,),
            }
        if config["model_type"] in ("gemma3_text", "qwen3"):
            shapes |= {
                layer + "self_attn.q_norm.weight": (H,),
                layer + "self_attn.k_norm.weight": (H,),
            }
    if config["architectures"][0].endswith("SequenceClassification"):
        shapes["score.weight"] = (1, D)
    elif not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (V, D)
    kinds = {1: norm_dtype or dtype}
    return {
        name: rng.normal(size=shape).astype(kinds.get(len(shape), dtype))
        for name, shape in shapes.items()
    }


def write_folder(path: Path, config: dict, values: dict[str, np.ndarray], files: int = 1) -> Path:
    """Saves a Hugging Face folder with one safetensors file, or several and an index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(values, path / "model.safetensors", {"format": "pt"})
        return path
    names = sorted(values)
    weight_map = {}
    for i in range(files):
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        save_file({name: values[name] for name in names[i::files]}, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[i::files], file)
    index = {
        "metadata": {"total_size": sum(v.nbytes for v in values.values())},
        "weight_map": weight_map,
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def raw(path: Path) -> dict[str, tuple]:
    """Returns {name: (dtype, shape, bytes)} of every tensor of a folder."""
    out = {}
    for file in sorted(path.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(file.read_bytes()):
            assert name not in out, f"{name} is in two files"
            out[name] = (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
    return out


OUTER, RANK, ALPHA = "base_model.model.", 2, 6


def write_adapter(
    folder: Path, layers, targets=("q_proj", "o_proj", "down_proj"), cfg=None, **fields
) -> Path:
    """Saves a LoRA adapter as peft does: numpy arrays and JSON.

    cfg: sizes of the base, by default those of the toys above; with a scalar head, a classifier's.
    fields: of adapter_config.json.
    """
    d, f, q, k = D, F, N * H, K * H
    if cfg is not None:
        heads = cfg.num_heads, cfg.num_kv_heads
        d, f, (q, k) = cfg.d_model, cfg.d_ff, (count * cfg.head_dim for count in heads)
    shapes = {
        "self_attn.q_proj": (q, d), "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d),
        "self_attn.o_proj": (d, q), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }  # fmt: skip
    rng, values = np.random.default_rng(7), {}
    for layer in layers:
        for module, (rows, columns) in shapes.items():
            if module.rpartition(".")[2] in targets:
                name = f"{OUTER}model.layers.{layer}.{module}"
                # Products are exact, in whatever order they are summed.
                values[f"{name}.lora_A.weight"] = rng.integers(-4, 5, (RANK, columns)) / 4
                values[f"{name}.lora_B.weight"] = rng.integers(-4, 5, (rows, RANK)) / 4
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [*targets]}
    config |= {"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}
    if cfg is not None and cfg.scalar_head:
        values[f"{OUTER}score.weight"] = rng.normal(size=(1, d))
        config |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: value.astype(np.float32) for name, value in values.items()}
    save_file(values, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    return folder
