"""DeepMind's Flax checkpoints (Orbax, OCDBT) opened for reading, in the layouts that were released or that its trainer writes.

    flat       {"transformer/layer_0/attn/q_einsum": {"w": ...}}            the released Gemma 2 and 3
    nested     {"layer_0": {"attn": {"q_einsum": {"w": ...}}}}              gm.ckpts.save_params
    stacked    {"transformer/stacked_layers/attention_type_p/attn/q_einsum": {"w": [slices, ...]}}; layer = slice * pattern length + p
    kauldron   {"params": nested, "step": ..., "opt_state": ..., "collections": ...}

All become one set of names: layer_0/attn/q_einsum.
"""

import json
import re
from pathlib import Path

import numpy as np

from grm_jax.checkpoints.tensors import BFLOAT16, Index, put
from grm_jax.models.config import CONFIGS, TransformerConfig

MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/(.*)")
# Parts of multimodal checkpoints that are not the language model.
VISION = ("SigLiPFromPatches_0/", "vision_encoder/", "embedder/mm_")


class TensorStoreTensor:
    """A zarr array inside the checkpoint's key-value store; `layer` picks one slice of an array stacked over layers."""

    def __init__(self, store, layer: int | None):
        self.store, self.layer = store, layer
        self.shape = tuple(store.shape[0 if layer is None else 1 :])
        self.dtype = BFLOAT16 if store.dtype.name == "bfloat16" else np.dtype(store.dtype.name)

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        index = index if self.layer is None else (self.layer, *index)
        put(out, np.asarray(self.store[index].read().result()))


class DeepMindCheckpoint:
    """`tensors` by nested names without the closing /w: layer_0/mlp/gating_einsum, final_norm/scale."""

    def __init__(self, path):
        path = Path(path).absolute()
        # Trainers put the arrays one folder down.
        self.path = next(
            (p for p in (path, path / "default", path / "state") if (p / "_METADATA").exists()),
            path,
        )
        metadata = json.loads((self.path / "_METADATA").read_text())
        stores = {}
        for entry in metadata["tree_metadata"].values():
            keys = [str(k["key"]) for k in entry["key_metadata"]]
            name = _plain("/".join(keys))
            if name is not None:
                stores[name] = _open(self.path, ".".join(keys), metadata.get("use_zarr3", False))
        pattern = 1 + max((int(m[1]) for m in map(STACKED.match, stores) if m), default=-1)
        self.tensors: dict[str, TensorStoreTensor] = {}
        for name, store in stores.items():
            match = STACKED.match(name)
            for i in range(store.shape[0]) if match else (None,):
                plain = f"layer_{i * pattern + int(match[1])}/{match[2]}" if match else name
                self.tensors[plain] = TensorStoreTensor(store, i)
        self.form = "dm"

    def gemma_config(self) -> TransformerConfig:
        """The released model whose sizes these are; padding rows of the table become `vocab_pad`.

        Raises ValueError with the sizes found, where no released model has them: then the caller must say which config it is."""

        def shape(name):
            return self.tensors[name].shape if name in self.tensors else (0, 0, 0, 0)

        layers = sum(name.endswith("/pre_ffw_norm/scale") for name in self.tensors)
        rows, width = shape("embedder/input_embedding")[:2]
        found = (layers, width, shape("layer_0/mlp/linear")[0], shape("layer_0/attn/q_einsum")[0])
        for cfg in CONFIGS.values():
            if (
                found == (cfg.num_layers, cfg.d_model, cfg.d_ff, cfg.num_heads)
                and rows >= cfg.vocab_size
            ):
                return self.fit(cfg)
        sizes = "layers {}, width {}, ffn {}, heads {}".format(*found)
        raise ValueError(
            f"{self.path} is no released Gemma 2 or 3 ({sizes}): give its config, as in load(path, cfg=...)"
        )

    def fit(self, cfg: TransformerConfig) -> TransformerConfig:
        """`cfg` with the padding rows of this checkpoint's table; chooses the way its gates lie."""
        gates = self.tensors.get("layer_0/mlp/gating_einsum")
        if gates is not None and gates.shape == (2, cfg.d_model, cfg.d_ff):
            self.form = "dm_df"
        table = self.tensors.get("embedder/input_embedding")
        rows = table.shape[0] if table is not None else cfg.vocab_size
        return cfg.replace(vocab_pad=max(0, rows - cfg.vocab_size))


def _plain(name: str) -> str | None:
    """The common name of an array, or None for what is not a parameter of the language model."""
    if name.startswith("params/"):
        name = name.removeprefix("params/")
    elif name.split("/")[0] in ("step", "opt_state", "collections"):
        return None
    name = name.removeprefix("transformer/")
    return None if name.startswith(VISION) else name.removesuffix("/w")


def _open(folder: Path, key: str, zarr3: bool):
    import tensorstore as ts

    ocdbt = (folder / "manifest.ocdbt").exists()
    base = f"file://{folder}/"
    kvstore = (
        {"driver": "ocdbt", "base": base, "path": key + "/"}
        if ocdbt
        else {"driver": "file", "path": f"{folder}/{key}/"}
    )
    try:
        return ts.open(
            {"driver": "zarr3" if zarr3 else "zarr", "kvstore": kvstore}, open=True, read=True
        ).result()
    except ValueError as error:
        raise ValueError(
            f"{folder}: array {key} cannot be opened ({error}): is the checkpoint complete?"
        ) from None
