"""Reads a Hugging Face folder: config.json, and one safetensors file or several with an index."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from grm_jax.checkpoints.hf_config import float_config, from_hf
from grm_jax.checkpoints.safetensors_file import SafetensorsFile, SafetensorsTensor
from grm_jax.checkpoints.tensor_map import INT8
from grm_jax.checkpoints.tensors import Reader, widened
from grm_jax.model_files import INDEX, exists, one_line, read_json, weight_files
from grm_jax.models.config import TransformerConfig

# Prefixes of the language model: multimodal checkpoints of old and new transformers, text models.
PREFIXES = ("language_model.model.", "model.language_model.", "model.")
# Prefixes of the vision encoder in multimodal checkpoints.
VISION = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
DERIVED = ".rotary_emb.inv_freq"  # a table that old Llama checkpoints hold beside the weights
HEADS = ("lm_head.weight", "language_model.lm_head.weight")


class HfFolder(Reader):
    """A folder; tensors by their names in a text-only checkpoint: model.layers.0..."""

    format = "hf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        folder = Path(path)
        self.config = read_json(folder / "config.json")
        index = read_json(folder / INDEX) if exists(folder / INDEX) else None
        names = weight_files(self.path, index, os.listdir(folder))
        self.files = [SafetensorsFile(folder / name) for name in names]
        if index is not None:
            self._check_index(index["weight_map"])
        self.tensors: dict[str, SafetensorsTensor] = {}
        for name, tensor in self._language_tensors():
            if name in self.tensors:
                raise ValueError(
                    f"{self.path}: {one_line(tensor.name)} is in {tensor.file.path.name} and, "
                    f"as {one_line(self.tensors[name].name)}, in "
                    f"{self.tensors[name].file.path.name}: remove one"
                )
            self.tensors[name] = tensor
        if (config := float_config(self.config)) is not None:
            self.format = "hf_int8"
        self.cfg = from_hf(self.config if config is None else config, folder.name, self.path)
        if config is not None:
            self.cfg = self.cfg.replace(quantize="int8")
        head = self.tensors.get(HEADS[0]) or self.tensors.get(HEADS[0] + INT8)
        self.has_no_output_head = self.cfg.scalar_head and not self.cfg.tied and head is None
        if self.cfg.scalar_head:  # a classifier decodes no tokens
            self.cfg = self.cfg.replace(tied=self.cfg.tied or head is None)
        if head is not None and self.cfg.tied:
            self._check_tied(self.tensors.pop(HEADS[0]))
        norm = self.tensors.get("model.norm.weight")
        if norm is not None and norm.shape != (self.cfg.d_model,):
            raise ValueError(
                f"{self.path}: hidden_size={self.cfg.d_model} in config.json, but {norm.name} has "
                f"the shape {norm.shape}: the two files are of different models"
            )

    def _language_tensors(self) -> Iterator[tuple[str, SafetensorsTensor]]:
        """Yields the tensors by their names in a text-only checkpoint."""
        multimodal = "text_config" in self.config
        for name, tensor in (pair for file in self.files for pair in file.tensors.items()):
            if (multimodal and name.startswith(VISION)) or name.endswith(DERIVED):
                continue
            tensor.dtype  # noqa: B018  raises ValueError for a type that is not supported
            prefix = next((p for p in PREFIXES if name.startswith(p)), None)
            name = "model." + name[len(prefix) :] if prefix else name
            yield HEADS[0] if name in HEADS else name, tensor

    def _check_index(self, weight_map: dict[str, str]) -> None:
        """Raises ValueError for a tensor that is not in its file of the index."""
        tensors = {file.path.name: file.tensors for file in self.files}
        for name, file in weight_map.items():
            if file in tensors and name not in tensors[file]:
                raise ValueError(
                    f"{self.path}: {INDEX} puts {one_line(name):.80} into {file}, which "
                    "lacks it: the index and the file are of different models, download both again"
                )

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self.files)

    def model_config(self) -> TransformerConfig:
        return self.cfg

    def fit(self, cfg: TransformerConfig) -> TransformerConfig:
        return cfg.replace(quantize=self.cfg.quantize or cfg.quantize)

    def _check_tied(self, head: SafetensorsTensor) -> None:
        """Raises ValueError unless an output head equals the embedding table value by value.

        Some trainers write the tied table twice, some in another dtype; a head of its own would
        silently be dropped.
        """
        table, same = self.tensors.get("model.embed_tokens.weight"), False
        if table is not None and len(table.shape) == 2 and table.shape == head.shape:
            a, b = (t.file.mapped(t) for t in (table, head))
            same = all(
                np.array_equal(widened(a[i : i + 4096]), widened(b[i : i + 4096]), equal_nan=True)
                for i in range(0, len(a), 4096)
            )
            table.file.unmap_pages(table)
            head.file.unmap_pages(head)
        if not same:
            raise ValueError(
                f"{self.path}: {head.name} differs from model.embed_tokens.weight, "
                f"but {self.cfg.name} ties them: remove the tensor to load the checkpoint"
            )
