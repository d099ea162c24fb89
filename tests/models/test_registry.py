"""Tests that a new model size is one registration and that one function builds models."""

import re
from pathlib import Path

import jax
import pytest

from grm_jax.checkpoints import cli
from grm_jax.checkpoints.hf_config import from_hf, to_hf
from grm_jax.models import CONFIGS, abstract_model, get_config
from grm_jax.models.config import gemma2, register

ROOT = Path(__file__).resolve().parents[2]


def test_a_new_size_is_one_registration(capsys):
    sizes = {"num_layers": 3, "d_model": 48, "d_ff": 80, "num_heads": 4, "num_kv_heads": 2}
    new = register(gemma2("gemma2_new", **sizes, head_dim=16, query_pre_attn_scalar=16))
    try:
        assert get_config("gemma2_new") is not None
        assert from_hf(to_hf(new, "bfloat16")).name == "gemma2_new"
        params = jax.tree.leaves(abstract_model(new)[1])
        assert sum(leaf.size for leaf in params) == new.num_params
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        assert "gemma2_new" in capsys.readouterr().out
        with pytest.raises(ValueError, match="registered twice"):
            register(new)
    finally:
        del CONFIGS["gemma2_new"]


def test_only_build_model_names_the_model_class():
    pattern = re.compile(r"(?<![\w.])Transformer\(")
    files = [f for d in ("grm_jax", "launch", "studies") for f in (ROOT / d).rglob("*.py")]
    users = [f.relative_to(ROOT).as_posix() for f in files if pattern.search(f.read_text())]
    assert sorted(users) == ["grm_jax/models/build.py", "grm_jax/models/transformer.py"]
