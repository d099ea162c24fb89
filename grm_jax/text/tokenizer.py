"""Tokenizers: text to tokens and back, with the chat format of the model.

`load` takes a SentencePiece `.model`, a `tokenizer.json`, or a folder with one of them. Control
tokens (turns, BOS, unused ids) only come from this module or from the folder's chat template. The
same characters in a text are encoded as text, so that no query or response can end a turn.
"""

import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.hub import TOKENIZER_FILES
from grm_jax.model_files import (
    END_OF_TURN,
    check_file,
    damage_of,
    exists,
    read_bytes,
    read_json_if_any,
)
from grm_jax.storage import fetch, write_atomic
from grm_jax.text import chat
from grm_jax.text.backends import (
    CONTROL,
    IMAGE_TOKEN,
    Backend,
    SentencePiece,
    TokenizerJson,
    same_ids,
)
from grm_jax.text.sandbox import Rejected

FILES = ("tokenizer.model", "tokenizer.json")
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A vocabulary with its chat format, made by `load`.

    bos_id, eos_id, pad_id: ids; bos_id is None where the vocabulary has none.
    stop_ids: ids that end a model's turn.  vocab_size: the number of ids.
    controls: {string: id} of the tokens that are not text.
    """

    def __init__(
        self,
        backend: Backend,
        file: Path,
        config: dict,
        chat_template: str | None,
        stops: tuple[int, ...] = (),
    ):
        self._backend, self._file, self._config = backend, file, config
        self.vocab_size: int = backend.size
        self.controls: dict[str, int] = dict(backend.controls)
        self.bos_id: int | None = self._named("bos")
        eos = backend.id_of("<eos>")
        self.eos_id: int | None = eos if eos is not None else self._named("eos")
        if self.eos_id is None:
            raise ValueError(
                f"{file} has no end-of-text token: name it as eos_token in tokenizer_config.json"
            )
        pad = self._named("pad")
        self.pad_id: int = self.eos_id if pad is None else pad
        ends = [backend.id_of(token) for token in END_OF_TURN if token in self.controls]
        self.stop_ids: tuple[int, ...] = tuple(
            sorted({i for i in (self.eos_id, self._named("eos"), *ends, *stops) if i is not None})
        )
        self.chat_template = chat_template or (
            chat.GEMMA_TEMPLATE if "<start_of_turn>" in self.controls else None
        )
        self._control_ids = frozenset(self.controls.values())
        # One pattern instead of 6,000 <unusedN> alternatives; `_controls_in` filters its hits.
        others = sorted(
            (token for token in self.controls if not CONTROL.fullmatch(token)),
            key=len,
            reverse=True,
        )
        self._control = re.compile("|".join([CONTROL.pattern, *map(re.escape, others)]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """12 hex digits of a hash over everything that decides how texts become ids and back."""
        ids = [self.bos_id, self.eos_id, self.pad_id, self.stop_ids]
        rest = [self._special_tokens(), self._add_bos, self.chat_template]
        digest = hashlib.sha256(self._backend.content)
        digest.update(strict_json.dumps([*ids, *rest], sort_keys=True).encode())
        return digest.hexdigest()[:12]

    @property
    def _add_bos(self) -> bool:
        """Whether a chat begins with BOS where its template writes none.

        Where the settings are silent, the template of a byte-level vocabulary decides.
        """
        decides = getattr(self._backend, "byte_level", False) and self.bos_id is not None
        return bool(self._config.get("add_bos_token", not decides))

    def _configured(self, name: str) -> str | None:
        token = self._config.get(f"{name}_token")
        return token.get("content") if isinstance(token, dict) else token

    def _named(self, name: str) -> int | None:
        token = self._configured(name)
        token_id = self._backend.id_of(token) if token else None
        return self._backend.default(name) if token_id is None else token_id

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Encodes a text. "<end_of_turn>" in it becomes characters, not a control token.

        A lone surrogate, which no vocabulary has, is encoded as U+FFFD.
        """
        ids = [self.bos_id] if bos and self.bos_id is not None else []
        text = SURROGATE.sub("\ufffd", text)
        # Split after its first character, a control string becomes two plain strings that decode
        # to it.
        start = 0
        for hit in self._controls_in(text):
            ids += self._backend.encode(text[start : hit.start() + 1])
            start = hit.start() + 1
        return ids + self._backend.encode(text[start:])

    def _controls_in(self, text: str) -> Iterator[re.Match]:
        return (hit for hit in self._control.finditer(text) if hit.group() in self.controls)

    def decode(self, ids: Iterable[int], skip_controls: bool = True) -> str:
        """Decodes ids, an array or a list. Control tokens are skipped, or spelled out.

        With SentencePiece, U+2581 in a text decodes to a space, which it stands for in that format.
        Raises ValueError for an id that is not in the vocabulary.
        """
        ids = [int(i) for i in ids]
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise ValueError(
                f"id {wrong[0]} is not in the vocabulary: use 0 to {self.vocab_size - 1}"
            )
        if skip_controls:
            return self._backend.decode([i for i in ids if i not in self._control_ids])
        spelled = {i: token for token, i in self.controls.items()}
        runs = itertools.groupby(ids, spelled.__contains__)
        return "".join(
            "".join(spelled[i] for i in run) if is_control else self._backend.decode(list(run))
            for is_control, run in runs
        )

    def piece_bytes(self, i: int) -> bytes:
        """The bytes that one id contributes to a text; empty for a control token."""
        return b"" if i in self._control_ids else self._backend.piece_bytes(int(i))

    def id_of(self, token: str) -> int | None:
        """The id of a token with exactly this spelling; None where the vocabulary has none."""
        return self._backend.id_of(token)

    def encode_chat(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Encodes chat turns [{"role", "content"}] in the model's own format, with exactly one BOS.

        Raises ValueError where the vocabulary has no chat format, or the format rejects the roles.
        """
        if self.chat_template is None:
            raise ValueError(
                f"{self._file} has no chat template and no turn tokens: use encode, or add a "
                "chat_template"
            )
        pieces = chat.render(
            self.chat_template,
            messages,
            add_generation_prompt,
            self._special_tokens(),
            self._break_controls,
            f"the chat template of {self._file.parent}",
        )
        ids: list[int] = []
        run = ""  # Plain text is collected across pieces, so that it is encoded as one string.

        def flush(text: str) -> str:
            ids.extend(self.encode(text) if text else [])
            return ""

        for text in pieces:
            start = 0
            for hit in self._controls_in(text):
                run = flush(run + text[start : hit.start()])
                ids.append(self.controls[hit.group()])
                start = hit.end()
            run += text[start:]
        flush(run)
        return self._with_one_bos(ids)

    def _break_controls(self, text: str, mark: str) -> str:
        """Puts a mark into each control string of a text, and after the start of one at its end.

        The chat template could complete such a start with what follows the text.
        """
        cuts = [hit.start() + 1 for hit in self._controls_in(text)]
        end = len(text.rstrip())
        starts, longest = self._starts_of_controls
        if any(text[i:end] in starts for i in range(max(0, end - longest), end)):
            cuts.append(end)
        cuts = [0, *dict.fromkeys(cuts), len(text)]
        return mark.join(text[a:b] for a, b in itertools.pairwise(cuts))

    @functools.cached_property
    def _starts_of_controls(self) -> tuple[frozenset[str], int]:
        """The proper prefixes of the control strings, and the length of the longest."""
        starts = frozenset(token[:i] for token in self.controls for i in range(1, len(token)))
        return starts, max(map(len, starts), default=0)

    def _special_tokens(self) -> dict[str, str]:
        """The spellings of bos_token, eos_token, pad_token and unk_token; "" for an unset one."""
        spelled = {i: token for token, i in reversed(self.controls.items())}
        return {
            f"{name}_token": self._configured(name)
            or spelled.get(getattr(self, f"{name}_id", -1), "")
            for name in ("bos", "eos", "pad", "unk")
        }

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        if self.bos_id is None:
            return ids
        rest = list(itertools.dropwhile(lambda i: i == self.bos_id, ids))
        add_bos = len(rest) < len(ids) or self._add_bos
        return [self.bos_id, *rest] if add_bos else rest

    def save(self, folder: str | Path) -> None:
        """Saves the vocabulary and its settings in a folder, for `load` and for transformers."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(folder)
        for name in TOKENIZER_FILES:
            source = self._file.parent / name
            if exists(source) and not (folder / name).exists():
                write_atomic(folder / name, read_bytes(source, linked=source == self._file))
        if not (folder / "tokenizer_config.json").exists():
            is_json = isinstance(self._backend, TokenizerJson)
            config: dict[str, Any] = {
                **self._special_tokens(),
                "tokenizer_class": "PreTrainedTokenizerFast" if is_json else "GemmaTokenizer",
                "add_bos_token": self._add_bos,
                "add_eos_token": False,
            }
            if self.chat_template:
                config["chat_template"] = self.chat_template
            write_atomic(
                folder / "tokenizer_config.json", strict_json.dumps(config, indent=2) + "\n"
            )


def load(path: str | Path) -> Tokenizer:
    """Loads the tokenizer of a model folder, a `.model` or a `.json` file, or of a hub name.

    In a folder with both files tokenizer.json decides. Where the SentencePiece model has the same
    tokens, it is used instead: the same ids, ten times faster.
    Raises FileNotFoundError that names the missing files, or ValueError, in one line that names the
    file, for a damaged one.
    """
    path = fetch(path, weights=False)
    folder = path if path.is_dir() else path.parent
    for name in TOKENIZER_FILES:
        if exists(folder / name) and folder / name != path:
            check_file(folder / name)
    config = read_json_if_any(folder / "special_tokens_map.json")
    config = {key: value for key, value in config.items() if key in SPECIAL_TOKENS}
    config |= read_json_if_any(folder / "tokenizer_config.json")
    files = [path]
    if path.is_dir():
        files = [folder / name for name in FILES if exists(folder / name)]
        if not files:
            raise FileNotFoundError(
                f"no tokenizer in {folder}: it has neither {' nor '.join(FILES)}"
            )
    if not exists(files[0]):
        raise FileNotFoundError(
            f"no tokenizer at {path}: give a model folder, a .model or a tokenizer.json"
        )
    backends: list[Any] = [
        (TokenizerJson if file.suffix == ".json" else SentencePiece)(file, linked=file == path)
        for file in files
    ]
    with damage_of(folder / "tokenizer_config.json"):
        check_settings(folder, config, backends[-1])
    if len(files) > 1 and not same_ids(*backends):
        files, backends = files[1:], backends[1:]
    template, stops = chat.find_template(folder), _stop_ids(folder, backends[0])
    tokenizer = Tokenizer(backends[0], files[0], config, template, stops)
    if template is not None:  # a faulty one is refused here, and not once for each prompt
        with contextlib.suppress(Rejected):
            tokenizer.encode_chat([{"role": "user", "content": "?"}])
    return tokenizer


def check_settings(folder: Path, config: dict[str, Any], backend: Backend) -> None:
    """Raises ValueError where tokenizer_config.json does not fit the vocabulary.

    Tokens that the settings alone add would be split into pieces of text.
    """
    where = folder / "tokenizer_config.json"
    for key in SPECIAL_TOKENS:
        token = config.get(key)
        token = token.get("content", token) if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise ValueError(f"{where}: {key}={token!r:.60} is no token: give a text or null")
        if token and key != "unk_token" and backend.id_of(token) is None:
            raise ValueError(
                f"{where}: {key}={token!r:.60} is not in the vocabulary: give the model's own files"
            )
    if not isinstance(add_bos := config.get("add_bos_token"), bool | None):
        raise ValueError(f"{where}: add_bos_token={add_bos!r:.40} is wrong: give true or false")
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise ValueError(f"{where}: added_tokens_decoder={added!r:.60} is no object: remove it")
    listed = read_json_if_any(folder / "added_tokens.json")
    every = [("added_tokens_decoder", i, token) for i, token in added.items()]
    every += [("added_tokens.json", str(i), {"content": text}) for text, i in listed.items()]
    for source, i, token in every:
        text = token.get("content") if isinstance(token, dict) else None
        if not i.isdecimal() or not isinstance(text, str):
            raise ValueError(
                f"{where}: {source} has {token!r:.60} at {i!r:.40}, which should be an "
                'id with {"content": TEXT}: download the file again'
            )
        pieces = [text, text.replace(" ", "\u2581")]
        if text != IMAGE_TOKEN and int(i) not in map(backend.id_of, pieces):
            raise ValueError(
                f"{where}: {source} has {text!r:.60} at {i:.20}, where the vocabulary has it at "
                f"{backend.id_of(text)}: give the model's own tokenizer.json"
            )


def _stop_ids(folder: Path, backend: Backend) -> tuple[int, ...]:
    """Returns the eos_token_id of generation_config.json: one id, or several.

    Without it, as in transformers, that of config.json, of which only control tokens count.
    """
    for name in ("generation_config.json", "config.json"):
        config = read_json_if_any(folder / name)
        text = config.get("text_config")
        stops = config.get("eos_token_id")
        if stops is None and isinstance(text, dict):
            stops = text.get("eos_token_id")
        ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
        for i in ids:
            if type(i) is not int or not 0 <= i < backend.size:
                raise ValueError(
                    f"{folder / name}: eos_token_id={stops!r:.60} is not in the vocabulary: give "
                    f"ids from 0 to {backend.size - 1}"
                )
        if ids:
            known = set(backend.controls.values()) if name == "config.json" else set(ids)
            return tuple(i for i in ids if i in known)
    return ()
