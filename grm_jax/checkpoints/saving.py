"""Saves a sharded model as a Hugging Face folder that transformers and vLLM serve."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from grm_jax import strict_json
from grm_jax.checkpoints.hf_config import int8_config, to_hf
from grm_jax.checkpoints.loading import Progress, flat_params
from grm_jax.checkpoints.safetensors_file import Entry, write_safetensors
from grm_jax.checkpoints.tensor_map import DiskTensor, axis_sizes, disk_shape, tensor_map
from grm_jax.checkpoints.tensors import put
from grm_jax.hub import TOKENIZER_FILES
from grm_jax.model_files import INDEX, exists, read_bytes, read_json_if_any
from grm_jax.models.quantize import is_quantized
from grm_jax.models.transformer import Transformer
from grm_jax.storage import fetch, is_remote, write_atomic

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GGUF = ".gguf"
_OF_ANOTHER = tuple(name for name in TOKENIZER_FILES if name != "generation_config.json")
VOCABULARIES = ("tokenizer.model", "tokenizer.json")
COPY_ROWS = 256  # rows of the source that stay in cache while they are transposed


def save(
    model: Transformer,
    path: str | os.PathLike[str],
    like: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    max_file_bytes: int = 5 << 30,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Saves a model as a Hugging Face folder; gathers and copies one layer's array at a time.

    Every process must call it; process 0 writes. The folder of a model with int8 weights has their
    values and scales, and only this package loads it.

    Args:
      like: a folder, file or hub name whose tokenizer files, and token ids in config.json, are
        copied.
      dtype: None keeps each parameter's own; int8 weights and their scales always keep theirs.
      max_file_bytes: larger models are split into files of at most this size.

    Raises:
      FileExistsError: the folder already holds weights and `overwrite` is False.
      FileNotFoundError: `like` has neither a tokenizer nor a config.json.
      ValueError: the weights are int4, which no format of files has; a model that config.json
        cannot describe; a path in a bucket.
    """
    if model.cfg.quantize == "int4":
        raise ValueError(
            f"{path}: int4 weights are not saved: save the float model or one with int8 weights, "
            "and load the float one with quantize='int4'"
        )
    if is_remote(path):
        raise ValueError(f"{path} is not local: save to a local folder, and copy it there")
    path = Path(path).expanduser()
    writer = jax.process_index() == 0
    if like is not None:
        like = fetch(like, weights=False)
        if not (tokenizer_files(like) or exists(like / "config.json")):
            raise FileNotFoundError(f"like={like} has no tokenizer and no config.json")
    token_ids = _token_ids(Path(like)) if like is not None else {}
    params = flat_params(nnx.state(model, nnx.Param))
    table = params.get("embedder.table_VxD", params["final_norm.scale"])  # int8: the norms' dtype
    config = to_hf(model.cfg, str(np.dtype(dtype or table.dtype)))
    if model.cfg.quantize:
        config = int8_config(config)
    if writer:
        _clear(path, overwrite)
    files = _split(_entries(model, params, dtype), max_file_bytes)
    total, done = sum(entry.nbytes for group in files for entry in group), 0

    def make(entry: Entry) -> np.ndarray:
        nonlocal done
        array = entry.make()
        done += entry.nbytes
        if progress is not None:
            progress(done, total)
        return array

    weight_map: dict[str, str] = {}
    for i, group in enumerate(files, 1):
        single = len(files) == 1
        file = "model.safetensors" if single else f"model-{i:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys((entry.name for entry in group), file)
        if writer:
            write_safetensors(path / file, group, make)
        else:
            for entry in group:
                make(entry)  # takes part in gathering
    if not writer:
        return
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(path / INDEX, index)
    if like is not None:
        copy_tokenizer(like, path)
    # Last: without it, a folder whose writing was interrupted does not load.
    _write_json(path / "config.json", config | token_ids)


def _entries(model: Transformer, params: dict[str, Any], dtype: str | None) -> list[Entry]:
    """Returns the tensors in the order of the files: embedding, layers, final norm and head."""
    sizes = axis_sizes(model.cfg.replace(vocab_pad=0))  # the format has no padding rows

    def order(entry: Entry) -> tuple[int, str]:
        pieces = entry.name.split(".")
        layer = int(pieces[2]) if pieces[1] == "layers" else 10**6
        return (-1 if "embed" in entry.name else layer, entry.name)

    entries = []
    for name, source in tensor_map(model.cfg, "hf_int8" if model.cfg.quantize else "hf").items():
        kept = None if is_quantized(params[name]) else dtype
        target = np.dtype(kept or params[name].dtype)
        for tensor in source.tensors:
            make = partial(disk_array, params[name], tensor, source.axes, sizes, target)
            entries.append(Entry(tensor.name, disk_shape(tensor, sizes), target, make))
    return sorted(entries, key=order)


