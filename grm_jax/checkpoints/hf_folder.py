"""Reads a Hugging Face folder: config.json, and one safetensors file or several with an index."""

import json
import os
from pathlib import Path

import numpy as np

from grm_jax.checkpoints.hf_config import from_hf
from grm_jax.checkpoints.safetensors_file import SafetensorsFile, SafetensorsTensor
from grm_jax.checkpoints.tensors import Reader
from grm_jax.models.config import TransformerConfig

INDEX = "model.safetensors.index.json"
# Prefixes of the language model: multimodal checkpoints of old and new transformers, text models.
PREFIXES = ("language_model.model.", "model.language_model.", "model.")
# Prefixes of the vision encoder in multimodal checkpoints.
VISION = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
HEADS = ("lm_head.weight", "language_model.lm_head.weight")


class HfFolder(Reader):
    """A folder; tensors by their names in a text-only checkpoint: model.layers.0..."""

    format = "hf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        folder = Path(path)
        self.config = json.loads((folder / "config.json").read_text())
        self.files = [SafetensorsFile(folder / name) for name in _file_names(folder)]
        self.tensors: dict[str, SafetensorsTensor] = {}
        heads = []
        multimodal = "text_config" in self.config
        for name, tensor in (pair for file in self.files for pair in file.tensors.items()):
            if multimodal and name.startswith(VISION):
                continue
            tensor.check()
            if name in HEADS:
                heads.append(tensor)
                continue
            prefix = next((p for p in PREFIXES if name.startswith(p)), None)
            self.tensors["model." + name[len(prefix) :] if prefix else name] = tensor
        self.cfg = from_hf(self.config, Path(self.path).name)
        for head in heads:
            if self.cfg.tied:
                self._check_tied(head)
            else:
                self.tensors["lm_head.weight"] = head
        if self.cfg.scalar_head and not heads:  # a classifier decodes no tokens
            self.cfg = self.cfg.replace(tied=True)

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self.files)

    def model_config(self) -> TransformerConfig:
        return self.cfg

    def _check_tied(self, head: SafetensorsTensor) -> None:
        """Raises ValueError unless an output head equals the embedding table byte for byte.

        Some trainers write the tied table twice; a head of its own would silently be dropped.
        """
        table, same = self.tensors.get("model.embed_tokens.weight"), False
        if table is not None and table.shape == head.shape and table.dtype == head.dtype:
            bits = np.dtype(f"u{head.dtype.itemsize}")
            a, b = (t.file.mapped(t).view(bits) for t in (table, head))
            same = all(
                np.array_equal(a[i : i + 4096], b[i : i + 4096]) for i in range(0, len(a), 4096)
            )
            table.file.unmap_pages(table)
            head.file.unmap_pages(head)
        if not same:
            raise ValueError(
                f"{self.path}: {head.name} differs from model.embed_tokens.weight, "
                f"but {self.cfg.name} ties them: remove the tensor to load the checkpoint"
            )


def _file_names(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).exists()]:
            raise FileNotFoundError(
                f"{folder}: the index names missing files: {', '.join(missing)}. Download them"
            )
        return names
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    if len(names) != 1:
        files = f"{len(names)} safetensors files and no {INDEX}" if names else "no safetensors file"
        raise FileNotFoundError(
            f"{folder}: {files}. Convert files in PyTorch's .bin format to safetensors first"
        )
    return names
