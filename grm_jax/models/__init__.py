"""Gemma 2 and 3, Llama 3, Qwen 2.5 and 3 in Flax NNX: arrays in, arrays out.

Tokens come from `grm_jax.text`, weights from `grm_jax.checkpoints`.
"""

import importlib
from os import PathLike
from typing import Any

from grm_jax.models.build import abstract_model, build_model, init_adapters, weight_bytes
from grm_jax.models.config import CONFIGS, LayerSpec, Llama3Rope, TransformerConfig, get_config
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
    "LayerSpec",
    "Llama3Rope",
    "TokenLogps",
    "Transformer",
    "TransformerConfig",
    "abstract_model",
    "build_model",
    "critique_rewards",
    "get_config",
    "grouped_token_logps",
    "init_adapters",
    "last_real",
    "load",
    "target_logps",
    "token_logps",
    "weight_bytes",
]


def load(path: str | PathLike[str], mesh: Any = None, dtype: str = "bfloat16") -> Transformer:
    """Loads a Hugging Face folder, a DeepMind Flax or Orbax checkpoint, or a GGUF file.

    Parameters are sharded over `mesh` (None: the first device).

    Raises:
      ValueError: missing and unexpected tensors by name, or a mesh that does not divide the model.
    """
    # Imported by name: this alias is the only use of a layer above.
    return importlib.import_module("grm_jax.checkpoints").load(path, mesh=mesh, dtype=dtype)
