"""SentencePiece models and tokenizer.json files behind one interface, `Backend`.

A backend's `encode` still recognises control strings; `Tokenizer` never passes it one.
"""

import functools
import math
import re
from pathlib import Path
from typing import Any, Protocol

from grm_jax import strict_json
from grm_jax.model_files import damage_of, one_line, read_bytes
from grm_jax.storage import write_atomic

# Control tokens that some vocabulary files list as ordinary: turns, images, unused ids, masks.
CONTROL = re.compile(
    r"<(?:start|end)_of_(?:turn|image)>|<image_soft_token>|<mask>|<unused\d+>|<2mass>|\[@BOS@\]|\[multimodal\]"
    r"|<(?:bos|eos|pad|unk)>|<\|[^|<>]{1,40}\|>|<｜[^<>]{1,40}｜>"
)
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
IMAGE_TOKEN = "<image_soft_token>"  # Gemma 3's, past the text vocabulary
MAX_SIZE = 1 << 24  # ids; the largest vocabularies have 262,208
# Encoded when a file is loaded: a damaged vocabulary fails here instead of in the first prompt.
PROBE = (
    "Hello, world! It's 10 * 3.5 = 35; f(x_1)  [a]\t{b}\n\n\n  <h1>A</h1>\\boxed{7, 2} \u2581 "
    "naïve 日本語 Русский \U0001f600 \x00 \u200b e\u0301"
)


class Backend(Protocol):
    """A vocabulary file.

    size: the number of ids.  controls: {string: id} of tokens that are not text.  content: the
    bytes of the file, or the same for equal vocabularies.
    """

    size: int
    content: bytes
    controls: dict[str, int]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def id_of(self, token: str) -> int | None:
        """The id of a token with exactly this spelling."""

    def piece_bytes(self, i: int) -> bytes:
        """The bytes that one id contributes to a text."""

    def save(self, folder: Path) -> None: ...

    def default(self, name: str) -> int | None:
        """The id of "bos", "eos" or "pad"; None where the vocabulary has none."""


class SentencePiece:
    """A SentencePiece `.model` file. linked: see `model_files.check_file`."""

    def __init__(self, path: Path, linked: bool = False):
        import sentencepiece

        self.content = content = read_bytes(path, linked)
        with damage_of(path):
            try:
                self.model = sentencepiece.SentencePieceProcessor()
                self.model.LoadFromSerializedProto(content)
            except (RuntimeError, OSError) as error:
                raise ValueError(
                    f"{path} is not a SentencePiece model: {one_line(error)}: download it again"
                ) from error
            self.size = self.model.vocab_size()
            ids = list(range(self.size))
            if not all(map(math.isfinite, self.model.get_score(ids))):
                raise ValueError(f"{path} has a piece without a finite score: download it again")
            self.controls = {
                piece: i
                for i, piece in enumerate(self.model.id_to_piece(ids))
                if self.model.is_control(i) or self.model.is_unknown(i) or CONTROL.fullmatch(piece)
            }
            _probe(self, path)

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids)

    def id_of(self, token: str) -> int | None:
        i = self.model.piece_to_id(token)
        return i if self.model.id_to_piece(i) == token else None

    def piece_bytes(self, i: int) -> bytes:
        return _piece_bytes(self.model.id_to_piece(i))

    def save(self, folder: Path) -> None:
        write_atomic(folder / "tokenizer.model", self.content)

    def default(self, name: str) -> int | None:
        i = getattr(self.model, f"{name}_id")()
        return i if i >= 0 else None


