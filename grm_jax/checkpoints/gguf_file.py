"""Reads GGUF files with the `gguf` package: dequantises to float32, rebuilds the tokenizer."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.checkpoints import gguf_config, gguf_tokenizer
from grm_jax.checkpoints.gguf_config import GEMMA, ROPE_FACTORS, VISION
from grm_jax.checkpoints.tensor_map import GGUF_NORMS
from grm_jax.checkpoints.tensors import Index, Reader, put
from grm_jax.model_files import damage_of
from grm_jax.models.config import TransformerConfig


class GgufTensor:
    """One tensor. Quantised blocks run along the last dimension, so whole rows are dequantised."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Any, architecture: str) -> None:
        self.tensor, self.shape = tensor, tuple(int(n) for n in reversed(tensor.shape))
        # Norms of Gemma are 1 + w; the 1 is subtracted in float32, before any rounding.
        is_norm = architecture in GEMMA and tensor.name.endswith(GGUF_NORMS)
        self.offset = np.float32(is_norm)
        # Llama's queries and keys hold the two halves of a head, which RoPE rotates, interleaved.
        rotated = ("attn_q.weight", "attn_k.weight")
        self.interleaved = architecture == "llama" and tensor.name.endswith(rotated)

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        from gguf import dequantize

        first = index[0] if isinstance(index[0], slice) else slice(index[0], index[0] + 1)
        per_index = self.shape[0] // view[0]  # rows on disk per index of the view's first dimension
        rows = self.tensor.data[first.start * per_index : first.stop * per_index]
        values = dequantize(np.ascontiguousarray(rows), self.tensor.tensor_type)
        values = values.astype(np.float32, copy=False)
        values = values.reshape(first.stop - first.start, *view[1:])
        if self.interleaved:
            n, head_dim, width = values.shape
            values = values.reshape(n, head_dim // 2, 2, width).swapaxes(1, 2).reshape(values.shape)
        values = values[(slice(None) if isinstance(index[0], slice) else 0, *index[1:])]
        with np.errstate(invalid="ignore"):  # the weights of a damaged file may be NaN
            put(out, values - self.offset if self.offset else values)


class GgufFile(Reader):
    """A GGUF file; tensors by their GGUF names, in shapes (out, in) as on disk."""

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Parses the header.

        Raises:
          ValueError: not a GGUF file, a damaged one, or a part of a model.
        """
        from grm_jax.checkpoints import gguf_reader

        self.path = str(path)
        reader = gguf_reader.parse(path)
        self.fields = reader.fields
        with damage_of(self.path, complete=True):
            self.architecture = self._text("general.architecture")
            self._check_is_whole_model()
            tensors = {t.name: GgufTensor(t, self.architecture) for t in reader.tensors}
        if self.architecture == "gemma3":
            tensors = {name: t for name, t in tensors.items() if not name.startswith(VISION)}
        self.rope_factors = None if self.architecture in GEMMA else tensors.pop(ROPE_FACTORS, None)
        self.tensors = tensors

    def field(self, key: str, default: Any = None) -> Any:
        """Returns a value of the metadata. Raises ValueError for text that is not UTF-8."""
        if key not in self.fields:
            return default
        try:
            return self.fields[key].contents()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {key} is not UTF-8") from error

    def model_config(self) -> TransformerConfig:
        """Returns the model that the metadata describes: `gguf_config.read_config`."""
        with damage_of(self.path, complete=True):
            return gguf_config.read_config(self)

    def _check_is_whole_model(self) -> None:
        kind, parts = self.field("general.type", "model"), self.field("split.count", 1)
        if kind != "model":
            raise ValueError(f"general.type is {kind!r:.80}: give the file of a model")
        if parts not in (0, 1):
            raise ValueError(
                f"it is one of {parts} files (split.count): merge them with llama-gguf-split"
            )

    def _text(self, key: str) -> str:
        value = self.field(key)
        if not isinstance(value, str):
            raise ValueError(f"{key} is {'missing' if value is None else 'not a text'}")
        return value

    def write_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer files, rebuilt from the file's vocabulary, into a folder.

        Raises:
          ValueError: a tokenizer of another type, or damaged: names the file and the key.
        """
        with damage_of(self.path, complete=True):
            gguf_tokenizer.write_tokenizer(self.field, folder, self.architecture in GEMMA)
