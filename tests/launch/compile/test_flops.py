"""Tests the formula of a model's FLOPs against the sizes of its weights."""

import jax
import pytest

from grm_jax.models import abstract_model, get_config
from grm_jax.models.lora import TARGETS, LoraConfig
from grm_jax.sharding import make_mesh
from grm_jax.training import state as states
from launch.compile import flops


def sizes(tree):
    """Returns {path: number of values} of the matrices of a model."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.size for path, leaf in leaves if leaf.ndim > 1}


def test_attention_flops_are_the_visible_pairs():
    # Five layers, alternately a window of 6 and full attention; 8 heads of width 8.
    cfg = get_config("tiny_gemma2")
    window, whole = 1 + 2 + 3 + 4 + 5 + 6 + 6 + 6, 36
    assert flops.attention_flops(cfg, 8) == 4 * 8 * 8 * (3 * window + 2 * whole)


def test_training_is_three_forwards():
    cfg = get_config("gemma2_27b")
    forward = flops.model_flops(cfg, 1, 4096, False)
    assert flops.model_flops(cfg, 1, 4096, True) == 3 * forward
    assert forward == pytest.approx(2 * 27.2e9 * 4096 * 1.03, rel=0.01)


@pytest.mark.parametrize("name", ["llama3_8b", "qwen3_8b", "gemma2_2b"])
def test_the_embedding_is_no_product_whether_tied_or_not(name):
    cfg = get_config(name)
    table = 2 * cfg.vocab_size * cfg.d_model
    layers = 2 * cfg.num_layers * cfg.d_model * (
        2 * cfg.head_dim * (cfg.num_heads + cfg.num_kv_heads) + 3 * cfg.d_ff
    )  # fmt: skip
    assert flops.weight_flops(cfg) == pytest.approx(layers + table, rel=1e-3)
    assert flops.weight_flops(cfg, logits=False) == pytest.approx(layers, rel=1e-3)


@pytest.mark.parametrize("targets", [TARGETS, ("k_proj", "o_proj", "down_proj")])
def test_a_frozen_base_takes_two_forwards_and_its_adapters_three(targets):
    cfg = get_config("tiny_llama3", param_dtype="bfloat16", lora=LoraConfig(4, 8.0, targets))
    _, params = abstract_model(cfg, make_mesh(devices=jax.devices()[:1]))
    adapters = sum(sizes(states.split(params)[0]).values())
    assert flops.adapter_flops(cfg) == 2 * adapters
    attention, weights = flops.attention_flops(cfg, 32), 32 * flops.weight_flops(cfg)
    others = attention + 32 * 2 * adapters
    assert flops.model_flops(cfg, 1, 32, False) == weights + others
    assert flops.model_flops(cfg, 1, 32, True) == 2 * weights + 3 * others
    assert flops.decode_flops(cfg, 1, 1) == flops.model_flops(cfg, 1, 1, False)


def test_the_log_probs_of_one_completion_are_those_of_its_sequence():
    """But for the logits of the prompt, which are not computed."""
    cfg = get_config("tiny_llama3")
    rl = type("Rl", (), {"prompts": 2, "prompt_len": 8, "group_size": 1, "max_new_tokens": 24})
    logits = 2 * cfg.vocab_size * cfg.d_model
    for training, factor in ((False, 1), (True, 3)):
        expected = flops.model_flops(cfg, 2, 32, training) - factor * 2 * 8 * logits
        assert flops.rl_flops(cfg, rl, training) == pytest.approx(expected)
