"""Paths on a local disk, in a bucket (gs://), or on the Hugging Face Hub (ORG/MODEL).

Code that writes local files only writes to a temporary folder, which is then uploaded.
"""

import atexit
import contextlib
import functools
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from etils import epath

from grm_jax import hub, locks, strict_json
from grm_jax.hosts.errors import Unavailable
from grm_jax.model_files import special_kind

PathLike: TypeAlias = str | os.PathLike[str] | epath.Path


_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://?")  # pathlib drops the second slash
_BUCKET = re.compile(r"gs://?\w[\w.-]*(/|$)")
_ON_HUB = re.compile(
    r"(?:https?://?(?:www\.)?huggingface\.co/|hf://?)(datasets/)?([\w.-]+/[\w.-]+)(?:[/?@#].*)?"
)


def check_scheme(path: PathLike, what: str = "path") -> None:
    """Raises ValueError for an address of another scheme than gs://, or without a bucket.

    what: "model", "data" or "path": what is expected, for the error.
    """
    text = str(path)
    match = _SCHEME.match(text)
    if not match or Path(text).exists():
        return
    if match[1] == "gs":
        if not _BUCKET.match(text):
            raise ValueError(f"{text!r} names no bucket: give gs://BUCKET/FOLDER")
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
def replace_folder(folder: PathLike) -> Iterator[Path]:
    """Yields an empty local folder; when the block ends, it replaces `folder`, which may exist.

    A local folder is replaced by renames: it is whole, old or new, and for a moment in between it
    does not exist. The files are on disk before. If the block raises, the old folder stays. In a
    bucket the files are uploaded one by one, then those that the new folder lacks are deleted: a
    reader needs a marker, which the caller deletes before the block and writes after it.
    """
    folder = as_path(folder)
    if is_remote(folder):
        with tempfile.TemporaryDirectory(prefix="grm_jax-") as scratch:
            yield Path(scratch)
            new = _copy_files(epath.Path(scratch), folder)
            for file in [file for file in _files(folder) if str(file) not in new]:
                file.unlink()
        return
    target = Path(os.path.realpath(folder))
    partial, old = (target.with_name(f".{target.name}.{name}") for name in ("partial", "old"))

    def put_back() -> None:
        """Undoes the first of the two renames below."""
        if old.exists() and not target.exists():
            old.rename(target)

    put_back()  # a process may have been killed between them
    for leftover in (partial, old):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        if target.exists():
            target.rename(old)
        partial.rename(target)
    except BaseException:
        put_back()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def unchanged(path: PathLike) -> Iterator[None]:
    """Raises OSError if `replace_folder` replaced a local folder while the block read it."""

    def number() -> int:
        try:
            return os.stat(path).st_ino
        except OSError:
            return -1

    before = number()
    try:
        yield
    finally:
        if number() != before:
            raise OSError(f"{path} was replaced while it was read: run the command again")


def local_copy(folder: PathLike) -> Path:
    """Returns a local folder with the files of `folder`: itself, or a fresh download."""
    folder = as_path(folder)
    if not is_remote(folder):
        return Path(folder)
    scratch = _scratch()
    _copy_files(folder, epath.Path(scratch))
    return scratch


