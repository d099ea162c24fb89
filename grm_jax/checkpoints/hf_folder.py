"""A Hugging Face folder opened for reading: config.json, and one safetensors file or several with an index."""

import json
from pathlib import Path

import numpy as np

from grm_jax.checkpoints.hf_config import from_hf
from grm_jax.checkpoints.safetensors_file import SafetensorsFile, SafetensorsTensor
from grm_jax.models.config import TransformerConfig

INDEX = "model.safetensors.index.json"

# Where the language model stands: text models, then multimodal ones as old and new versions of transformers write them.
PREFIXES = ("language_model.model.", "model.language_model.", "model.")
# Parts of a multimodal checkpoint that are not the language model.
VISION = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
HEADS = ("lm_head.weight", "language_model.lm_head.weight")


class HfFolder:
    """`tensors` by their names in a text-only checkpoint (model.layers.0..., score.weight), wherever the folder holds them."""

    form = "hf"

    def __init__(self, path):
        self.path = str(path)
        folder = Path(path)
        self.config = json.loads((folder / "config.json").read_text())
        self.files = [SafetensorsFile(folder / name) for name in _file_names(folder)]
        self.tensors: dict[str, SafetensorsTensor] = {}
        heads = []
        multimodal = "text_config" in self.config
        for file in self.files:
            for name, tensor in file.tensors.items():
                if multimodal and name.startswith(VISION):
                    continue
                tensor.check()
                if name in HEADS:
                    heads.append(tensor)
                    continue
                prefix = next((p for p in PREFIXES if name.startswith(p)), None)
                self.tensors["model." + name[len(prefix) :] if prefix else name] = tensor
        for head in heads:
            self._check_tied(head)

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self.files)

    def gemma_config(self) -> TransformerConfig:
        return from_hf(self.config, Path(self.path).name)

    def _check_tied(self, head: SafetensorsTensor) -> None:
        """Some trainers write the tied table twice. A head of its own would be lost without a word, so it is compared."""
        table, same = self.tensors.get("model.embed_tokens.weight"), False
        if table is not None and table.shape == head.shape and table.dtype == head.dtype:
            bits = np.dtype(f"u{head.dtype.itemsize}")
            a, b = table.file.mapped(table).view(bits), head.file.mapped(head).view(bits)
            same = all(
                np.array_equal(a[i : i + 4096], b[i : i + 4096]) for i in range(0, len(a), 4096)
            )
            table.file.unmap_pages(table)
            head.file.unmap_pages(head)
        if not same:
            raise ValueError(
                f"{self.path}: {head.name} differs from model.embed_tokens.weight, but Gemma 2 and 3 tie them: remove it to load"
            )


def _file_names(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if absent := [name for name in names if not (folder / name).exists()]:
            raise FileNotFoundError(
                f"{folder}: the index names files that are not there: {', '.join(absent)}. Fetch them again"
            )
        return names
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(names) != 1:
        found = f"{len(names)} safetensors files and no {INDEX}" if names else "no safetensors file"
        raise FileNotFoundError(
            f"{folder}: {found}. Files in PyTorch's .bin format are to be saved as safetensors first"
        )
    return names
