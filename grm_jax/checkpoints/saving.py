"""From a sharded model to a Hugging Face folder that transformers and vLLM serve: config.json, safetensors with an index, tokenizer files."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from grm_jax.checkpoints.hf_config import to_hf
from grm_jax.checkpoints.hf_folder import INDEX
from grm_jax.checkpoints.loading import Progress, flat_params
from grm_jax.checkpoints.names import Part, axis_sizes, disk_shape, places
from grm_jax.checkpoints.safetensors_file import write_safetensors
from grm_jax.checkpoints.tensors import put

# What a tokenizer and its chat format may consist of, and the settings of generation.
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    model,
    path,
    like=None,
    dtype: str | None = None,
    max_file_bytes: int = 5 << 30,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a model as a Hugging Face folder. One layer's array at a time is gathered and copied to the host.

    like: a folder (or file) whose tokenizer files, and whose token ids in config.json, come along.  dtype: None keeps each parameter's own.
    max_file_bytes: a model that is larger is split into files of at most this size.
    Every process must call it; process 0 writes.
    Raises FileExistsError if the folder already holds weights and `overwrite` is False.
    """
    path, cfg = Path(path).expanduser(), model.cfg
    writer = jax.process_index() == 0
    if writer:
        _clear(path, overwrite)
    params = flat_params(nnx.state(model, nnx.Param))
    # Rows that pad the table stay behind: the format's vocabulary is the table's height.
    sizes = axis_sizes(cfg.replace(vocab_pad=0))
    entries = []
    for name, place in places(cfg, "hf").items():
        for part in place.parts:
            kind = np.dtype(dtype or params[name].dtype)

            def make(a=params[name], part=part, axes=place.axes, kind=kind):
                return _on_disk(a, part, axes, sizes, kind)

            entries.append((part.name, disk_shape(part, sizes), kind, make))
    entries.sort(key=lambda e: _order(e[0]))
    files = _split(entries, max_file_bytes)
    total, done = sum(map(_nbytes, entries)), 0
    weight_map: dict[str, str] = {}
    for i, group in enumerate(files):
        file = (
            "model.safetensors"
            if len(files) == 1
            else f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        )
        weight_map |= dict.fromkeys((e[0] for e in group), file)
        if progress is not None:
            group, done = _counted(group, done, total, progress), done + sum(map(_nbytes, group))
        if writer:
            write_safetensors(path / file, group)
        else:
            for *_, make in group:
                make()  # takes part in gathering
    if writer:
        if len(files) > 1:
            index = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(weight_map.items())),
            }
            _write_json(path / INDEX, index)
        config = to_hf(cfg, str(np.dtype(dtype or params["embedder.table_VxD"].dtype)))
        if like is not None:
            config |= _token_ids(Path(like))
            copy_tokenizer(like, path)
        _write_json(path / "config.json", config)


def _on_disk(variable, part: Part, axes: str, sizes, dtype: np.dtype) -> np.ndarray:
    """One tensor as the format wants it: this layer's array, gathered, in the axis order of the disk."""
    value = variable[...] if isinstance(variable, nnx.Variable) else variable
    value = _to_host(value if part.unit is None else value[part.unit])
    if axes[0] == "V":
        value = value[: sizes["V"]]
    order = [axes.index(a) for a in part.axes.replace(",", "") if not a.isdigit()]
    source = value.transpose(order)
    out = np.empty(source.shape, dtype)
    for i in range(
        0, len(source), 256
    ):  # 256 rows of the source's fast axis stay in cache while they are turned
        put(out[i : i + 256], source[i : i + 256])
    return out.reshape(disk_shape(part, sizes))


def _to_host(value: jax.Array) -> np.ndarray:
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _split(entries, max_bytes: int):
    files: list[list] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + _nbytes(entry) > max_bytes:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += _nbytes(entry)
    return files


def _nbytes(entry) -> int:
    return int(np.prod(entry[1], dtype=np.int64)) * entry[2].itemsize


def _counted(group, done, total, progress):
    """The same entries, telling `progress` as each is made."""
    out = []
    for entry in group:
        done += _nbytes(entry)

        def make(inner=entry[3], done=done):
            array = inner()
            progress(done, total)
            return array

        out.append((*entry[:3], make))
    return out


def _order(name: str):
    """Embedding first, then layer by layer, then the norm and the head: files end between layers where they can."""
    pieces = name.split(".")
    return (int(pieces[2]) if pieces[1] == "layers" else -1 if "embed" in name else 10**6, name)


def _clear(path: Path, overwrite: bool) -> None:
    path.mkdir(parents=True, exist_ok=True)
    old = sorted([*path.glob("*.safetensors"), *path.glob(INDEX)])
    if old and not overwrite:
        raise FileExistsError(
            f"{path} already holds {old[0].name}: choose another folder, or allow overwriting"
        )
    for file in old:
        file.unlink()


def copy_tokenizer(source, path) -> list[str]:
    """Copies the tokenizer files of a folder, or one .model or .json file under the name that `tokenizer.load` looks for; returns their names."""
    source, path = Path(source), Path(path)
    files = (
        {n: source / n for n in TOKENIZER_FILES if (source / n).exists()} if source.is_dir() else {}
    )
    if source.is_file() and source.suffix in (".model", ".json"):
        files = {
            source.name if source.name in TOKENIZER_FILES else f"tokenizer{source.suffix}": source
        }
    for name, file in files.items():
        if file.resolve() != (path / name).resolve():
            shutil.copyfile(file, path / name)
    return list(files)


def _token_ids(folder: Path) -> dict:
    if not (folder / "config.json").exists():
        return {}
    config = json.loads((folder / "config.json").read_text())
    found = config.get("text_config", {}) | config
    return {key: found[key] for key in TOKEN_IDS if found.get(key) is not None}


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
