"""SentencePiece models and tokenizer.json files behind one interface, `Backend`.

A backend's `encode` still recognises control strings; `Tokenizer` never passes it one.
"""

import functools
import json
import re
from pathlib import Path
from typing import Protocol

# Control tokens that some vocabulary files list as ordinary: turns, images, unused ids, masks.
CONTROL = re.compile(
    r"<(?:start|end)_of_(?:turn|image)>|<image_soft_token>|<mask>|<unused\d+>|<2mass>|\[@BOS@\]|\[multimodal\]"
    r"|<(?:bos|eos|pad|unk)>|<\|[^|<>]{1,40}\|>|<｜[^<>]{1,40}｜>"
)
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Backend(Protocol):
    """A vocabulary file.

    size: the number of ids.  controls: {string: id} of tokens that are not text.
    """

    size: int
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
    """A SentencePiece `.model` file."""

    def __init__(self, path: Path):
        import sentencepiece

        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        self.size = self.model.vocab_size()
        self.controls = {
            piece: i
            for i, piece in enumerate(self.model.id_to_piece(list(range(self.size))))
            if self.model.is_control(i) or self.model.is_unknown(i) or CONTROL.fullmatch(piece)
        }

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
        (folder / "tokenizer.model").write_bytes(self.model.serialized_model_proto())

    def default(self, name: str) -> int | None:
        i = getattr(self.model, f"{name}_id")()
        return i if i >= 0 else None


class TokenizerJson:
    """A `tokenizer.json` file, through the `tokenizers` library."""

    def __init__(self, path: Path):
        import tokenizers

        try:
            self.model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises bare Exception.
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        self.content = path.read_bytes()
        self.model.no_truncation()
        self.model.no_padding()
        self.size = self.model.get_vocab_size()
        self.controls = {
            token.content: i
            for i, token in self.model.get_added_tokens_decoder().items()
            if token.special or CONTROL.fullmatch(token.content)
        }
        decoder = json.loads(self.content).get("decoder") or {}
        self.byte_level = "ByteLevel" in json.dumps(decoder)

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids, skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self.model.token_to_id(token)

    def piece_bytes(self, i: int) -> bytes:
        piece = self.model.id_to_token(i) or ""
        if self.byte_level and piece not in self.controls:
            table = _byte_level_table()
            return bytes(table[c] for c in piece if c in table)
        return _piece_bytes(piece)

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(self.content)

    def default(self, name: str) -> int | None:
        spellings = {
            "bos": ("<bos>", "<s>"),
            "eos": ("<eos>", "</s>", "<|endoftext|>"),
            "pad": ("<pad>", "<|endoftext|>"),
        }
        return next((i for i in map(self.id_of, spellings[name]) if i is not None), None)


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
