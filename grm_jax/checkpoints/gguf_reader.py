"""Parses the header of a GGUF file, with every size checked against the file.

The `gguf` package trusts counts, lengths and offsets. Here no count is followed past the end of the
file, and the tensors must lie one after another in it, as llama.cpp requires.
"""

import collections
import functools
import math
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from grm_jax.model_files import check_file, damage_of, one_line

# Far above real files: Gemma 3 has 262,208 tokens, DeepSeek-V2 has 1,400 tensors.
MOST_FIELDS, MOST_TENSORS, MOST_VALUES = 10_000, 100_000, 4_000_000
VERSIONS = (2, 3)


def parse(path: str | os.PathLike[str]) -> gguf.GGUFReader:
    """Returns the parsed header of a file; its tensors are views of the mapped file.

    Raises:
      ValueError: not a regular file, another format, or damaged: names the file and the fault.
    """
    path = str(path)
    status = check_file(Path(path), linked=True).stat()
    with damage_of(path, complete=True):
        with open(path, "rb") as file:
            magic, version = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if magic != b"GGUF":
            raise ValueError(f"not a GGUF file: it begins with {magic!r}")
        if version not in VERSIONS:
            order = "big-endian" if version & 0xFFFF == 0 and version else f"version {version}"
            raise ValueError(f"a GGUF file of {order} is not supported: use version 3")
    return _parse(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _parse(path: str, mtime: int, size: int) -> gguf.GGUFReader:
    """A vocabulary takes seconds. mtime, size: parts of the cache key."""
    with damage_of(path, complete=True):
        return _Reader(path)


class _Reader(gguf.GGUFReader):
    """The reader of the `gguf` package with bounds."""

    def __init__(self, path: str) -> None:
        """Parses a file. Raises ValueError that names the last field before the damage."""
        self.fields = collections.OrderedDict()  # empty if the first bytes are damaged
        try:
            super().__init__(path)
        except Exception as error:
            last = next(reversed(self.fields), "the header")
            reason = error.args[0] if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path} is damaged at or after {last!r:.80}: {one_line(reason):.200}: "
                "download or convert it again"
            ) from error

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it needs {end:,} bytes, and the file has {len(self.data):,}")
        return super()._get(int(offset), dtype, count, override_order)

    def _build_fields(self, offs: int, count: Any) -> int:
        _check_count(count, MOST_FIELDS, "fields")
        return super()._build_fields(offs, count)

    def _build_tensor_info(self, offs: int, count: Any) -> Any:
        _check_count(count, MOST_TENSORS, "tensors")
        return super()._build_tensor_info(offs, count)

    def _get_field_parts(self, orig_offs: int, raw_type: Any) -> Any:
        """Returns (bytes, parts, indices of the values' parts, types).

        The values of an array of numbers are one part instead of one part each.
        """
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item_type, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        item = GGUFValueType(int(item_type[0]))
        _check_count(count[0], MOST_VALUES, "values of an array")
        if item == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        if item == GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        values = self._get(orig_offs + 12, self.gguf_scalar_to_np[item], int(count[0]))
        types = [GGUFValueType.ARRAY, item]
        return 12 + values.nbytes, [item_type, count, values], [2], types

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        expected = 0
        for field in fields:
            dims, type_code, offset = (part.tolist() for part in field.parts[3:])
            where = f"tensor {field.name!r:.80}"
            if not 1 <= len(dims) <= 4 or not all(dims):
                raise ValueError(f"{where} has the dimensions {dims!s:.80}")
            if (sizes := _block_sizes(type_code[0])) is None:
                raise ValueError(f"{where} has the quantisation {type_code[0]}, an unsupported one")
            block, block_bytes = sizes
            if dims[0] % block:
                raise ValueError(f"{where} has rows of {dims[0]}, not a multiple of {block}")
            size = math.prod(dims) // block * block_bytes
            if offset[0] != expected:
                raise ValueError(f"{where} begins at byte {offset[0]} of the data, not {expected}")
            if start_offs + expected + size > len(self.data):
                raise ValueError(f"{where} ends after the file, which has {len(self.data):,} bytes")
            alignment = int(self.alignment)
            expected += -(-size // alignment) * alignment
        super()._build_tensors(start_offs, fields)


@functools.cache
def _block_sizes(type_code: int) -> tuple[int, int] | None:
    """Returns (values, bytes) of a block of this quantisation; None if it is not supported."""
    if type_code not in GGML_QUANT_SIZES:
        return None
    quantization = GGMLQuantizationType(type_code)
    sizes = GGML_QUANT_SIZES[quantization]
    try:
        gguf.dequantize(np.zeros((1, sizes[1]), np.uint8), quantization)
    except NotImplementedError:
        return None
    return sizes


def _check_count(count: Any, most: int, what: str) -> None:
    if count > most:
        raise ValueError(f"{int(count):,} {what}, more than {most:,}")
