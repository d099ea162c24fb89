"""Where records come from: files, folders, standard input, buckets, and data sets of the Hub.

`local_files` turns a source into files on this machine; `records.read_records` reads them.

    pairs.jsonl, pairs.csv.gz       a file
    folder                          of `datasets` (save_to_disk), or with the shards of one table
    folder/test                     one split of it
    gs://bucket/pairs.parquet       a file or folder of a bucket
    -                               standard input, in any of the formats
    hf://datasets/ORG/NAME          a data set of the Hub; @REVISION, /SPLIT, /CONFIG, /FILE follow
"""

import functools
import gzip
import hashlib
import re
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

from grm_jax import hub, strict_json
from grm_jax.data import shards
from grm_jax.storage import check_scheme, fetch, is_remote

STDIN = "-"
HUB = "hf://datasets/"


def local_files(source: str | Path) -> list[Path]:
    """Returns the files of a source, in the order of their rows, downloaded if necessary.

    Raises:
      FileNotFoundError: there is no such file, folder or data set.
      ValueError: a folder or data set has several splits or configs, and the source names none; or
        an address of another scheme than gs:// and hf://datasets/.
    """
    text = str(source)
    if text == STDIN or (not is_remote(text) and Path(text).is_fifo()):
        return [_spooled(text)]
    if text.startswith(HUB):
        from grm_jax.data import hub_sets

        return hub_sets.download(text)
    check_scheme(text, "data")
    path = fetch(text) if is_remote(text) else Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _folder_files(path, "", text)
    if path.exists():
        raise ValueError(f"{source} is a device or a socket: give a file, a folder or a named pipe")
    # FOLDER/SPLIT or FOLDER/CONFIG/SPLIT
    folder = next((folder for folder in path.parents[:2] if folder.is_dir()), None)
    hint = hub_hint(text)
    if folder and not path.suffix and shards.data_names(_names(folder)):
        try:
            return _folder_files(folder, path.relative_to(folder).as_posix(), text)
        except FileNotFoundError:
            if not hint:
                raise
    raise FileNotFoundError(f"no data file {source}{hint}")


def hub_hint(source: str) -> str:
    """Returns ": did you mean hf://datasets/...?" for the bare name of a data set, else ""."""
    name = source.removeprefix("hf:").removeprefix("datasets/")
    if Path(source).parent.is_dir() or not hub.parse("/".join(name.split("/")[:2])):
        return ""
    return f": did you mean {HUB}{name}?"


def name_of(source: str | Path) -> str:
    """Returns a short name, which the ids of records without one begin with."""
    return "stdin" if str(source) == STDIN else Path(source).name.split(".")[0]


def digest(source: str | Path) -> str:
    """Returns a SHA-256 over the content of a source's files; the Hub's are not downloaded."""
    if str(source).startswith(HUB):
        from grm_jax.data import hub_sets

        return hashlib.sha256(str(hub_sets.ids(str(source))).encode()).hexdigest()
    digests = []
    for path in local_files(source):
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(str(digests).encode()).hexdigest()


def _folder_files(folder: Path, split: str, source: str) -> list[Path]:
    """Returns the files of one split of a folder."""
    state = folder / "state.json"  # of `Dataset.save_to_disk`
    if not split and state.is_file():
        try:
            files = [Path(file["filename"]).name for file in strict_json.read(state)["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{state} is damaged: save the data set again") from None
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise ValueError(
                f"{state} names {missing[0]}, which is not a file: save the data set again"
            )
        return [folder / name for name in files]
    return [folder / name for name in shards.select(_names(folder), split, source)]


def _names(folder: Path) -> list[str]:
    """Returns the files in a folder and in two levels of folders below it."""
    paths = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


# ---------------------------------------------------------------- standard input


@functools.cache
def _spooled(source: str) -> Path:
    """Copies standard input or a named pipe to a temporary file: sources are read twice or more."""
    folder = tempfile.TemporaryDirectory(prefix="grm_jax-")
    _KEPT.append(folder)
    path = Path(folder.name) / "stdin"
    with open(path, "wb") as file:
        if source == STDIN:
            shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            with open(source, "rb") as pipe:
                shutil.copyfileobj(pipe, file)
    return path.rename(path.with_suffix(format_of(path)))


_KEPT: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def format_of(path: Path) -> str:
    """Returns the suffix that fits the beginning of a file, such as ".parquet" or ".csv.gz"."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    packed = ".gz" if head.startswith(b"\x1f\x8b") else ""
    if packed:
        try:
            with gzip.open(path) as unpacked:
                head = unpacked.read(1 << 16)
        except (EOFError, OSError, zlib.error):  # the reader of the file names it
            head = b""
    if head.startswith(b"PAR1"):
        return f".parquet{packed}"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return f".arrow{packed}"
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if first[:1] in (b"{", b"["):
        return f".jsonl{packed}"
    header = first.partition(b"\n")[0].strip()
    for suffix, delimiter in ((".csv", b","), (".tsv", b"\t")):
        if len(columns := header.split(delimiter)) > 1 and all(map(_COLUMN.fullmatch, columns)):
            return suffix + packed
    return f".jsonl{packed}"


_COLUMN = re.compile(rb'"?[A-Za-z_][\w .-]*"?')
