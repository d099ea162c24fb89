"""A GGUF file opened for reading, through the `gguf` package: weights dequantised to float32 row by row, the tokenizer rebuilt."""

from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.checkpoints.hf_config import DEFAULTS, released_like
from grm_jax.checkpoints.names import GGUF_NORMS
from grm_jax.checkpoints.tensors import Index, put
from grm_jax.models.config import LayerSpec, TransformerConfig

# GGUF does not say these: the base of Gemma 3's local layers, and which layers are global.
LOCAL_THETA = 10_000.0
EVERY = {"gemma2": 2, "gemma3": 6}
# Nor the query scale: d_model / heads in both 27B models, the head width in all others.
SCALE_BY_WIDTH = ("gemma2_27b", "gemma3_27b")


class GgufTensor:
    """Blocks of quantised values run along the last dimension on disk, so whole rows are dequantised."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(int(n) for n in reversed(tensor.shape))
        # Norms are stored as 1 + w: taken off in float32, before any rounding to the dtype that is wanted.
        self.offset = np.float32(tensor.name.endswith(GGUF_NORMS))

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        from gguf import dequantize

        first = index[0] if isinstance(index[0], slice) else slice(index[0], index[0] + 1)
        per = self.shape[0] // view[0]  # rows on disk to one index of the view's first dimension
        rows = self.tensor.data[first.start * per : first.stop * per]
        values = dequantize(np.ascontiguousarray(rows), self.tensor.tensor_type).astype(
            np.float32, copy=False
        )
        values = values.reshape(first.stop - first.start, *view[1:])
        values = values[(slice(None) if isinstance(index[0], slice) else 0, *index[1:])]
        put(out, values - self.offset if self.offset else values)


class GgufFile:
    """`tensors` by their GGUF names, shapes as on disk (out, in)."""

    form = "gguf"

    def __init__(self, path):
        from gguf import GGUFReader

        self.path = str(path)
        reader = GGUFReader(path)
        self.fields = reader.fields
        self.tensors = {t.name: GgufTensor(t) for t in reader.tensors}

    def field(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default

    def gemma_config(self) -> TransformerConfig:
        """The model that the metadata describes. Raises ValueError for another architecture than gemma2 and gemma3."""
        arch = self.field("general.architecture")
        if arch not in EVERY:
            raise ValueError(
                f"{self.path}: GGUF architecture {arch!r} is not read here: only {' and '.join(EVERY)} are"
            )

        def get(key, default=None):
            return self.field(f"{arch}.{key}", default)

        gemma2 = arch == "gemma2"
        known = DEFAULTS["gemma2" if gemma2 else "gemma3_text"]
        factor = (
            get("rope.scaling.factor", 1.0) if get("rope.scaling.type", "none") == "linear" else 1.0
        )
        window, theta = get("attention.sliding_window"), get("rope.freq_base", known["rope_theta"])
        local = LayerSpec(window, theta if gemma2 else get("rope.freq_base_swa", LOCAL_THETA))
        width, heads = get("embedding_length"), get("attention.head_count")
        cfg = TransformerConfig(
            name=Path(self.path).stem, vocab_size=self.tensors["token_embd.weight"].shape[0], num_layers=get("block_count"), d_model=width,
            d_ff=get("feed_forward_length"), num_heads=heads, num_kv_heads=get("attention.head_count_kv"),
            head_dim=get("attention.key_length"), query_pre_attn_scalar=get("attention.key_length"),
            pattern=(local,) * (EVERY[arch] - 1) + (LayerSpec(None, theta, factor),),
            attn_cap=get("attn_logit_softcapping", known["attn_logit_softcapping"]),
            final_cap=get("final_logit_softcapping", known["final_logit_softcapping"]), qk_norm=not gemma2,
            norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"), max_length=get("context_length"),
        )  # fmt: skip
        released = released_like(cfg)
        if released is None:
            return cfg
        scalar = width // heads if released.name in SCALE_BY_WIDTH else cfg.head_dim
        return cfg.replace(name=released.name, query_pre_attn_scalar=scalar)

    def sentencepiece_model(self) -> bytes:
        """The SentencePiece model that the file carries, rebuilt from its pieces, scores and types.

        Raises ValueError for a tokenizer of another kind."""
        import sentencepiece.sentencepiece_model_pb2 as pb_untyped

        pb: Any = pb_untyped  # generated code without stubs
        kind = self.field("tokenizer.ggml.model")
        if kind != "llama":
            raise ValueError(
                f"{self.path}: tokenizer {kind!r} is no SentencePiece model: give the tokenizer's own files"
            )
        ids = {
            key: self.field(f"tokenizer.ggml.{key}_token_id")
            for key in ("unknown", "bos", "eos", "padding")
        }
        kinds = pb.ModelProto.SentencePiece
        model = pb.ModelProto()
        columns = (
            self.field(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")
        )
        for i, (text, score, piece) in enumerate(zip(*columns, strict=True)):
            # Turn tokens are marked as control here, but must be found in text as in Google's model; runs of spaces are unescaped here.
            if piece == kinds.CONTROL and i not in ids.values():
                piece = kinds.USER_DEFINED
            model.pieces.add(
                piece=text.replace(" ", "\u2581"),
                score=score,
                type=kinds.UNKNOWN if i == ids["unknown"] else piece,
            )
        spec = model.trainer_spec
        spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(model.pieces)
        spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = ids.values()
        # The library finds these by their piece, not by their id.
        spec.unk_piece, spec.bos_piece, spec.eos_piece, spec.pad_piece = (
            model.pieces[i].piece for i in ids.values()
        )
        normalizer = model.normalizer_spec
        normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = (
            "identity",
            False,
            False,
        )
        return model.SerializeToString()