def disk_array(
    variable: Any, tensor: DiskTensor, axes: str, sizes: dict[str, int], dtype: np.dtype
) -> np.ndarray:
    """Returns one tensor in the shape and axis order of the disk, gathered from all devices.

    variable: the parameter, with our `axes` (the stacked axis excluded).
    """
    value = variable[...] if isinstance(variable, nnx.Variable) else variable
    value = to_host(value if tensor.unit is None else value[tensor.unit])
    if axes[0] == "V":
        value = value[: sizes["V"]]
    order = [axes.index(a) for a in tensor.axes.replace(",", "") if not a.isdigit()]
    source = value.transpose(order)
    out = np.empty(source.shape, dtype)
    for i in range(0, len(source), COPY_ROWS):
        put(out[i : i + COPY_ROWS], source[i : i + COPY_ROWS])
    return out.reshape(disk_shape(tensor, sizes))


def to_host(value: jax.Array) -> np.ndarray:
    """Returns an array gathered from all devices; every process must call it."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _split(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    files: list[list[Entry]] = [[]]
    for entry in entries:
        if files[-1] and sum(other.nbytes for other in (*files[-1], entry)) > max_bytes:
            files.append([])
        files[-1].append(entry)
    return files


def _clear(path: Path, overwrite: bool) -> None:
    path.mkdir(parents=True, exist_ok=True)
    old = sorted([*path.glob("*.safetensors"), *path.glob(INDEX)])
    if old and not overwrite:
        raise FileExistsError(
            f"{path} already holds {old[0].name}: choose another folder, or replace "
            "them with --overwrite (in Python: overwrite=True)"
        )
    for file in (path / "config.json", *old):
        file.unlink(missing_ok=True)


def copy_tokenizer(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> list[str]:
    """Copies a folder's tokenizer files, or one .model or .json file, and returns their names.

    A single file gets the name that `tokenizer.load` expects. The tokenizer inside a GGUF file, or
    in a folder with nothing else, is rebuilt. Files of another tokenizer in `path` are deleted, so
    that no later load mixes the two. A single file replaces only the other vocabulary.
    """
    source, path = Path(source), Path(path)
    files = tokenizer_files(source)
    if list(files) == [GGUF]:
        from grm_jax.checkpoints.gguf_file import GgufFile

        with tempfile.TemporaryDirectory() as scratch:
            GgufFile(files[GGUF]).write_tokenizer(Path(scratch))
            rebuilt = {file.name: file.read_bytes() for file in Path(scratch).iterdir()}
        _remove(path, TOKENIZER_FILES)
        for name, content in rebuilt.items():
            write_atomic(path / name, content)
        return [name for name in TOKENIZER_FILES if name in rebuilt]
    contents = {name: read_bytes(file, linked=file == source) for name, file in files.items()}
    if contents.keys() & set(VOCABULARIES) and os.path.realpath(source) != os.path.realpath(path):
        stale = _OF_ANOTHER if source.is_dir() else VOCABULARIES
        _remove(path, [name for name in stale if name not in files])
    for name, file in files.items():
        if os.path.realpath(file) != os.path.realpath(path / name):
            write_atomic(path / name, contents[name])
    return list(files)


def tokenizer_files(source: str | os.PathLike[str]) -> dict[str, Path]:
    """Returns {name in a model folder: file} of a tokenizer; {GGUF: file} where it is in a GGUF."""
    source = Path(source)
    gguf = [source] if source.suffix == ".gguf" else sorted(source.glob("*.gguf"))
    if len(gguf) == 1 and not any((source / name).exists() for name in TOKENIZER_FILES):
        return {GGUF: gguf[0]}
    if source.is_dir():
        return {n: source / n for n in TOKENIZER_FILES if exists(source / n)}
    if exists(source) and source.suffix in (".model", ".json"):
        known = source.name in TOKENIZER_FILES
        return {source.name if known else f"tokenizer{source.suffix}": source}
    return {}


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _token_ids(folder: Path) -> dict[str, Any]:
    config = read_json_if_any(folder / "config.json")
    text = config.get("text_config")
    config = (text if isinstance(text, dict) else {}) | config
    ids = {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
    for key, value in ids.items():
        if any(type(i) is not int for i in (value if isinstance(value, list) else [value])):
            raise ValueError(
                f"{folder / 'config.json'}: {key}={value!r:.60} is no id: give a whole number, or "
                "a list of them"
            )
    return ids


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, strict_json.dumps(value, indent=2) + "\n")
