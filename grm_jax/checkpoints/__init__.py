"""Loads Hugging Face folders, DeepMind's Flax checkpoints and GGUF files; saves folders.

A path may be a name on the Hugging Face Hub: `load("google/gemma-2-2b-it@main")`.

`tensor_map.py` is the one table of tensor names and axis orders. A reader per format offers its
tensors by name; `loading.py` reads them into a sharded model.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.checkpoints.hf_config import read_padding_id
from grm_jax.checkpoints.loading import check_names, load_model
from grm_jax.checkpoints.peft import merge_into, open_adapters
from grm_jax.checkpoints.saving import copy_tokenizer, save
from grm_jax.checkpoints.tensor_map import tensor_map
from grm_jax.checkpoints.tensors import Reader
from grm_jax.model_files import INDEX, check_file, damage_of, exists, read_json, refuse_adapter
from grm_jax.models.config import TransformerConfig
from grm_jax.models.transformer import Transformer
from grm_jax.storage import fetch, fetch_adapter

__all__ = [
    "check", "copy_tokenizer", "load", "open_checkpoint", "padding_id", "reader_of",
    "refuse_run_folder", "save",
]  # fmt: skip

FORMATS = (
    "a Hugging Face folder (config.json, *.safetensors), a DeepMind Flax checkpoint (_METADATA), "
    "a .gguf file, or ORG/MODEL on the Hugging Face Hub"
)


def open_checkpoint(path: str | os.PathLike[str]) -> Reader:
    """Opens a checkpoint: a folder with config.json, a DeepMind Flax checkpoint, or a .gguf file.

    path: local, in a bucket, or a hub name; see `storage.fetch`.

    Raises:
      FileNotFoundError: the path does not exist, or the hub name is not accessible.
      ValueError: none of these formats, or a damaged checkpoint: names the file, what is wrong in
        it and what to do, in one line.
    """
    path = fetch(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {FORMATS}")
    refuse_run_folder(path)
    with damage_of(path):
        return reader_of(path)()


def reader_of(path: Path) -> Callable[[], Reader]:
    """Returns the function that opens a checkpoint. Raises ValueError for another path."""
    from grm_jax.checkpoints.deepmind import DeepMindCheckpoint, is_deepmind

    if exists(path / "config.json") and not _is_gguf_folder(path):
        from grm_jax.checkpoints.hf_folder import HfFolder

        return functools.partial(HfFolder, path)
    if is_deepmind(path):
        return functools.partial(DeepMindCheckpoint, path)
    if path.is_dir():
        refuse_adapter(str(path), os.listdir(path))
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(files) == 1 and files[0].suffix == ".gguf":
        from grm_jax.checkpoints.gguf_file import GgufFile

        check_file(files[0], linked=not path.is_dir())
        return functools.partial(GgufFile, files[0])
    raise ValueError(f"{path} is not a supported checkpoint: give {FORMATS}")


def _is_gguf_folder(path: Path) -> bool:
    """Whether the only weights of a folder are one GGUF file; a config.json may be beside it."""
    has_tensors = any(path.glob("*.safetensors")) or exists(path / INDEX)
    return not has_tensors and len(list(path.glob("*.gguf"))) == 1


def _dtype_name(dtype: Any) -> Any:
    """Returns the name of a dtype, such as jnp.float32; a name, None and anything else as it is."""
    try:
        return dtype if dtype is None or isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        return dtype


def refuse_run_folder(path: Path, judge: bool = False) -> None:
    """Raises ValueError for the folder of a training run, with the model folders that are in it.

    judge: name the judges only, not the meta reward model.
    """
    files = [*path.glob("hf/config.json"), *path.glob("*/hf/config.json")]
    exports = sorted((file.parent for file in files), reverse=True)  # rl before rft and meta_rm
    if exports and path.name != "hf" and not any(path.glob("*.safetensors")):
        judges = [folder for folder in exports if folder.parent.name != "meta_rm"]
        models = " or ".join(map(str, (judge and judges) or exports))
        raise ValueError(f"{path} is the folder of a training run: give a model of it, {models}")


def padding_id(folder: Path) -> int | None:
    """Returns the `pad_token_id` of a folder's config.json, by which transformers finds a row's
    last token; None if it is unset.
    """
    return read_padding_id(read_json(folder / "config.json"), str(folder))


def check(path: str | os.PathLike[str], cfg: TransformerConfig) -> None:
    """Checks tensor names and shapes as `load(path, cfg=cfg)` does, from the headers alone.

    Raises:
      ValueError: every missing, unexpected and misshapen tensor.
    """
    reader = open_checkpoint(path)
    cfg = reader.fit(cfg)
    check_names(reader, cfg, tensor_map(cfg, reader.format))


def load(
    path: str | os.PathLike[str],
    mesh: Any = None,
    dtype: str | None = "bfloat16",
    *,
    param_dtype: str | None = None,
    cfg: TransformerConfig | None = None,
    adapter: str | os.PathLike[str] | None = None,
    progress: Any = None,
    **changes: Any,
) -> Transformer:
    """Loads the weights at `path` into a model, sharded over `mesh` (None: the first device).

    Args:
      dtype: of the computation, and of the parameters unless `param_dtype` is set; None keeps each
        tensor's dtype on disk.
      cfg: the configuration, if the checkpoint does not describe a registered model.
      adapter: a folder or hub name with a LoRA adapter of `peft`, which is merged into the weights.
      progress: called with (bytes read, total bytes).
      **changes: other config fields, such as remat="full". scalar_head=True adds a reward head of
        zeros to a language model; False drops the head of a classifier.

    Raises:
      ValueError: every missing, unexpected and misshapen tensor, a mesh that does not divide the
        model, or an adapter of another base.
    """
    dtype, param_dtype = _dtype_name(dtype), _dtype_name(param_dtype)
    if "float16" in (dtype, param_dtype):
        raise ValueError(
            f"{path}: float16 overflows in Gemma's activations: use bfloat16 or float32"
        )
    for name in (dtype, param_dtype):
        if isinstance(name, str) and name not in ("bfloat16", "float32"):
            raise ValueError(f"dtype {name!r} is unknown: use bfloat16 or float32")
    if isinstance(mesh, (str, Mapping)):
        raise TypeError(
            f"mesh is the {type(mesh).__name__} {mesh!r:.60}: pass grm_jax.sharding.make_mesh(...)"
        )
    reader = open_checkpoint(path)
    with damage_of(reader.path):
        cfg = reader.model_config() if cfg is None else reader.fit(cfg)
    if adapter is not None:
        if cfg.quantize:
            raise ValueError(
                f"{path} has int8 weights, into which no adapter can be merged: give the folder of "
                "the float weights"
            )
        cfg = merge_into(reader, cfg, open_adapters(fetch_adapter(adapter), cfg))
    has_head, stored = cfg.scalar_head, cfg.quantize
    cfg = cfg.replace(**changes)
    if stored:
        if changes.get("quantize") not in (None, stored):
            raise ValueError(
                f"{path} has {stored} weights: quantize={cfg.quantize!r} needs the folder of the "
                "float weights"
            )
        cfg = cfg.replace(quantize=stored)
    if dtype is not None:
        cfg = cfg.replace(dtype=str(dtype), param_dtype=str(param_dtype or dtype))
    if has_head and not cfg.scalar_head:
        if reader.has_no_output_head:
            raise ValueError(
                f"{path} is a classifier without an output head (lm_head.weight), so "
                "scalar_head=False leaves no language model: give the language model itself"
            )
        reader.tensors.pop("score.weight", None)
    zero_params = frozenset({"score_D"} if cfg.scalar_head and not has_head else ())
    return load_model(reader, cfg, mesh, param_dtype or dtype, zero_params, progress)
