"""Tensors on disk, read piece by piece into memory that the caller owns.

A reader has `tensors: {name: tensor}`. A tensor has `shape`, `dtype` and

    read_into(view, index, out)      out[...] = reshape(tensor, view)[index], cast to out's dtype

where `out` may be strided (a transposed view of the array being filled), so that the transposition
needs no second full copy.
"""

import abc
import threading
from typing import Any

import ml_dtypes
import numpy as np

from grm_jax.models.config import TransformerConfig

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TRANSPOSED_ROWS = 32  # bfloat16 values per cache line
Index = tuple[Any, ...]  # slices and integers


class Reader(abc.ABC):
    """An open checkpoint.

    Attributes:
      format: the column of the table of tensor names (`tensor_map.tensor_map`) that applies.
      path: names the checkpoint in errors.
      tensors: by name.
      has_no_output_head: whether it is a classifier whose untied output head is not stored.
    """

    format: str
    path: Any
    tensors: dict[str, Any]
    has_no_output_head = False

    @abc.abstractmethod
    def model_config(self) -> TransformerConfig:
        """Returns the configuration of the stored model."""

    def fit(self, cfg: TransformerConfig) -> TransformerConfig:
        """Returns `cfg`, adapted to details of this checkpoint that a configuration must follow."""
        return cfg


def put(out: np.ndarray, values: np.ndarray) -> None:
    """Sets out[...] = values, cast; casts bfloat16 by its bits, which is several times faster."""
    if values.dtype == BFLOAT16 and out.dtype == np.float32:
        values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif values.dtype != out.dtype:
        values = values.astype(out.dtype)
    if values.dtype == BFLOAT16:
        values, out = values.view(np.uint16), out.view(np.uint16)
    if out.ndim > 2 and out.strides[0] != out.itemsize:
        for out_slice, value in zip(out, values, strict=True):
            put(out_slice, value)
    elif out.ndim > 1 and out.strides[0] == out.itemsize:
        # A transposition: rows are read, columns written. A cache line holds one value of each of
        # TRANSPOSED_ROWS rows and must be filled before it is evicted.
        for i in range(0, len(out), TRANSPOSED_ROWS):
            np.copyto(out[i : i + TRANSPOSED_ROWS], values[i : i + TRANSPOSED_ROWS])
    else:
        np.copyto(out, values)


def widened(values: np.ndarray) -> np.ndarray:
    """Returns values as float32, or as float64 if they are; equal values stay equal."""
    return values if values.dtype == np.float64 else values.astype(np.float32)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype, align: int = 4096) -> np.ndarray:
    """Returns an uninitialised array that XLA's CPU backend adopts without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(dtype).reshape(shape)


_local = threading.local()


def scratch(size: int) -> np.ndarray:
    """Returns `size` bytes that this thread reuses, so that copies out of them come from cache."""
    if getattr(_local, "buffer", None) is None or _local.buffer.nbytes < size:
        _local.buffer = np.empty(size, np.uint8)
    return _local.buffer[:size]
