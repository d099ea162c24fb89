"""Reads the files of model folders, which may be damaged, or written by an attacker.

    config = read_json(folder / "config.json")

Every reader of a model folder opens files with these functions:

- Only regular files are opened: reading a FIFO would block, and a device has no end.
- A link may lead to a file of the same folder or of its Hugging Face cache only. Otherwise a folder
  from the internet could expose any file of this machine.
- `damage_of` turns whatever the parsing of a file raises into a ValueError of one line.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from grm_jax import strict_json

INDEX = "model.safetensors.index.json"
# Tokens that end a model's turn, in whichever vocabulary has them.
END_OF_TURN = ("<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>")
MAX_BYTES = 256 << 20  # of a file that is read whole: the largest tokenizer.json has 33 MB


def exists(file: Path) -> bool:
    """Whether a folder has an entry of this name, of any kind."""
    return os.path.lexists(file)


def check_file(file: Path, linked: bool = False) -> Path:
    """Returns the path behind the links of a regular file.

    linked: accept a link to any folder, because the user named this file.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: not a regular file, or a link that leaves its folder.
    """
    try:
        target = Path(os.path.realpath(file, strict=True))
    except OSError as error:
        raise FileNotFoundError(f"{file} cannot be opened: {error.strerror}") from None
    folder = Path(os.path.realpath(file.parent))
    allowed = [folder]
    for parent in folder.parents:  # the Hub's cache: snapshots/COMMIT/FILE -> blobs/HASH
        if parent.name == "snapshots":
            allowed.append(parent.parent / "blobs")
    if not linked and not any(map(target.is_relative_to, allowed)):
        raise ValueError(
            f"{file} is a link to {target}, outside its folder: put a copy of the file there"
        )
    if kind := special_kind(target.stat().st_mode):
        raise ValueError(f"{file} is {kind}, not a regular file: put the model's own file there")
    return target


def special_kind(mode: int) -> str:
    """Returns "a folder", "a FIFO", "a socket" or "a device" by st_mode; "" for a regular file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(file: Path, linked: bool = False, most: int = MAX_BYTES) -> bytes:
    """Returns the content of a file; raises as `check_file`, and ValueError if it is too large."""
    target = check_file(file, linked)
    size = target.stat().st_size
    if size > most:
        raise ValueError(f"{file} has {size:,} bytes; at most {most:,} are read: it is damaged")
    return target.read_bytes()


def read_json(file: Path, linked: bool = False) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises as `read_bytes`, and ValueError for other JSON."""
    content = read_bytes(file, linked)
    try:
        value = strict_json.loads(content)
        if b"\\u" in content:
            fault = strict_json.surrogate(json.dumps(value, ensure_ascii=False), "a text")
            if fault:
                raise ValueError(fault)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}: download it again") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file} is damaged: it has {value!r:.40}, not a JSON object: download it again"
        )
    return value


def read_json_if_any(file: Path) -> dict[str, Any]:
    """Returns the object of a JSON file, {} without the file; raises as `read_json`."""
    return read_json(file) if exists(file) else {}


@contextlib.contextmanager
def damage_of(
    path: str | os.PathLike[str], remedy: str = "download it again", complete: bool = False
) -> Iterator[None]:
    """Turns what the parsing of a damaged file raises in the block into a ValueError of one line.

    Errors of one line that name the file pass, and so does every OSError.

    complete: a ValueError of the block has what is wrong and what to do; only the path is added.
    """
    try:
        yield
    except OSError:
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception
        if not isinstance(error, Exception) and not panic:
            raise
        text = one_line(error)
        if isinstance(error, ValueError) and Path(path).name in text:
            if len(str(error).splitlines()) == 1:
                raise
            raise ValueError(text) from error
        if isinstance(error, ValueError) and complete:
            raise ValueError(f"{path}: {text}") from error
        known = isinstance(error, ValueError | RuntimeError)
        reason = text if known else f"{type(error).__name__}: {text}"
        raise ValueError(f"{path} is damaged: {reason:.300}: {remedy}") from error


def one_line(text: object) -> str:
    """Returns a text with every run of whitespace, line breaks included, as one space."""
    return " ".join(str(text).split())


# ---------------------------------------------------------------- which files hold the weights


def weight_files(folder: str, index: dict[str, Any] | None, names: Sequence[str]) -> list[str]:
    """Returns the safetensors files with a model's weights.

    Args:
      folder: names the folder in errors.
      index: content of model.safetensors.index.json; None if there is none.
      names: the files of the folder.

    Raises:
      FileNotFoundError: a file that the index names is missing, or there are no weights.
      ValueError: a damaged index, or files of which several could be the model.
    """
    whole = "model.safetensors"
    refuse_adapter(folder, names)
    if index is not None:
        named = _named_files(folder, index)
        missing = [name for name in named if name not in names]
        if whole in names and whole not in named:
            if len(missing) == len(named):  # the index is left from an earlier, sharded copy
                return [whole]
            shards = named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} more"
            raise ValueError(
                f"{folder} holds two copies of the weights, {whole} and {INDEX} with {shards}: "
                "remove the older one"
            )
        if missing:
            raise FileNotFoundError(
                f"{folder}: the index names missing files: {', '.join(missing[:6])}. Download them"
            )
        return named
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise FileNotFoundError(
            f"{folder}: {len(files)} safetensors files and no {INDEX}: download the index, or keep "
            f"one file ({', '.join(files[:3])})"
        )
    raise FileNotFoundError(
        f"{folder}: no safetensors file. "
        "Convert files in PyTorch's .bin format to safetensors first"
    )


def refuse_adapter(folder: str, names: Iterable[str]) -> None:
    """Raises ValueError if there are files of a LoRA adapter, which would change the weights."""
    if adapters := sorted(name for name in names if name.startswith("adapter_")):
        raise ValueError(
            f"{folder} holds an adapter ({', '.join(adapters[:2])}): load its base with --lora "
            f"{folder} (lora= in Python), merge it into the weights (grm convert BASE OUT --lora "
            f"{folder}), or remove its files to load the weights beside them alone"
        )


def _named_files(folder: str, index: dict[str, Any]) -> list[str]:
    """Returns the files that an index names. Raises ValueError for a damaged index."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{folder}: weight_map={weight_map!r:.40} in {INDEX}, which should map tensors to "
            "files: download it again"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w][\w. +-]*", name):
            raise ValueError(
                f"{folder}: {INDEX} puts {one_line(tensor):.60} into {name!r:.80}: give the name "
                "of a .safetensors file of the same folder"
            )
        if not name.endswith(".safetensors"):
            raise FileNotFoundError(f"{folder}: {INDEX} names {name}, no safetensors file")
    return sorted(set(weight_map.values()))
