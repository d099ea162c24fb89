"""Tensors on disk, read piece by piece into memory that somebody else owns.

A reader offers `tensors: {name: tensor}`; a tensor has `shape`, `dtype` and

    read_into(view, index, out)      out[...] = reshape(tensor, view)[index], cast to out's dtype

where `out` may be strided (a transposed view of the array being filled): the transposition happens on the way, and no second full copy exists.
"""

import threading
from typing import Any, Protocol

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TURNED_ROWS = 32  # of bfloat16: one line of the cache
Index = tuple[Any, ...]  # slices and integers


class Tensor(Protocol):
    shape: tuple[int, ...]
    dtype: np.dtype

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None: ...


class Reader(Protocol):
    """A checkpoint opened for reading. `form` says which column of the table of names its tensors go by."""

    form: str
    path: str
    tensors: dict[str, Tensor]


def put(out: np.ndarray, values: np.ndarray) -> None:
    """out[...] = values, cast; bfloat16 by its bits where the cast is exact, which is several times faster."""
    if values.dtype == BFLOAT16 and out.dtype == np.float32:
        values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif values.dtype != out.dtype:
        values = values.astype(out.dtype)
    if values.dtype == BFLOAT16:
        values, out = values.view(np.uint16), out.view(np.uint16)
    if out.ndim > 2 and out.strides[0] != out.itemsize:
        for part, value in zip(out, values, strict=True):
            put(part, value)
    elif out.ndim > 1 and out.strides[0] == out.itemsize:
        # Turned: what is read along rows is written along columns. A line of the cache takes the elements of as many rows as it holds, and must
        # get them before it is evicted: so few rows at a time.
        for i in range(0, len(out), TURNED_ROWS):
            np.copyto(out[i : i + TURNED_ROWS], values[i : i + TURNED_ROWS])
    else:
        np.copyto(out, values)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype, align: int = 4096) -> np.ndarray:
    """An uninitialised array at an address that XLA's CPU backend takes over without a copy (it asks for 64 bytes)."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(dtype).reshape(shape)


_local = threading.local()


def scratch(size: int) -> np.ndarray:
    """`size` bytes that this thread reuses: always the same pages, so that the copy out of them comes from cache."""
    if getattr(_local, "buffer", None) is None or _local.buffer.nbytes < size:
        _local.buffer = np.empty(size, np.uint8)
    return _local.buffer[:size]
