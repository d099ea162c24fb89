"""Safetensors files by byte ranges. The format: 8 bytes of header length, a JSON header, the tensors' bytes back to back.

The `safetensors` library reads whole tensors into arrays of its own; here only the bytes of a shard are read, into the place where they stay.
"""

import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grm_jax.checkpoints.tensors import Index, put, scratch

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # the format's own limit


class SafetensorsTensor:
    """One tensor of a file. Rows that are whole are read by their byte range; parts of rows through the page cache, only the pages touched."""

    def __init__(self, file: "SafetensorsFile", name: str, entry: dict):
        begin, end = entry["data_offsets"]
        self.file, self.name, self.start = file, name, file.data_start + begin
        self.shape, self.code, self.nbytes = tuple(entry["shape"]), entry["dtype"], end - begin

    @property
    def dtype(self) -> np.dtype:
        if self.code not in DTYPES:
            raise ValueError(
                f"{self.file.path}: {self.name} has dtype {self.code}: convert the checkpoint to {', '.join(DTYPES)} first"
            )
        return DTYPES[self.code]

    def check(self) -> None:
        """Raises ValueError if the header's byte range is not that of its shape, or runs past the end of the file."""
        count = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if count != self.nbytes or self.start + self.nbytes > self.file.size:
            raise ValueError(
                f"{self.file.path}: {self.name} should be {count} bytes, the header says {self.nbytes} of a file of {self.file.size}: "
                "the download is incomplete or damaged, fetch it again"
            )

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        first, rest = index[0], index[1:]
        whole = all(
            isinstance(i, slice) and i == slice(0, n) for i, n in zip(rest, view[1:], strict=True)
        )
        if not (isinstance(first, slice) and whole):
            put(out, self.file.mapped(self).reshape(view)[index])
            self.file.count(out.size * self.dtype.itemsize)
            self.file.unmap_pages(self)
            return
        row = self.dtype.itemsize * int(np.prod(view[1:], dtype=np.int64))
        offset, size = self.start + first.start * row, (first.stop - first.start) * row
        if out.dtype == self.dtype and out.flags.c_contiguous:
            self.file.read(out.reshape(-1).view(np.uint8), offset)
            return
        raw = scratch(size)
        self.file.read(raw, offset)
        put(out, raw.view(self.dtype).reshape(first.stop - first.start, *view[1:]))


class SafetensorsFile:
    """One open file. `bytes_read` counts what was asked of it."""

    def __init__(self, path):
        self.path = Path(path)
        self.fd = os.open(self.path, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size
        self.bytes_read = 0
        self._map: mmap.mmap | None = None
        (length,) = (
            struct.unpack("<Q", os.pread(self.fd, 8, 0)) if self.size >= 8 else (MAX_HEADER,)
        )
        if length >= min(MAX_HEADER, self.size):
            raise ValueError(
                f"{path} is not a safetensors file: its header claims {length} of {self.size} bytes"
            )
        try:
            header = json.loads(os.pread(self.fd, length, 8))
        except ValueError as error:
            raise ValueError(
                f"{path} is not a safetensors file: its header is not JSON ({error})"
            ) from None
        self.data_start = 8 + length
        self.metadata = header.pop("__metadata__", {})
        self.tensors = {
            name: SafetensorsTensor(self, name, entry) for name, entry in header.items()
        }

    def read(self, into: np.ndarray, offset: int) -> None:
        """Fills the bytes of `into` from the file."""
        view, done = memoryview(into.data), 0
        while done < len(view):
            n = os.preadv(self.fd, [view[done:]], offset + done)
            if n == 0:
                raise ValueError(
                    f"{self.path} ends at byte {offset + done}: the download is incomplete, fetch it again"
                )
            done += n
        self.count(done)

    def count(self, size: int) -> None:
        self.bytes_read += size

    def mapped(self, tensor: SafetensorsTensor) -> np.ndarray:
        """The tensor as a read-only array over the page cache."""
        if self._map is None:
            self._map = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)
        raw = np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.start)
        return raw.view(tensor.dtype).reshape(tensor.shape)

    def unmap_pages(self, tensor: SafetensorsTensor) -> None:
        """Lets go of the pages of a tensor, which would count as this process's memory; the system may keep them cached."""
        assert self._map is not None
        start = tensor.start - tensor.start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.nbytes - start)

    def __del__(self):
        if getattr(self, "fd", None) is not None:
            os.close(self.fd)


def write_safetensors(path, entries, metadata: dict[str, str] | None = None) -> None:
    """Writes a file tensor by tensor, with one tensor in memory at a time.

    entries: (name, shape, dtype, make) in the order to write; make() returns the array. The file appears under its name only when complete.
    """
    path, offset = Path(path), 0
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    for name, shape, dtype, _ in entries:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, dtype, make in entries:
            array = np.ascontiguousarray(make())
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(
                    f"{name}: announced as {shape} {dtype}, made as {array.shape} {array.dtype}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)
    os.replace(partial, path)