def _scratch() -> Path:
    """Returns a new folder, which is deleted when this process ends."""
    folder = tempfile.mkdtemp(prefix="grm_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields the files of a folder and its subfolders; epath has no recursive glob."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _copy_files(source: epath.Path, target: epath.Path) -> set[str]:
    """Copies the files of a folder; returns the paths of the copies."""
    copies = set()
    for file in sorted(_files(source)):
        copy = target / file.relative_to(source).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        file.copy(copy, overwrite=True)
        copies.add(str(copy))
    return copies


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


def fetch_adapter(path: PathLike) -> Path:
    """Returns the local folder of a LoRA adapter; path and errors as in `fetch`."""
    name = hub_name(path)
    return hub.download_adapter(name) if name else fetch(path)


@functools.cache
def _fetch_from_bucket(path: str) -> Path:
    source = as_path(path)
    try:
        exists = source.exists()
    except Exception as error:  # each storage library has its own
        reason = " ".join(str(error).split())
        raise Unavailable(f"{path} cannot be read: {reason:.300}; check the network") from error
    if not exists:
        raise FileNotFoundError(f"{path} does not exist, or this machine's account may not read it")
    if source.is_dir():
        return local_copy(path)
    target = _scratch() / source.name
    source.copy(epath.Path(target), overwrite=True)
    return target


def forget(path: PathLike) -> None:
    """Makes the next `fetch` of a bucket's path download it again."""
    if is_remote(path):
        _fetch_from_bucket.cache_clear()


def read_lines(path: PathLike) -> list[str]:
    """Returns the non-empty lines of a UTF-8 file, split at "\\n" only.

    `str.splitlines` also splits at U+2028 and others, which a JSON text may hold.
    """
    return [line for line in epath.Path(path).read_text(encoding="utf-8").split("\n") if line]


def write_atomic(path: PathLike, content: str | bytes) -> None:
    """Writes a file so that no reader, and no crash, sees half of it; see `open_atomic`.

    Text is written as UTF-8; a surrogate, which has no UTF-8 form, becomes U+FFFD.
    """
    if isinstance(content, str):
        content = strict_json.SURROGATE.sub("\ufffd", content).encode()
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: PathLike) -> Iterator[BinaryIO]:
    """Yields a binary file that replaces `path` when the block ends without an exception.

    The bytes go to a new file with a name of its own in the same folder, are forced to disk, and
    the file is renamed. A symlink stays: the file that it names is replaced, and keeps its mode.
    Missing folders are created. In a bucket the object appears whole.

    Raises:
      ValueError: the path is a folder, a FIFO, a socket or a device.
      OSError: the folder is not writable, or the disk is full.
    """
    path = epath.Path(path)
    if is_remote(path):
        content = io.BytesIO()
        yield content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
        return
    target = Path(os.path.realpath(path))
    check_replaceable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(_temporary_name(target, secrets.token_hex(8)))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from None
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if target.exists():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _temporary_name(target: Path, end: str) -> str:
    return f".{target.name[:40]}-{zlib.crc32(os.fsencode(target.name)):08x}.{end}.tmp"


def remove_leftovers(path: PathLike) -> None:
    """Removes the temporary files that killed writers of a local file left; the caller locks it."""
    target = Path(os.path.realpath(path))
    begin = _temporary_name(target, "").removesuffix(".tmp")
    for name in os.listdir(target.parent):
        if name.startswith(begin) and name.endswith(".tmp"):
            (target.parent / name).unlink(missing_ok=True)


def check_replaceable(path: PathLike) -> None:
    """Raises ValueError where a file cannot replace `path`: a folder, a FIFO, a socket, a device.

    A symlink is followed; a path that does not exist, and one in a bucket, pass.
    """
    if os.path.abspath(path).startswith(_STREAMS):
        raise ValueError(f"{path} is a stream, not a regular file: name another output")
    try:
        mode = os.stat(path).st_mode if not is_remote(path) else stat.S_IFREG
    except (FileNotFoundError, NotADirectoryError):
        return
    if kind := special_kind(mode):
        raise ValueError(f"{path} is {kind}, not a regular file: name another output")


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike | None]) -> None:
    """Raises ValueError for an output that is an input, or that a file cannot replace.

    Files are compared by identity: symlinks are followed, and hard links are one file.

    Args:
      outputs: every path that is written, the temporary ones with a fixed name included.
      inputs: every path that is read; of a folder, all its files. None and what is not on a local
        disk are skipped.
    """
    read: dict[Any, Path] = {}
    for name in inputs:
        if name is not None and not is_remote(name):
            path = Path(name).expanduser()
            for file in path.rglob("*") if path.is_dir() else [path]:
                read |= dict.fromkeys(_identities(file), file)
    for name in outputs:
        check_replaceable(name)
        for identity in _identities(Path(name)):
            if identity in read:
                which = f" {read[identity]}" if str(read[identity]) != str(name) else ""
                raise ValueError(f"{name} is the input{which}: name another output")


def _identities(path: Path) -> list[Any]:
    """Returns a path without symlinks, and the number of its file if there is one."""
    names: list[Any] = [os.path.realpath(path)]
    with contextlib.suppress(OSError):
        status = path.stat()
        names.append((status.st_dev, status.st_ino))
    return names


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")


def remove_if_empty(folder: epath.Path) -> None:
    """Removes a local folder that has no files; an object store has no empty folders.

    By `os.rmdir`: epath lists the folder and then removes it with what others have written since.
    """
    if not is_remote(folder):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


@contextlib.contextmanager
def locked(folder: PathLike, what: str = "run") -> Iterator[None]:
    """Locks a folder, which is created if missing and removed if it stays empty; see `locks.hold`.

    what: the work, for the error of another process: "training".  Raises `locks.InUse`, with host
    and pid of the process that has locked the folder, and OSError if it is not writable.
    """
    folder = as_path(folder)
    with contextlib.ExitStack() as stack:
        try:
            if not folder.exists():
                stack.callback(remove_if_empty, folder)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.hold(folder, what, is_remote(folder)))
        except locks.InUse:
            raise
        except OSError as error:
            raise OSError(f"{folder} is not writable: {error.strerror or error}") from error
        yield
