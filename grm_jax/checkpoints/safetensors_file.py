"""Reads byte ranges of safetensors files, and writes files tensor by tensor.

The format: 8 bytes of header length, a JSON header, then the tensors' bytes back to back. The
`safetensors` library checks the header: sizes, types, and offsets that neither overlap nor leave
gaps nor exceed the file. It reads whole tensors into new arrays; here a process reads the bytes of
its own shards into the arrays where they stay.
"""

import json
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from grm_jax import strict_json
from grm_jax.checkpoints.tensor_map import INT8
from grm_jax.checkpoints.tensors import BFLOAT16, Index, put, scratch
from grm_jax.model_files import check_file, one_line
from grm_jax.storage import open_atomic

DTYPES = {
    "BF16": BFLOAT16,
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
CODES = {dtype: code for code, dtype in DTYPES.items()} | {np.dtype(np.int8): "I8"}


class SafetensorsTensor:
    """One tensor of a file.

    Whole rows are read by their byte range. Parts of rows are read through the page cache, so that
    only the pages they touch are fetched.
    """

    def __init__(self, file: "SafetensorsFile", name: str, entry: dict[str, Any]) -> None:
        begin, end = entry["data_offsets"]
        self.file, self.name, self.start = file, name, file.data_start + begin
        self.shape, self.code, self.nbytes = tuple(entry["shape"]), entry["dtype"], end - begin

    @property
    def dtype(self) -> np.dtype:
        if self.code == "I8" and self.name.endswith(INT8):
            return np.dtype(np.int8)
        if self.code not in DTYPES:
            raise ValueError(
                f"{self.file.path}: {self.name} has dtype {self.code}: "
                f"convert the checkpoint to {', '.join(DTYPES)} first"
            )
        return DTYPES[self.code]

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        first, rest = index[0], index[1:]
        whole_rows = isinstance(first, slice) and all(
            isinstance(i, slice) and i == slice(0, n) for i, n in zip(rest, view[1:], strict=True)
        )
        if not whole_rows:
            put(out, self.file.mapped(self).reshape(view)[index])
            self.file.bytes_read += out.size * self.dtype.itemsize
            self.file.unmap_pages(self)
            return
        row_bytes = self.dtype.itemsize * int(np.prod(view[1:], dtype=np.int64))
        offset, size = self.start + first.start * row_bytes, (first.stop - first.start) * row_bytes
        if out.dtype == self.dtype and out.flags.c_contiguous:
            self.file.read(out.reshape(-1).view(np.uint8), offset)
            return
        raw = scratch(size)
        self.file.read(raw, offset)
        put(out, raw.view(self.dtype).reshape(first.stop - first.start, *view[1:]))


class SafetensorsFile:
    """An open file. `bytes_read` counts the bytes requested from it.

    Raises:
      ValueError: no regular file of the folder, or a header that the `safetensors` library refuses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        target = check_file(self.path)
        try:
            safetensors.safe_open(target, framework="np")
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path} is not a safetensors file ({one_line(error):.200}): "
                "the download is incomplete or damaged, download it again"
            ) from None
        self.fd = os.open(target, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size
        self.bytes_read = 0
        self._map: mmap.mmap | None = None
        (length,) = struct.unpack("<Q", os.pread(self.fd, 8, 0))
        header = strict_json.loads(os.pread(self.fd, length, 8))
        self.data_start = 8 + length
        header.pop("__metadata__", None)
        self.tensors = {
            name: SafetensorsTensor(self, name, entry) for name, entry in header.items()
        }

    def read(self, out: np.ndarray, offset: int) -> None:
        """Fills the bytes of `out` from the file."""
        view, done = memoryview(out.data), 0
        while done < len(view):
            n = os.preadv(self.fd, [view[done:]], offset + done)
            if n == 0:
                raise ValueError(
                    f"{self.path} ends at byte {offset + done}: the download is incomplete, "
                    "download it again"
                )
            done += n
        self.bytes_read += done

    def mapped(self, tensor: SafetensorsTensor) -> np.ndarray:
        """Returns the tensor as a read-only array over the page cache."""
        if self._map is None:
            self._map = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)
        raw = np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.start)
        return raw.view(tensor.dtype).reshape(tensor.shape)

    def unmap_pages(self, tensor: SafetensorsTensor) -> None:
        """Releases a tensor's pages, which count as this process's memory; they may stay cached."""
        assert self._map is not None
        start = tensor.start - tensor.start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.nbytes - start)

    def __del__(self) -> None:
        if getattr(self, "fd", None) is not None:
            os.close(self.fd)


class Entry(NamedTuple):
    """A tensor to write; `make` returns its array."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_safetensors(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    make: Callable[[Entry], np.ndarray] = lambda entry: entry.make(),
) -> None:
    """Writes a file with one tensor in memory at a time; it gets its name when it is complete.

    make: returns the array of an entry.
    """
    offset = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        end = offset + entry.nbytes
        header[entry.name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    with open_atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            array = np.ascontiguousarray(make(entry))
            if array.shape != tuple(entry.shape) or array.dtype != entry.dtype:
                raise ValueError(
                    f"{entry.name}: expected {entry.shape} {entry.dtype}, "
                    f"got {array.shape} {array.dtype}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)
