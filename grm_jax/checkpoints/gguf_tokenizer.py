"""Rebuilds the tokenizer files of a model from the vocabulary in its GGUF file.

A vocabulary of type "llama" becomes a SentencePiece model, one of type "gpt2" (byte-level BPE) a
tokenizer.json.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How byte-level vocabularies split a text before their merges apply, by the name that GGUF gives
# the rule (tokenizer.ggml.pre). Sources: the tokenizer.json files of the released models.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# None: digits one by one, then GPT-2's own rule.
SPLITS = {"qwen2": _WORDS % "", "llama-bpe": _WORDS % "{1,3}", "smollm": None}
SPECIAL = ("bos", "eos", "unknown", "padding")
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's types of added tokens: not text, and text


def write_tokenizer(field: Callable[[str], Any], folder: Path, name: str) -> None:
    """Writes the tokenizer files into a folder.

    Args:
      field: returns a metadata field, or None.
      name: of the GGUF file, for errors.

    Raises:
      ValueError: a tokenizer of another type, or a split rule that is not in `SPLITS`.
    """
    kind = field("tokenizer.ggml.model")
    if kind == "llama":
        (folder / "tokenizer.model").write_bytes(_sentencepiece_model(field))
        return
    rule = field("tokenizer.ggml.pre")
    if kind != "gpt2" or rule not in SPLITS:
        raise ValueError(
            f"{name}: the tokenizer {kind!r} with the split rule {rule!r} is not supported: "
            "pass the tokenizer's own files"
        )
    (folder / "tokenizer.json").write_text(_byte_level_bpe(field, rule), encoding="utf-8")
    tokens = field("tokenizer.ggml.tokens")
    names = dict(zip(SPECIAL, ("bos_token", "eos_token", "unk_token", "pad_token")))
    ids = {key: field(f"tokenizer.ggml.{special}_token_id") for special, key in names.items()}
    config = {key: tokens[i] for key, i in ids.items() if i is not None}
    config["add_bos_token"] = bool(field("tokenizer.ggml.add_bos_token"))
    config["chat_template"] = field("tokenizer.chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def _byte_level_bpe(field: Callable[[str], Any], rule: str) -> str:
    """Returns the content of a tokenizer.json."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    tokens = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    bpe = models.BPE(vocabulary, merges, ignore_merges=rule == "llama-bpe")
    tokenizer = tokenizers.Tokenizer(bpe)
    words = SPLITS[rule]
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    split = (
        pre_tokenizers.Digits(individual_digits=True)
        if words is None
        else pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    types = field("tokenizer.ggml.token_type")
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [token for token, one in zip(tokens, types, strict=True) if one == kind]
        tokenizer.add_tokens(
            [tokenizers.AddedToken(token, special=special, normalized=False) for token in added]
        )
    return tokenizer.to_str()


def _sentencepiece_model(field: Callable[[str], Any]) -> bytes:
    """Returns a SentencePiece model of the file's pieces, scores and types."""
    import sentencepiece.sentencepiece_model_pb2 as untyped

    pb: Any = untyped  # generated code without stubs
    ids = {name: field(f"tokenizer.ggml.{name}_token_id") for name in SPECIAL}
    types, model = pb.ModelProto.SentencePiece, pb.ModelProto()
    columns = (field(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    for i, (text, score, piece_type) in enumerate(zip(*columns, strict=True)):
        # GGUF marks turn tokens as control; Google's model has them as user-defined, so that they
        # are matched in text. GGUF also unescapes runs of spaces.
        if piece_type == types.CONTROL and i not in ids.values():
            piece_type = types.USER_DEFINED
        model.pieces.add(
            piece=text.replace(" ", "\u2581"),
            score=score,
            type=types.UNKNOWN if i == ids["unknown"] else piece_type,
        )
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(model.pieces)
    spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id = ids.values()
    # sentencepiece looks these up by piece, not by id.
    pieces = (model.pieces[i].piece for i in ids.values())
    spec.bos_piece, spec.eos_piece, spec.unk_piece, spec.pad_piece = pieces
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    return model.SerializeToString()
