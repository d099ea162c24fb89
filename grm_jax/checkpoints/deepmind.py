"""Reads DeepMind's Flax checkpoints (Orbax, OCDBT), in all layouts that DeepMind's code writes.

    flat       {"transformer/layer_0/attn/q_einsum": {"w": ...}}            released Gemma 2 and 3
    nested     {"layer_0": {"attn": {"q_einsum": {"w": ...}}}}              gm.ckpts.save_params
    stacked    {"transformer/stacked_layers/attention_type_p/attn/q_einsum": {"w": [slices, ...]}}
               where layer = slice * pattern length + p
    kauldron   {"params": nested, "step": ..., "opt_state": ..., "collections": ...}

All are mapped to the same tensor names: layer_0/attn/q_einsum.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.checkpoints.tensors import BFLOAT16, Index, Reader, put
from grm_jax.model_files import check_file, one_line, read_json
from grm_jax.models.config import TransformerConfig, find_config

MARKERS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
SUBFOLDERS = ("", "default", "state")  # trainers write the arrays one folder down
STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/(.*)")
DTYPES = ("bfloat16", "float16", "float32", "float64")
MAX_LAYERS = 1 << 10
# Prefixes of the vision encoder in multimodal checkpoints.
VISION = ("SigLiPFromPatches_0/", "vision_encoder/", "embedder/mm_")


def is_deepmind(path: Path) -> bool:
    """Returns whether a folder holds a DeepMind Flax checkpoint."""
    return any((path / sub / marker).exists() for sub in SUBFOLDERS for marker in MARKERS)


class TensorStoreTensor:
    """A zarr array in the checkpoint's key-value store, or one layer of a stacked one."""

    def __init__(self, store: Any, layer: int | None) -> None:
        self.store, self.layer = store, layer
        self.shape = tuple(store.shape[0 if layer is None else 1 :])
        self.dtype = BFLOAT16 if store.dtype.name == "bfloat16" else np.dtype(store.dtype.name)

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        index = index if self.layer is None else (self.layer, *index)
        put(out, np.asarray(self.store[index].read().result()))


class DeepMindCheckpoint(Reader):
    """A checkpoint; tensors by nested names without the final /w: layer_0/mlp/gating_einsum."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folders = [Path(path).absolute() / sub for sub in SUBFOLDERS]
        self.path = next((p for p in folders if (p / "_METADATA").exists()), folders[0])
        metadata = read_json(self.path / "_METADATA")
        _refuse_links(self.path)
        stores: dict[str, Any] = {}
        for entry in metadata["tree_metadata"].values():
            keys = [str(k["key"]) for k in entry["key_metadata"]]
            if (name := _tensor_name("/".join(keys))) is not None:
                if name in stores:
                    raise ValueError(f"{self.path}: _METADATA has {one_line(name)} twice")
                stores[name] = _open(self.path, ".".join(keys), metadata)
        period = 1 + max((int(m[1]) for m in map(STACKED.match, stores) if m), default=-1)
        self.tensors: dict[str, TensorStoreTensor] = {}
        for name, store in stores.items():
            if match := STACKED.match(name):
                if not store.shape or store.shape[0] > MAX_LAYERS:
                    raise ValueError(
                        f"{self.path}: {one_line(name)} of shape {store.shape} is no stack of "
                        f"up to {MAX_LAYERS} layers: download it again"
                    )
                for unit in range(store.shape[0]):
                    layer = f"layer_{unit * period + int(match[1])}/{match[2]}"
                    self.tensors[layer] = TensorStoreTensor(store, unit)
            else:
                self.tensors[name] = TensorStoreTensor(store, None)
        self.format = "dm"

    def model_config(self) -> TransformerConfig:
        """Returns the registered model of these sizes; table padding becomes `vocab_pad`.

        Raises:
          ValueError: with the sizes, if no registered model has them.
        """

        def shape(name: str) -> tuple[int, ...]:
            return self.tensors[name].shape if name in self.tensors else (0, 0, 0, 0)

        sizes = {
            "num_layers": sum(name.endswith("/pre_ffw_norm/scale") for name in self.tensors),
            "d_model": shape("embedder/input_embedding")[1],
            "d_ff": shape("layer_0/mlp/linear")[0],
            "num_heads": shape("layer_0/attn/q_einsum")[0],
        }
        cfg = find_config(toys=True, post_norms=True, **sizes)
        if cfg is None or shape("embedder/input_embedding")[0] < cfg.vocab_size:
            described = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"{self.path} has the sizes of no registered model ({described}): "
                "name its config, as in load(path, cfg=...)"
            )
        return self.fit(cfg)

    def fit(self, cfg: TransformerConfig) -> TransformerConfig:
        """Returns `cfg` with this table's padding rows; also detects the layout of the gates."""
        gates = self.tensors.get("layer_0/mlp/gating_einsum")
        if gates is not None and gates.shape == (2, cfg.d_model, cfg.d_ff):
            self.format = "dm_df"
        table = self.tensors.get("embedder/input_embedding")
        rows = table.shape[0] if table is not None else cfg.vocab_size
        return cfg.replace(vocab_pad=max(0, rows - cfg.vocab_size))


def _tensor_name(key: str) -> str | None:
    """Returns the common name of an array, or None if it is no parameter of the language model."""
    if key.split("/")[0] in ("step", "opt_state", "collections"):
        return None
    name = key.removeprefix("params/").removeprefix("transformer/")
    return None if name.startswith(VISION) else name.removesuffix("/w")


def _refuse_links(folder: Path) -> None:
    """Raises ValueError for links, FIFOs and the like, because tensorstore would open them."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            check_file(path)


def _open(folder: Path, key: str, metadata: dict[str, Any]) -> Any:
    import tensorstore as ts

    if ".." in key.split("/") or key.startswith("/"):
        raise ValueError(f"{folder}: the array {one_line(key):.80} is outside the checkpoint")
    if (folder / "manifest.ocdbt").exists():
        kvstore = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{key}/"}
    else:
        kvstore = {"driver": "file", "path": f"{folder}/{key}/"}
    driver = "zarr3" if metadata.get("use_zarr3", False) else "zarr"
    try:
        store = ts.open({"driver": driver, "kvstore": kvstore}, open=True, read=True).result()
    except ValueError as error:
        raise ValueError(
            f"{folder}: array {one_line(key):.80} cannot be opened ({one_line(error):.300}): "
            "the checkpoint may be incomplete"
        ) from None
    _check_array(folder, key, store, metadata)
    return store


def _check_array(folder: Path, key: str, store: Any, metadata: dict[str, Any]) -> None:
    """Raises ValueError for an array of another type, or whose chunks are too large or missing.

    A missing chunk would be read as zeros. Newer checkpoints state that they store every chunk.
    """
    where = f"{folder}: array {one_line(key):.80}"
    if store.dtype.name not in DTYPES:
        raise ValueError(f"{where} has dtype {store.dtype.name}: give {', '.join(DTYPES)}")
    chunk = store.chunk_layout.write_chunk.shape
    if math.prod(chunk) > 4 * math.prod(store.shape) + 1024:
        raise ValueError(f"{where} of shape {store.shape} has chunks of {chunk}: download it again")
    if metadata.get("store_array_data_equal_to_fill_value"):
        chunks = math.prod(-(-n // c) for n, c in zip(store.shape, chunk))
        names = [os.path.basename(name) for name in store.kvstore.list().result()]
        stored = sum(name not in (b".zarray", b".zattrs", b"zarr.json") for name in names)
        if stored != chunks:
            raise ValueError(
                f"{where} has {stored} of {chunks} chunks: the checkpoint may be incomplete"
            )
