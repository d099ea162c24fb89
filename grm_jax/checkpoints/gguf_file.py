"""Reads GGUF files with the `gguf` package: dequantises to float32, rebuilds the tokenizer."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.checkpoints import gguf_tokenizer
from grm_jax.checkpoints.hf_config import DEFAULTS, from_hf, released_like
from grm_jax.checkpoints.tensor_map import GGUF_NORMS
from grm_jax.checkpoints.tensors import Index, Reader, put
from grm_jax.models.config import LLAMA_3_1, LLAMA_3_2, LayerSpec, Llama3Rope, TransformerConfig
from grm_jax.models.transformer import rope_frequencies

# GGUF stores neither the RoPE base of Gemma 3's local layers nor which layers are global.
LOCAL_THETA = 10_000.0
PATTERN_LENGTH = {"gemma2": 2, "gemma3": 6}  # the last layer of the pattern is global
# GGUF architectures of models without Gemma's peculiarities -> architecture in config.json.
PLAIN = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# What a plain architecture's metadata holds, by the key of config.json.
PLAIN_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}
ROPE_FACTORS = "rope_freqs.weight"  # divisors of the frequencies of a Llama 3.1 or newer


class GgufTensor:
    """One tensor. Quantised blocks run along the last dimension, so whole rows are dequantised."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Any, architecture: str) -> None:
        self.tensor, self.shape = tensor, tuple(int(n) for n in reversed(tensor.shape))
        # Norms of Gemma are 1 + w; the 1 is subtracted in float32, before any rounding.
        is_norm = architecture in PATTERN_LENGTH and tensor.name.endswith(GGUF_NORMS)
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
        put(out, values - self.offset if self.offset else values)


@functools.lru_cache(maxsize=1)
def _parsed(path: str, mtime: int) -> Any:
    """The parsed header of a file; a vocabulary takes seconds. mtime: part of the cache key."""
    from gguf import GGUFReader

    return GGUFReader(path)


class GgufFile(Reader):
    """A GGUF file; tensors by their GGUF names, in shapes (out, in) as on disk."""

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        reader = _parsed(self.path, os.stat(path).st_mtime_ns)
        self.fields = reader.fields
        self.architecture = str(self.field("general.architecture"))
        self.tensors = {t.name: GgufTensor(t, self.architecture) for t in reader.tensors}
        self.rope_factors = self.tensors.pop(ROPE_FACTORS, None)

    def field(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default

    def model_config(self) -> TransformerConfig:
        """Returns the model that the metadata describes.

        The query scale, which GGUF does not store, is that of the registered model of these sizes,
        or else the head width.

        Raises:
          ValueError: an unsupported architecture, or scaling of RoPE that is not Llama 3's.
        """
        arch = self.architecture
        if arch in PLAIN:
            return self._plain_config(arch)
        if arch not in PATTERN_LENGTH:
            raise ValueError(
                f"{self.path}: GGUF architecture {arch!r} is not supported: "
                f"use {', '.join([*PATTERN_LENGTH, *PLAIN])}"
            )

        def get(key: str, default: Any = None) -> Any:
            return self.field(f"{arch}.{key}", default)

        gemma2 = arch == "gemma2"
        default = DEFAULTS["gemma2" if gemma2 else "gemma3_text"]
        theta = get("rope.freq_base", default["rope_theta"])
        linear = get("rope.scaling.type", "none") == "linear"
        local = LayerSpec(
            window=get("attention.sliding_window"),
            rope_theta=theta if gemma2 else get("rope.freq_base_swa", LOCAL_THETA),
        )
        full = LayerSpec(None, theta, get("rope.scaling.factor", 1.0) if linear else 1.0)
        cfg = TransformerConfig(
            name=Path(self.path).stem,
            vocab_size=self.tensors["token_embd.weight"].shape[0],
            num_layers=get("block_count"),
            d_model=get("embedding_length"),
            d_ff=get("feed_forward_length"),
            num_heads=get("attention.head_count"),
            num_kv_heads=get("attention.head_count_kv"),
            head_dim=get("attention.key_length"),
            query_pre_attn_scalar=get("attention.key_length"),
            pattern=(local,) * (PATTERN_LENGTH[arch] - 1) + (full,),
            attn_cap=get("attn_logit_softcapping", default["attn_logit_softcapping"]),
            final_cap=get("final_logit_softcapping", default["final_logit_softcapping"]),
            qk_norm=not gemma2,
            norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
            max_length=get("context_length"),
        )
        released = released_like(cfg) or cfg
        return cfg.replace(name=released.name, query_pre_attn_scalar=released.query_pre_attn_scalar)

    def _plain_config(self, arch: str) -> TransformerConfig:
        """Returns the configuration of a Llama or Qwen, by way of its config.json."""
        fields = {key: self.field(f"{arch}.{name}") for key, name in PLAIN_KEYS.items()}
        scaling = self.field(f"{arch}.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise ValueError(f"{self.path}: RoPE scaling {scaling!r} is not supported")
        if scaling == "linear":
            factor = self.field(f"{arch}.rope.scaling.factor")
            fields["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        eps = self.field(f"{arch}.attention.layer_norm_rms_epsilon")
        config = {
            "architectures": [PLAIN[arch]],
            "vocab_size": self.tensors["token_embd.weight"].shape[0],
            "rms_norm_eps": float(f"{eps:.6g}"),
            "tie_word_embeddings": "output.weight" not in self.tensors,
        }
        config |= {key: value for key, value in fields.items() if value is not None}
        cfg = from_hf(config, Path(self.path).stem, self.path)
        if self.rope_factors is None:
            return cfg
        (spec,) = cfg.pattern
        spec = dataclasses.replace(spec, llama3_rope=self._llama3_rope(spec, cfg.head_dim))
        return cfg.replace(pattern=(spec,))

    def _llama3_rope(self, spec: LayerSpec, head_dim: int) -> Llama3Rope:
        """Returns the scaling of Llama 3 whose divisors of the frequencies the file holds."""
        stored = np.empty(head_dim // 2, np.float32)
        self.rope_factors.read_into(stored.shape, (slice(0, len(stored)),), stored)
        for rope in (LLAMA_3_1, LLAMA_3_2):
            if np.allclose(stored, llama3_divisors(spec, head_dim, rope), rtol=1e-3):
                return rope
        raise ValueError(
            f"{self.path}: the RoPE factors {stored.min():g} to {stored.max():g} are not those of "
            "Llama 3.1 or 3.2: convert the Hugging Face folder instead"
        )

    def write_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer files, rebuilt from the file's vocabulary, into a folder.

        Raises:
          ValueError: a tokenizer of another type.
        """
        gguf_tokenizer.write_tokenizer(self.field, folder, self.path)


def llama3_divisors(spec: LayerSpec, head_dim: int, rope: Llama3Rope) -> np.ndarray:
    """Returns what Llama 3's scaling divides each RoPE frequency by, float32 (head_dim / 2,)."""
    scaled = dataclasses.replace(spec, llama3_rope=rope)
    return np.asarray(
        rope_frequencies(spec, head_dim) / rope_frequencies(scaled, head_dim), np.float32
    )
