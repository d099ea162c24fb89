"""Paths on a local disk, in a bucket (gs://), or on the Hugging Face Hub (ORG/MODEL).

Code that writes local files only writes to a temporary folder, which is then uploaded.
"""

import contextlib
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from etils import epath

from grm_jax import hub

PathLike: TypeAlias = str | os.PathLike[str] | epath.Path


_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://?")  # pathlib drops the second slash
_ON_HUB = re.compile(
    r"(?:https?://?(?:www\.)?huggingface\.co/|hf://?)(datasets/)?([\w.-]+/[\w.-]+)(?:[/?@#].*)?"
)


def check_scheme(path: PathLike, what: str = "path") -> None:
    """Raises ValueError for an address of another scheme than gs://.

    what: "model", "data" or "path": what is expected, for the error.
    """
    text = str(path)
    match = _SCHEME.match(text)
    if not match or match[1] == "gs" or Path(text).exists():
        return
    on_hub = _ON_HUB.fullmatch(text)
    if on_hub and on_hub[1] and what == "model":
        raise ValueError(f"{text} is a data set: give a model")
    if on_hub and what != "path":
        raise ValueError(f"{text}: give {'hf://datasets/' * (what == 'data')}{on_hub[2]}")
    names = {"data": " or hf://datasets/ORG/NAME", "model": " or ORG/MODEL of the Hub"}
    accepted = f"a local path, gs://BUCKET/...{names.get(what, '')}"
    raise ValueError(f"{text}: {match[1]}:// is not supported: give {accepted}")


def as_path(path: PathLike) -> epath.Path:
    """Returns an absolute local path, or a bucket path unchanged.

    Raises ValueError for an address of another scheme.
    """
    check_scheme(path)
    path = epath.Path(path)
    return path if is_remote(path) else epath.Path(Path(path).expanduser().absolute())


def is_remote(path: PathLike) -> bool:
    """Whether the path is a bucket's."""
    return "://" in str(path)


@contextlib.contextmanager
def writing(folder: PathLike) -> Iterator[Path]:
    """Yields a local folder to write into; on exit its files are in `folder`.

    For a bucket, process 0 uploads the files.
    """
    import jax

    folder = as_path(folder)
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    scratch = Path(tempfile.mkdtemp(prefix="grm_jax-"))
    yield scratch
    if jax.process_index() == 0:
        _copy_files(epath.Path(scratch), folder)
    shutil.rmtree(scratch, ignore_errors=True)


def reading(folder: PathLike) -> Path:
    """Returns a local folder with the files of `folder`: itself, or a fresh download."""
    folder = as_path(folder)
    if not is_remote(folder):
        return Path(folder)
    scratch = Path(tempfile.mkdtemp(prefix="grm_jax-"))
    _copy_files(folder, epath.Path(scratch))
    return scratch


def _copy_files(source: epath.Path, target: epath.Path) -> None:
    for file in sorted(p for p in source.rglob("*") if not p.is_dir()):
        copy = target / file.relative_to(source).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        file.copy(copy, overwrite=True)


def hub_name(path: PathLike) -> hub.HubName | None:
    """Returns the hub name "ORG/MODEL[@REVISION][/FILE.gguf]"; None for a local or bucket path.

    A local path that exists wins over a name. Raises ValueError as `check_scheme`.
    """
    check_scheme(path, "model")
    return None if Path(path).expanduser().exists() else hub.parse(str(path))


def fetch(path: PathLike, weights: bool = True, quiet: bool = False) -> Path:
    """Returns the local path of a file or folder.

    A bucket's is downloaded whole, once per process, to the machine's temporary folder. A model on
    the Hugging Face Hub is downloaded to its cache: the files that this package reads, and no more.

    Args:
      path: local, gs://..., or a hub name "ORG/MODEL[@REVISION][/FILE.gguf]".
      weights: False skips the weights of a hub model: its tokenizer and metadata alone.
      quiet: shows no progress bar.

    Raises:
      FileNotFoundError: a bucket path or hub name that does not exist or is not accessible, in one
        line that says what to do.
      ValueError: an address of another scheme.
    """
    if name := hub_name(path):
        return hub.download_model(name, weights, quiet)
    return _fetch_from_bucket(str(path)) if is_remote(path) else Path(path).expanduser()


@functools.cache
def _fetch_from_bucket(path: str) -> Path:
    source = as_path(path)
    if not source.exists():
        raise FileNotFoundError(f"{path} does not exist, or this machine's account may not read it")
    if source.is_dir():
        return reading(path)
    target = Path(tempfile.mkdtemp(prefix="grm_jax-")) / source.name
    source.copy(epath.Path(target), overwrite=True)
    return target


def read_lines(path: PathLike) -> list[str]:
    """Returns the non-empty lines of a UTF-8 file, split at "\\n" only.

    `str.splitlines` also splits at U+2028 and others, which a JSON text may hold.
    """
    return [line for line in epath.Path(path).read_text(encoding="utf-8").split("\n") if line]


def write_atomic(path: PathLike, text: str) -> None:
    """Writes a UTF-8 file to a temporary name and renames it, so that no reader sees half of it."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / (path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
