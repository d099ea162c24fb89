"""Rebuilds the tokenizer files of a model from the vocabulary in its GGUF file.

A vocabulary of type "llama" becomes a SentencePiece model, one of type "gpt2" (byte-level BPE) a
tokenizer.json.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.model_files import END_OF_TURN

# How byte-level vocabularies split a text before their merges apply, by the name that GGUF gives
# the rule (tokenizer.ggml.pre). Sources: the tokenizer.json files of the released models.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# None: digits one by one, then GPT-2's own rule.
SPLITS = {"qwen2": _WORDS % "", "llama-bpe": _WORDS % "{1,3}", "smollm": None}
# Special tokens by GGUF's name -> their usual pieces, which stand for a missing id.
SPECIAL: dict[str, tuple[str, ...]] = {
    "bos": ("<bos>", "<s>"),
    "eos": ("<eos>", "</s>"),
    "unknown": ("<unk>",),
    "padding": ("<pad>",),
}
_GEMMAS_OWN = "Conversation roles must alternate user/assistant"  # part of Google's templates
_ADDED = _CONTROL, _USER_DEFINED = 3, 4  # GGUF's types of added tokens: not text, and text
_TYPES = range(1, 7)
Field = Callable[[str], Any]  # returns a value of the metadata, or None


def write_tokenizer(field: Field, folder: Path, is_gemma: bool) -> None:
    """Writes the tokenizer files into a folder.

    Args:
      is_gemma: its SentencePiece models do not begin a text with a space, other ones do.

    Raises:
      ValueError: a tokenizer of another type, a split rule that is not in `SPLITS`, or damaged
        metadata; names the key.
    """
    kind, rule = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")
    if kind != "llama" and (kind != "gpt2" or not isinstance(rule, str) or rule not in SPLITS):
        raise ValueError(
            "tokenizer.ggml.model and tokenizer.ggml.pre: "
            f"the tokenizer {kind!r:.80} with the split rule {rule!r:.80} is not supported: "
            "pass the tokenizer's own files"
        )
    if _flag(field, "add_eos_token"):
        raise ValueError("tokenizer.ggml.add_eos_token is true, which is not supported")
    tokens = _column(field, "tokens", str)
    if doubled := len(tokens) - len(set(tokens)):
        raise ValueError(f"tokenizer.ggml.tokens has {doubled} tokens twice")
    types = _column(field, "token_type", int, len(tokens))
    if unknown := set(types) - set(_TYPES):
        raise ValueError(f"tokenizer.ggml.token_type has the unknown type {min(unknown)}")
    ids = _special_ids(field, tokens, kind == "llama")
    template = field("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError("tokenizer.chat_template is not a text")
    config: dict[str, Any] = {}
    if kind == "llama":
        scores = _column(field, "scores", float, len(tokens))
        has_prefix = _flag(field, "add_space_prefix", not is_gemma)
        model = _sentencepiece_model(tokens, scores, types, ids, has_prefix)
        (folder / "tokenizer.model").write_bytes(model)
        if not _flag(field, "add_bos_token", True):
            config["add_bos_token"] = False
        # Without Gemma's own, ours stands in: the same turns, and system texts are not rejected.
        if template and not (is_gemma and _GEMMAS_OWN in template):
            config["chat_template"] = template
    else:
        bpe = _byte_level_bpe(tokens, _column(field, "merges", str), types, rule)
        (folder / "tokenizer.json").write_text(bpe, encoding="utf-8")
        names = zip(SPECIAL, ("bos_token", "eos_token", "unk_token", "pad_token"))
        config = {key: tokens[i] for name, key in names if (i := ids[name]) is not None}
        # As in llama.cpp: of the byte-level vocabularies, Llama 3's begins a text with BOS.
        config["add_bos_token"] = _flag(field, "add_bos_token", rule == "llama-bpe")
        if config["add_bos_token"] and ids["bos"] is None:
            raise ValueError("tokenizer.ggml.bos_token_id is missing")
        config["chat_template"] = template
    ends = {i for i, token in enumerate(tokens) if token in END_OF_TURN and types[i] in _ADDED}
    ends |= {i for i in (ids["eos"], _id(field, "eot", tokens)) if i is not None}
    named = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"]}
    generation: dict[str, Any] = {key: i for key, i in named.items() if i is not None}
    generation["eos_token_id"] = sorted(ends)
    for name, content in (("tokenizer_config", config), ("generation_config", generation)):
        if content:
            text = strict_json.dumps(content, indent=2)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _flag(field: Field, name: str, default: bool = False) -> bool:
    value = field(f"tokenizer.ggml.{name}")
    if value not in (None, True, False):
        raise ValueError(f"tokenizer.ggml.{name} = {value!r:.80} is not a boolean")
    return default if value is None else bool(value)


def _column(field: Field, name: str, kind: type, length: int | None = None) -> list[Any]:
    """Returns a list of the metadata with finite values of one type."""
    values = field(f"tokenizer.ggml.{name}")
    if values is None:
        raise ValueError(f"tokenizer.ggml.{name} is missing: pass the tokenizer's own files")
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"tokenizer.ggml.{name} is not a list of {kind.__name__}")
    if length is not None and len(values) != length:
        raise ValueError(f"tokenizer.ggml.{name} has {len(values):,} values for {length:,} tokens")
    if kind is float and not all(map(math.isfinite, values)):
        raise ValueError(f"tokenizer.ggml.{name} has a value that is not finite")
    return values


def _special_ids(field: Field, tokens: list[str], by_piece: bool) -> dict[str, int | None]:
    """Returns the ids of the special tokens; None for one that the vocabulary lacks.

    by_piece: a missing id is that of the token's usual piece. Byte-level vocabularies have no usual
    pieces.
    """
    ids: dict[str, int | None] = {}
    for name, pieces in SPECIAL.items():
        token_id = _id(field, name, tokens)
        if token_id is None and by_piece:
            token_id = next((tokens.index(piece) for piece in pieces if piece in tokens), None)
        ids[name] = token_id
    required = ("bos", "eos", "unknown") if by_piece else ("eos",)
    if missing := [name for name in required if ids[name] is None]:
        raise ValueError(f"tokenizer.ggml.{missing[0]}_token_id is missing")
    return ids


def _id(field: Field, name: str, tokens: list[str]) -> int | None:
    """Returns the id of a special token, None if it is not stated."""
    key = f"tokenizer.ggml.{name}_token_id"
    token_id = field(key)
    if token_id is None or (type(token_id) is int and 0 <= token_id < len(tokens)):
        return token_id
    raise ValueError(f"{key} = {token_id!r:.80} is not the id of one of {len(tokens):,} tokens")


def _byte_level_bpe(tokens: list[str], merges: list[str], types: list[int], rule: str) -> str:
    """Returns the content of a tokenizer.json."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    if wrong := [merge for merge in merges if " " not in merge]:
        raise ValueError(f"tokenizer.ggml.merges has {wrong[0]!r:.80}, which is not a pair")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    bpe = models.BPE(vocabulary, pairs, ignore_merges=rule == "llama-bpe")
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
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [token for token, one in zip(tokens, types, strict=True) if one == kind]
        tokenizer.add_tokens(
            [tokenizers.AddedToken(token, special=special, normalized=False) for token in added]
        )
    return tokenizer.to_str()


def _sentencepiece_model(
    tokens: list[str],
    scores: list[float],
    piece_types: list[int],
    ids: dict[str, int | None],
    has_prefix: bool,
) -> bytes:
    """Returns a SentencePiece model. has_prefix: a text begins with a space."""
    import sentencepiece
    import sentencepiece.sentencepiece_model_pb2 as untyped

    pb: Any = untyped  # generated code without stubs
    types, model = pb.ModelProto.SentencePiece, pb.ModelProto()
    for i, (text, score, piece_type) in enumerate(zip(tokens, scores, piece_types, strict=True)):
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
    for name, id in zip(("bos", "eos", "unk", "pad"), ids.values()):
        setattr(spec, f"{name}_id", -1 if id is None else id)
        if id is not None:  # sentencepiece looks these up by piece, not by id
            setattr(spec, f"{name}_piece", model.pieces[id].piece)
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = has_prefix, False
    data: bytes = model.SerializeToString()
    sentencepiece.SentencePieceProcessor(model_proto=data)  # raises for pieces that it refuses
    return data
