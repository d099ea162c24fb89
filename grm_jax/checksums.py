"""Checksums of the files of a folder, so that a damaged file is detected before it is used.

FOLDER/checksums.json holds the SHA-256 of each file of the folder, subfolders excluded.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from grm_jax import strict_json
from grm_jax.storage import write_atomic

FILE = "checksums.json"


def write(folder: Any, later: Mapping[str, str] | None = None) -> None:
    """Writes checksums.json for the files that are in a folder now, local or in a bucket.

    later: {name: text} of files that are written afterwards, such as a marker.
    """
    sums = {file.name: _sum(file) for file in sorted(folder.iterdir()) if _is_covered(file)}
    sums |= {name: _digest(text.encode()) for name, text in (later or {}).items()}
    write_atomic(folder / FILE, strict_json.dumps(sums, indent=2) + "\n")


def problem(folder: Any) -> str:
    """Returns "NAME is damaged" or "NAME is missing" for the first such file, or "".

    A folder without checksums.json, of an earlier version, passes.
    """
    sums = _read(folder)
    if sums is None:
        return ""
    if not sums:
        return f"{FILE} is damaged"
    for name, expected in sums.items():
        file = folder / str(name)
        if "/" in name or not file.exists() or file.is_dir():
            return f"{name} is missing"
        if _sum(file) != expected:
            return f"{name} is damaged"
    return ""


def digest(folder: Any) -> str:
    """Returns 16 hex digits over the content of a folder's files."""
    sums = _read(folder)
    if sums is None:
        sums = {file.name: _sum(file) for file in folder.iterdir() if _is_covered(file)}
    return _digest(strict_json.dumps(sums, sort_keys=True).encode())[:16]


def _read(folder: Any) -> dict[str, Any] | None:
    """Returns the content of checksums.json; None without one, and {} for a damaged one."""
    try:
        return strict_json.read(folder / FILE)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _is_covered(file: Any) -> bool:
    return not file.is_dir() and file.name != FILE and not file.name.startswith(".")


def _sum(file: Any) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
