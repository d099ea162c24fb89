"""Saves the adapters of a model in training as a folder of `peft`, and loads them again.

    save_adapters(params, cfg, folder, base="google/gemma-2-9b")      # cfg.lora is set
    params = load_adapters(params, cfg, folder)

Our A is (inputs, rank) and B (rank, outputs), stacked over layers. peft has the transposes, one
module per layer.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from grm_jax.checkpoints.loading import flat_params
from grm_jax.checkpoints.peft import OUTER, Adapters, open_adapters, places
from grm_jax.checkpoints.peft_config import SCORE, WEIGHTS, AdapterConfig, write_config
from grm_jax.checkpoints.safetensors_file import Entry, SafetensorsTensor, write_safetensors
from grm_jax.checkpoints.saving import to_host
from grm_jax.checkpoints.tensor_map import axis_sizes, disk_shape
from grm_jax.models.config import TransformerConfig
from grm_jax.models.lora import HEAD, LoraConfig

FLOAT32 = np.dtype(np.float32)


def save_adapters(
    params: nnx.State, cfg: TransformerConfig, folder: str | os.PathLike[str], base: str = ""
) -> None:
    """Writes the adapters of a model as a folder that peft loads, in float32.

    Every process must call it; process 0 writes. The folder of a classifier has its reward head.

    Args:
      params: the model's state, or its adapters alone.
      cfg: of the model, with `lora`.
      folder: existing adapter files in it are overwritten.
      base: name or path of the base model, for `base_model_name_or_path`.

    Raises ValueError for a model without adapters.
    """
    folder, lora = Path(folder), _lora_of(cfg)
    entries = sorted(_entries(flat_params(params), cfg), key=lambda entry: entry.name)
    if jax.process_index() != 0:
        for entry in entries:
            entry.make()  # takes part in gathering
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, entries)
    config = AdapterConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        modules_to_save=(SCORE,) * cfg.scalar_head,
        is_classifier=cfg.scalar_head,
        base=base,
    )
    write_config(folder, config)  # last, so that the folder of an interrupted save does not load


def _lora_of(cfg: TransformerConfig) -> LoraConfig:
    if cfg.lora is None:
        raise ValueError(f"{cfg.name} has no adapters: set lora=LoraConfig(rank, alpha)")
    return cfg.lora


def _entries(flat: dict[str, nnx.Variable], cfg: TransformerConfig) -> Iterator[Entry]:
    """Yields the tensors of the adapter file. flat: parameters by path, from `flat_params`."""
    sizes, rank = axis_sizes(cfg), _lora_of(cfg).rank
    for module, (param, tensor) in places(cfg).items():
        if f"{param}.a" in flat:
            outputs, inputs = disk_shape(tensor, sizes)
            for side, shape in (("a", (inputs, rank)), ("b", (rank, outputs))):
                make = partial(_transposed, flat[f"{param}.{side}"], tensor.unit, shape)
                name = f"{OUTER}{module}.lora_{side.upper()}.weight"
                yield Entry(name, shape[::-1], FLOAT32, make)
    if cfg.scalar_head:
        shape = (cfg.d_model, 1)
        make = partial(_transposed, flat[HEAD], None, shape)
        yield Entry(f"{OUTER}{SCORE}.weight", shape[::-1], FLOAT32, make)


def _transposed(variable: Any, unit: int | None, shape: tuple[int, int]) -> np.ndarray:
    value = variable[...] if unit is None else variable[...][unit]
    return to_host(value).astype(np.float32).reshape(shape).T


def load_adapters(
    params: nnx.State, cfg: TransformerConfig, folder: str | os.PathLike[str]
) -> nnx.State:
    """Returns a model's state, or its adapters alone, with the adapters of a folder.

    Adapters of modules that the folder does not have are unchanged. The folder's scales and ranks
    may differ from `cfg.lora`: B absorbs the scale, and of a lower rank the rest of B is zero.

    Raises:
      ValueError: as `open_adapters`; or the folder adapts a module with a higher rank than the
        model, or one that has no adapter in the model.
    """
    adapters = open_adapters(folder, cfg)
    arrays = _arrays(adapters, flat_params(params), cfg)
    flat = []
    for path, variable in nnx.to_flat_state(params):
        if (array := arrays.get(".".join(map(str, path)))) is not None:
            old = variable[...]
            array = array.astype(old.dtype)
            variable = variable.replace(
                jax.make_array_from_callback(array.shape, old.sharding, array.__getitem__)
            )
        flat.append((path, variable))
    return nnx.from_flat_state(flat)


def _arrays(
    adapters: Adapters, flat: dict[str, nnx.Variable], cfg: TransformerConfig
) -> dict[str, np.ndarray]:
    """Returns the changed parameters by path, each with all layers of its stack."""
    lora, known = _lora_of(cfg), places(cfg)
    arrays: dict[str, np.ndarray] = {}
    for module, adapter in adapters.modules.items():
        (param, tensor), rank = known[module], adapter.a.shape[0]
        if f"{param}.a" not in flat or rank > lora.rank:
            raise ValueError(
                f"{adapters.folder} adapts {module} with rank {rank}, and the model has rank "
                f"{lora.rank} for {', '.join(lora.targets)}: raise the rank, or add the target"
            )
        a, b = (
            arrays.setdefault(path, np.array(to_host(flat[path][...])))
            for path in (f"{param}.a", f"{param}.b")
        )
        if tensor.unit is not None:
            a, b = a[tensor.unit], b[tensor.unit]
        a.reshape(-1, lora.rank)[:, :rank] = _values(adapter.a).T
        b[...] = 0
        scale = adapter.scale * lora.rank / lora.alpha
        b.reshape(lora.rank, -1)[:rank] = _values(adapter.b).T * scale
    if adapters.score is not None:
        arrays[HEAD] = _values(adapters.score)[0]
    return arrays


def _values(tensor: SafetensorsTensor) -> np.ndarray:
    return tensor.file.mapped(tensor).astype(np.float32)
