"""Whole toy GGUF files with tokenizers, and what a file means."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import gguf
import jax
import numpy as np
from flax import nnx
from gguf import GGUFValueType as Type
from gguf_toys import add_byte_level_tokenizer, add_sentencepiece_tokenizer, llama3_factors, write
from toys import GEMMA2, GEMMA3, LLAMA, QWEN2, QWEN3, tensors

from grm_jax.checkpoints import load, open_checkpoint
from grm_jax.text import tokenizer

# The window of Gemma 2 is its class default, so that every key of its file but sizes can be absent.
CONFIGS = {
    "gemma2": GEMMA2 | {"sliding_window": 4096},
    "gemma3": GEMMA3,
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}
RULES = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
TEXT = "the quick  fox, again\n"


@functools.cache
def _tokenizer(arch):
    """Returns the function that adds a tokenizer to a writer."""
    if arch in RULES:
        return add_byte_level_tokenizer(RULES[arch])[1]
    with tempfile.TemporaryDirectory() as folder:
        return add_sentencepiece_tokenizer(Path(folder))[1]


@functools.cache
def _values(arch):
    return tensors(CONFIGS[arch], dtype=np.float32)


def write_toy(path, arch, change=None, quantization=None):
    """Writes a whole file, and returns its path; change(metadata) edits {key: GGUFValue}."""

    def add(writer):
        _tokenizer("gemma" if arch.startswith("gemma") else arch)(writer)
        if arch == "llama":  # the default of its vocabulary
            writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True
        if change:
            change(writer.kv_data[0])

    factors = llama3_factors() if arch == "llama" else None
    return write(path, CONFIGS[arch], _values(arch), quantization, factors=factors, add=add)


def set_field(fields, key, value):
    """Sets a field of the metadata to a value of its Python type."""
    types = {bool: Type.BOOL, str: Type.STRING, float: Type.FLOAT32, list: Type.ARRAY}
    item = types.get(type(value[0]), Type.UINT32) if isinstance(value, list) else None
    fields[key] = gguf.GGUFValue(value, types.get(type(value), Type.UINT64), item)


@dataclasses.dataclass
class Contents:
    """What a file means. ids: of TEXT as a text and as a chat, stops and the vocabulary's size."""

    cfg: object
    weights: list
    ids: tuple


def contents(path, folder):
    """Returns the contents of a file; its tokenizer is written into `folder`."""
    model = load(path, dtype="float32")
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    open_checkpoint(path).write_tokenizer(folder)
    own = tokenizer.load(folder)
    chat = own.encode_chat([{"role": "user", "content": TEXT}])
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    ids = (own.encode(TEXT), chat, own.stop_ids, own.vocab_size)
    return Contents(model.cfg.replace(name="toy"), weights, ids)
