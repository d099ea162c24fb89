"""Folders of a run: local ones, or a bucket's (gs://). What can only write local files writes to a scratch folder that is then copied."""

import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

from etils import epath


def as_path(path) -> epath.Path:
    """The folder as an absolute path, or as the bucket address that it is."""
    path = epath.Path(path)
    return path if is_remote(path) else epath.Path(Path(path).expanduser().absolute())


def is_remote(path) -> bool:
    return "://" in str(path)


@contextlib.contextmanager
def writing(folder):
    """A local folder to write into; its files are at `folder` afterwards. Process 0 copies."""
    import jax

    folder = as_path(folder)
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    scratch = Path(tempfile.mkdtemp(prefix="grm_jax-"))
    yield scratch
    if jax.process_index() == 0:
        for file in sorted(p for p in scratch.rglob("*") if p.is_file()):
            target = folder / file.relative_to(scratch).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(file).copy(target, overwrite=True)
    shutil.rmtree(scratch, ignore_errors=True)


def reading(folder) -> Path:
    """A local folder with the files of `folder`: itself, or a copy made now."""
    folder = as_path(folder)
    if not is_remote(folder):
        return Path(folder)
    scratch = Path(tempfile.mkdtemp(prefix="grm_jax-"))
    for file in folder.rglob("*"):
        if not file.is_dir():
            target = scratch / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.copy(epath.Path(target), overwrite=True)
    return scratch


@functools.cache
def fetch(path: str) -> Path:
    """The local path of a file or folder; what a bucket holds is copied once per process, whole, to this machine's temporary folder.

    Raises FileNotFoundError where there is nothing.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    source = as_path(path)
    if not source.exists():
        raise FileNotFoundError(f"{path} does not exist, or this machine's account may not read it")
    if source.is_dir():
        return reading(path)
    target = Path(tempfile.mkdtemp(prefix="grm_jax-")) / source.name
    source.copy(epath.Path(target), overwrite=True)
    return target


def read_lines(path) -> list[str]:
    """The lines of a text file of ours, cut at "\\n" alone: a JSON text may hold U+2028 and its like, where `splitlines` would cut too."""
    return [line for line in epath.Path(path).read_text(encoding="utf-8").split("\n") if line]


def write_atomic(path, text: str) -> None:
    """Writes a text beside its place and moves it there: half a file is never found under the name."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / (path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
