"""Gemma 2 and 3 in Flax NNX. Knows arrays only: tokens come from `grm_jax.text`, weights from `grm_jax.checkpoints`."""

from grm_jax.models.config import CONFIGS, LayerSpec, TransformerConfig, get_config
from grm_jax.models.logps import (
    TokenLogps,
    critique_rewards,
    grouped_token_logps,
    target_logps,
    token_logps,
)
from grm_jax.models.transformer import Transformer, last_real

__all__ = [
    "CONFIGS",
    "Transformer",
    "TransformerConfig",
    "LayerSpec",
    "TokenLogps",
    "critique_rewards",
    "get_config",
    "grouped_token_logps",
    "last_real",
    "load",
    "target_logps",
    "token_logps",
]


def load(path, mesh=None, dtype: str = "bfloat16") -> Transformer:
    """A model from a Hugging Face safetensors folder, a DeepMind Flax or Orbax checkpoint, or a GGUF file, sharded over the mesh.

    Raises ValueError with the missing and unexpected tensor names, or the mesh sizes that fit."""
    from grm_jax.checkpoints import load as load_checkpoint

    return load_checkpoint(path, mesh=mesh, dtype=dtype)
