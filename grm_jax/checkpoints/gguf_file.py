"""Reads GGUF files with the `gguf` package: dequantises to float32, rebuilds the tokenizer."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.checkpoints.hf_config import DEFAULTS, released_like
from grm_jax.checkpoints.tensor_map import GGUF_NORMS
from grm_jax.checkpoints.tensors import Index, Reader, put
from grm_jax.models.config import LayerSpec, TransformerConfig

# GGUF stores neither the RoPE base of Gemma 3's local layers nor which layers are global.
LOCAL_THETA = 10_000.0
PATTERN_LENGTH = {"gemma2": 2, "gemma3": 6}  # the last layer of the pattern is global


class GgufTensor:
    """One tensor. Quantised blocks run along the last dimension, so whole rows are dequantised."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape = tensor, tuple(int(n) for n in reversed(tensor.shape))
        # GGUF stores norms as 1 + w; the 1 is subtracted in float32, before any rounding.
        self.offset = np.float32(tensor.name.endswith(GGUF_NORMS))

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        from gguf import dequantize

        first = index[0] if isinstance(index[0], slice) else slice(index[0], index[0] + 1)
        per_index = self.shape[0] // view[0]  # rows on disk per index of the view's first dimension
        rows = self.tensor.data[first.start * per_index : first.stop * per_index]
        values = dequantize(np.ascontiguousarray(rows), self.tensor.tensor_type)
        values = values.astype(np.float32, copy=False)
        values = values.reshape(first.stop - first.start, *view[1:])
        values = values[(slice(None) if isinstance(index[0], slice) else 0, *index[1:])]
        put(out, values - self.offset if self.offset else values)


class GgufFile(Reader):
    """A GGUF file; tensors by their GGUF names, in shapes (out, in) as on disk."""

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from gguf import GGUFReader

        self.path = str(path)
        reader = GGUFReader(path)
        self.fields = reader.fields
        self.tensors = {tensor.name: GgufTensor(tensor) for tensor in reader.tensors}

    def field(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default

    def model_config(self) -> TransformerConfig:
        """Returns the model that the metadata describes.

        The query scale, which GGUF does not store, is that of the registered model of these sizes,
        or else the head width.

        Raises:
          ValueError: an architecture other than gemma2 and gemma3.
        """
        arch = self.field("general.architecture")
        if arch not in PATTERN_LENGTH:
            raise ValueError(
                f"{self.path}: GGUF architecture {arch!r} is not supported: "
                f"use {' or '.join(PATTERN_LENGTH)}"
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

    def sentencepiece_model(self) -> bytes:
        """Returns the file's SentencePiece model, rebuilt from its pieces, scores and types.

        Raises:
          ValueError: a tokenizer of another type.
        """
        import sentencepiece.sentencepiece_model_pb2 as untyped

        pb: Any = untyped  # generated code without stubs
        tokenizer = self.field("tokenizer.ggml.model")
        if tokenizer != "llama":
            raise ValueError(
                f"{self.path}: tokenizer {tokenizer!r} is not a SentencePiece model: "
                "pass the tokenizer's own files"
            )
        special = ("unknown", "bos", "eos", "padding")
        ids = {name: self.field(f"tokenizer.ggml.{name}_token_id") for name in special}
        types, model = pb.ModelProto.SentencePiece, pb.ModelProto()
        keys = ("tokens", "scores", "token_type")
        columns = (self.field(f"tokenizer.ggml.{key}") for key in keys)
        for i, (text, score, piece_type) in enumerate(zip(*columns, strict=True)):
            # GGUF marks turn tokens as control; Google's model has them as user-defined, so that
            # they are matched in text. GGUF also unescapes runs of spaces.
            if piece_type == types.CONTROL and i not in ids.values():
                piece_type = types.USER_DEFINED
            model.pieces.add(
                piece=text.replace(" ", "\u2581"),
                score=score,
                type=types.UNKNOWN if i == ids["unknown"] else piece_type,
            )
        spec = model.trainer_spec
        spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(model.pieces)
        spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = ids.values()
        # sentencepiece looks these up by piece, not by id.
        pieces = (model.pieces[i].piece for i in ids.values())
        spec.unk_piece, spec.bos_piece, spec.eos_piece, spec.pad_piece = pieces
        normalizer = model.normalizer_spec
        normalizer.name = "identity"
        normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
        return model.SerializeToString()
