"""Tests DeepMind's Flax checkpoints in every layout against the same Hugging Face folder."""

import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from toys import GEMMA2, GEMMA3, D, F, H, K, N, V, tensors, write_folder

from grm_jax.checkpoints import load, open_checkpoint
from grm_jax.checkpoints.deepmind import DeepMindCheckpoint
from grm_jax.models import CONFIGS, get_config
from grm_jax.sharding import make_mesh

PAD = 8  # rows beyond the vocabulary; DeepMind's tables have 128


def nested(config: dict, values: dict[str, np.ndarray], gates_df: bool = False) -> dict:
    """Returns DeepMind's parameter tree, arranged by hand from Hugging Face values."""
    table = values["model.embed_tokens.weight"]
    tree = {
        "embedder": {
            "input_embedding": np.concatenate([table, np.full((PAD, D), 100, table.dtype)])
        },
        "final_norm": {"scale": values["model.norm.weight"]},
    }
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer = {k.removeprefix(prefix).removesuffix(".weight"): v for k, v in values.items()}
        q = layer["self_attn.q_proj"].reshape(N, H, D).transpose(0, 2, 1)
        k, v = (layer[f"self_attn.{x}_proj"].reshape(K, H, D).transpose(0, 2, 1) for x in "kv")
        gates = np.stack([layer["mlp.gate_proj"], layer["mlp.up_proj"]])
        attn = {
            "q_einsum": {"w": q}, "kv_einsum": {"w": np.stack([k, v])},
            "attn_vec_einsum": {"w": layer["self_attn.o_proj"].T.reshape(N, H, D)},
        }  # fmt: skip
        if "self_attn.q_norm" in layer:
            attn |= {
                "_query_norm": {"scale": layer["self_attn.q_norm"]},
                "_key_norm": {"scale": layer["self_attn.k_norm"]},
            }
        tree[f"layer_{i}"] = {
            "attn": attn,
            "mlp": {
                "gating_einsum": gates.transpose(0, 2, 1) if gates_df else gates,
                "linear": layer["mlp.down_proj"].T,
            },
            "pre_attention_norm": {"scale": layer["input_layernorm"]},
            "post_attention_norm": {"scale": layer["post_attention_layernorm"]},
            "pre_ffw_norm": {"scale": layer["pre_feedforward_layernorm"]},
            "post_ffw_norm": {"scale": layer["post_feedforward_layernorm"]},
        }
    return tree


def flat(tree: dict) -> dict:
    """The released layout: {"transformer/layer_0/attn/q_einsum": {"w": ...}}, "w" for MLPs too."""
    out: dict[str, dict] = {}

    def walk(path, node):
        for key, value in node.items():
            if isinstance(value, dict):
                walk([*path, key], value)
            elif key in ("gating_einsum", "linear"):
                out["/".join([*path, key])] = {"w": value}
            else:
                out.setdefault("/".join(path), {})[key] = value

    walk(["transformer"], tree)
    return out


def stacked(flat_tree: dict, pattern: int) -> dict:
    """Stacks the layers of each position in the pattern: layer = index * pattern + position.

    Stacks differ in length if the pattern's length does not divide the number of layers.
    """
    out, groups = {}, {}
    for key, leaves in flat_tree.items():
        match = re.fullmatch(r"transformer/layer_(\d+)/(.*)", key)
        if not match:
            out[key] = leaves
            continue
        index, position = divmod(int(match[1]), pattern)
        for leaf, value in leaves.items():
            name = f"transformer/stacked_layers/attention_type_{position}/{match[2]}"
            groups.setdefault((name, leaf), {})[index] = value
    for (key, leaf), layers in groups.items():
        out.setdefault(key, {})[leaf] = np.stack([layers[i] for i in range(len(layers))])
    return out


def write(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, jax.tree.map(np.ascontiguousarray, tree))
    return path


LAYOUTS = {
    "flat": lambda tree, pattern: flat(tree),
    "nested": lambda tree, pattern: tree,
    "stacked": lambda tree, pattern: stacked(flat(tree), pattern),
    "kauldron": lambda tree, pattern: {
        "params": tree, "step": np.int32(3), "collections": {"x": np.ones(1)},
        "opt_state": {"mu": tree["final_norm"]},
    },
    "multimodal": lambda tree, pattern: flat(tree) | {
        "SigLiPFromPatches_0/siglip_encoder/Dense": {"kernel": np.ones((2, 2))},
        "transformer/embedder/mm_input_projection": {"w": np.ones((2, 2))},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("config", "pattern"), [(GEMMA2, 2), (GEMMA3, 6)], ids=["gemma2", "gemma3"]
)
def test_every_layout_gives_the_same_model(tmp_path, config, pattern, layout):
    values = tensors(config)
    expected = load(write_folder(tmp_path / "hf", config, values))
    path = write(tmp_path / "dm", LAYOUTS[layout](nested(config, values), pattern))
    cfg = expected.cfg
    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]) if layout == "flat" else None
    model = load(path, mesh=mesh, cfg=cfg)
    assert model.cfg == cfg.replace(vocab_pad=PAD)
    ours, theirs = nnx.state(model, nnx.Param), nnx.state(expected, nnx.Param)
    table = ours["embedder"]["table_VxD"]
    assert table.shape == (V + PAD, D)
    ours["embedder"]["table_VxD"] = table.replace(table[...][:V])
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("gates_df", [False, True])
def test_both_axis_orders_of_gates(tmp_path, gates_df):
    """(2, F, D), or (2, D, F) as in Gemma 2 2B, recognised by shape."""
    assert D != F
    values = tensors(GEMMA2)
    cfg = open_checkpoint(write_folder(tmp_path / "hf", GEMMA2, values)).model_config()
    model = load(write(tmp_path / "dm", nested(GEMMA2, values, gates_df)), cfg=cfg)
    expected = values["model.layers.3.mlp.up_proj.weight"].T
    np.testing.assert_array_equal(model.units[1].mlp.up_DxF[...][1], expected)


def test_released_sizes_are_recognised(monkeypatch):
    for cfg in (cfg for cfg in CONFIGS.values() if "gemma" in cfg.name):
        reader = DeepMindCheckpoint.__new__(DeepMindCheckpoint)
        reader.path, reader.format = "x", "dm"
        rows = cfg.vocab_size + (128 if cfg.name.startswith("gemma2") else 0)
        shapes = {
            "embedder/input_embedding": (rows, cfg.d_model),
            "layer_0/mlp/linear": (cfg.d_ff, cfg.d_model),
            "layer_0/attn/q_einsum": (cfg.num_heads, cfg.d_model, cfg.head_dim),
        } | {f"layer_{i}/pre_ffw_norm/scale": (cfg.d_model,) for i in range(cfg.num_layers)}
        reader.tensors = {name: _Shape(shape) for name, shape in shapes.items()}
        assert reader.model_config() == cfg.replace(vocab_pad=rows - cfg.vocab_size)


class _Shape:
    def __init__(self, shape):
        self.shape = shape


def test_unknown_sizes_require_a_config(tmp_path):
    path = write(tmp_path / "dm", nested(GEMMA2, tensors(GEMMA2)))
    sizes = r"\(num_layers 5, d_model 32, d_ff 96, num_heads 8\)"
    with pytest.raises(ValueError, match=f"no registered model {sizes}: name its config"):
        load(path)
    with pytest.raises(ValueError, match="missing: layer_5/attn/attn_vec_einsum"):
        load(path, cfg=get_config("tiny_gemma2", num_layers=6, vocab_size=V, d_ff=F))