class TokenizerJson:
    """A `tokenizer.json` file, through the `tokenizers` library. linked: as in `SentencePiece`."""

    def __init__(self, path: Path, linked: bool = False):
        import tokenizers

        self.content = read_bytes(path, linked)
        with damage_of(path):
            try:
                fields = strict_json.loads(self.content)
                if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
                    raise ValueError('it has no object "model", the vocabulary')
                _check_prefix(fields["model"])
                self.model = tokenizers.Tokenizer.from_str(self.content.decode())
            except Exception as error:  # The library raises bare Exception.
                raise ValueError(
                    f"{path} is not a tokenizer.json: {one_line(error)}: download it again"
                ) from error
            self.model.no_truncation()
            self.model.no_padding()
            self.size = _checked_size(path, fields, self.model)
            self.controls = {
                token.content: i
                for i, token in self.model.get_added_tokens_decoder().items()
                if token.special or CONTROL.fullmatch(token.content)
            }
            self.added = {t.content for t in self.model.get_added_tokens_decoder().values()}
            self.byte_level = "ByteLevel" in strict_json.dumps(fields.get("decoder"))
            _probe(self, path)

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids, skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self.model.token_to_id(token)

    def piece_bytes(self, i: int) -> bytes:
        piece = self.model.id_to_token(i) or ""
        if self.byte_level and piece in self.added:
            return piece.encode()
        if self.byte_level:
            table = _byte_level_table()
            return bytes(table[c] for c in piece if c in table)
        return _piece_bytes(piece)

    def save(self, folder: Path) -> None:
        write_atomic(folder / "tokenizer.json", self.content)

    def default(self, name: str) -> int | None:
        spellings = {
            "bos": ("<bos>", "<s>"),
            "eos": ("<eos>", "</s>", "<|endoftext|>"),
            "pad": ("<pad>", "<|endoftext|>"),
        }
        # A byte-level vocabulary may have "<s>" as a piece of text.
        return next((i for i in map(self.controls.get, spellings[name]) if i is not None), None)


def _check_prefix(model: dict[str, Any]) -> None:
    """Raises ValueError for merges on which the library panics, with a backtrace on stderr."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or () if prefix else ():
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[1]
        if not second.startswith(prefix):
            raise ValueError(
                f"the merge {merge!r:.60} lacks continuing_subword_prefix {prefix!r:.40}"
            )


def _checked_size(path: Path, fields: dict[str, Any], model: Any) -> int:
    """Returns the number of ids. Raises ValueError for wrong ids and for a random encoding."""
    if dropout := fields["model"].get("dropout"):
        raise ValueError(
            f"{path}: dropout={dropout!r:.40} encodes the same text in several ways: set it to null"
        )
    vocabulary = model.get_vocab()
    by_id = {i: token for token, i in vocabulary.items()}
    last = max(by_id, default=0)
    if not by_id or last >= MAX_SIZE:
        raise ValueError(f"{path} has ids up to {last:,}: download it again")
    if len(by_id) < len(vocabulary):
        token = next(token for token, i in vocabulary.items() if by_id[i] != token)
        raise ValueError(
            f"{path}: {token!r:.60} and {by_id[vocabulary[token]]!r:.60} have the same id, "
            f"{vocabulary[token]}: download it again"
        )
    for token in fields.get("added_tokens") or ():
        if (actual := vocabulary.get(token["content"])) != token["id"]:
            raise ValueError(
                f"{path}: the added token {token['content']!r:.60} states the id "
                f"{token['id']!r:.40} and has {actual}: download it again"
            )
    return last + 1


def _probe(backend: Backend, path: Path) -> None:
    """Raises ValueError if a vocabulary cannot encode and decode texts."""
    ids = backend.encode(PROBE)
    if not all(0 <= i < backend.size for i in ids) or len(ids) > 100 * len(PROBE):
        raise ValueError(f"{path} encodes a text as {len(ids):,} wrong ids: download it again")
    backend.decode(ids)
    for i in ids:
        backend.piece_bytes(i)


def same_ids(pieces: SentencePiece, other: TokenizerJson) -> bool:
    """Whether a SentencePiece model and a tokenizer.json have the same tokens and encoding.

    tokenizer.json may spell the byte <0x09> as a tab, and add Gemma 3's image token.
    """
    vocabulary = {i: token for token, i in other.model.get_vocab().items()}
    if vocabulary.get(pieces.size) == IMAGE_TOKEN:
        del vocabulary[pieces.size]
    spelled = dict(enumerate(pieces.model.id_to_piece(list(range(pieces.size)))))
    return (
        vocabulary.keys() == spelled.keys()
        and all(
            token == spelled[i] or _piece_bytes(token) == _piece_bytes(spelled[i])
            for i, token in vocabulary.items()
        )
        and pieces.encode(PROBE) == other.encode(PROBE)
    )


@functools.cache
def _byte_level_table() -> dict[str, int]:
    """GPT-2's mapping from printable characters to bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _piece_bytes(piece: str) -> bytes:
    """The bytes of "<0x0A>", or of a piece in which "▁" stands for a space."""
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte.group(1), 16)]) if byte else piece.replace("▁", " ").encode()
