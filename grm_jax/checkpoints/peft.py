"""LoRA adapters in folders of `peft`: merged into a checkpoint while it loads.

    adapter_config.json           rank, alpha, modules (`peft_config.py`)
    adapter_model.safetensors     base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight ...

A module with the weight W (out, in) and the adapter A (rank, in), B (out, rank) computes
(W + scale B A) x, with scale = alpha / rank. `merge_into` wraps the tensors of an open checkpoint:
a wrapped tensor adds scale B A, in float32, to the ranges that are read, before they are rounded to
the parameter's dtype. So a base of any format loads as it does without adapters: sharded, quantised
on load, and without a second copy.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grm_jax.checkpoints.hf_folder import PREFIXES
from grm_jax.checkpoints.peft_config import PICKLE, SCORE, WEIGHTS, AdapterConfig, read_config
from grm_jax.checkpoints.safetensors_file import SafetensorsFile, SafetensorsTensor
from grm_jax.checkpoints.tensor_map import DiskTensor, axis_sizes, disk_shape, tensor_map
from grm_jax.checkpoints.tensors import Index, Reader, put
from grm_jax.model_files import damage_of, exists, one_line
from grm_jax.models.config import TransformerConfig
from grm_jax.models.lora import TARGETS

OUTER = "base_model.model."  # of every tensor in the file
SIDES = (".lora_A.weight", ".lora_B.weight")
INNER = "model."  # of a module in the table of tensor names


class Place(NamedTuple):
    """A weight that can have an adapter: path of our parameter, and its Hugging Face tensor."""

    param: str
    tensor: DiskTensor


class Adapter(NamedTuple):
    """The adapter of one module. On disk: a (rank, in) and b (out, rank)."""

    a: SafetensorsTensor
    b: SafetensorsTensor
    scale: float


@dataclasses.dataclass(frozen=True)
class Adapters:
    """An adapter folder that fits a model: adapters by module, "model.layers.0.self_attn.q_proj".

    score: reward head of a classifier, which replaces the base's; None for other adapters.
    """

    folder: Path
    config: AdapterConfig
    modules: dict[str, Adapter]
    score: SafetensorsTensor | None


def places(cfg: TransformerConfig) -> dict[str, Place]:
    """Returns the weights of a model that can have an adapter, by Hugging Face module name."""
    return {
        tensor.name.removesuffix(".weight"): Place(param, tensor)
        for param, source in tensor_map(cfg, "hf").items()
        for tensor in source.tensors
        if tensor.name.removesuffix(".weight").endswith(TARGETS)
    }


def open_adapters(folder: str | os.PathLike[str], cfg: TransformerConfig) -> Adapters:
    """Opens an adapter folder for a model.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a field of the config is not supported; or a tensor is missing, has another shape,
        or has no counterpart in the model.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not exists(folder / WEIGHTS):
        if exists(folder / PICKLE):
            raise ValueError(
                f"{folder} has {PICKLE}, a pickle, which can run code and is not opened: save the "
                "adapter as safetensors (model.save_pretrained(folder) of a current peft)"
            )
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}: the download is incomplete")
    with damage_of(folder / WEIGHTS):
        file = SafetensorsFile(folder / WEIGHTS)
        prefix, sides, score = _tensors(file, config)
        modules = _modules(file, config, cfg, prefix, sides)
    return Adapters(folder, config, modules, score)


def _tensors(
    file: SafetensorsFile, config: AdapterConfig
) -> tuple[str, dict[str, dict[str, SafetensorsTensor]], SafetensorsTensor | None]:
    """Returns (name prefix of the base's modules, {module: {side: tensor}}, score or None).

    The prefix of multimodal models differs; the modules returned have a text model's names.
    """
    prefix, score = INNER, None
    sides: dict[str, dict[str, SafetensorsTensor]] = {}
    for name, tensor in file.tensors.items():
        tensor.dtype  # noqa: B018  raises ValueError for a type that is not supported
        side = next((s for s in SIDES if name.endswith(s)), "")
        inner = name.removeprefix(OUTER).removesuffix(side)
        own_prefix = next((p for p in PREFIXES if inner.startswith(p)), None)
        if inner == f"{SCORE}.weight" and config.is_classifier:
            score = tensor
        elif not side or not own_prefix or not name.startswith(OUTER):
            raise ValueError(
                f"{file.path}: {one_line(name):.120} is not supported: only {', '.join(TARGETS)} "
                "of the language model have adapters; merge it into its base with peft "
                "(merge_and_unload)"
            )
        else:
            prefix = own_prefix
            module = sides.setdefault(INNER + inner.removeprefix(own_prefix), {})
            if side in module:
                raise ValueError(f"{file.path}: {one_line(name):.120} is a duplicate: remove it")
            module[side] = tensor
    if config.is_classifier and score is None:
        raise ValueError(
            f"{file.path}: the adapter of a classifier lacks {OUTER}{SCORE}.weight: save it with "
            'modules_to_save=["score"]'
        )
    if config.modules_to_save and not config.is_classifier:
        raise ValueError(
            f"{file.path.parent}: modules_to_save={list(config.modules_to_save)} needs "
            'task_type="SEQ_CLS"'
        )
    return prefix, sides, score


def _modules(
    file: SafetensorsFile,
    config: AdapterConfig,
    cfg: TransformerConfig,
    prefix: str,
    sides: dict[str, dict[str, SafetensorsTensor]],
) -> dict[str, Adapter]:
    """Returns the adapter of every module that has one. Raises ValueError as `open_adapters`."""
    of_base = f" (the adapter's base is {config.base})" if config.base else ""
    known, sizes = places(cfg), axis_sizes(cfg)
    in_base = lambda module: prefix + module.removeprefix(INNER)
    for module, tensors in sides.items():
        name = next(iter(tensors.values())).name
        if module not in known:
            raise ValueError(
                f"{file.path}: {one_line(name):.120} has no counterpart in {cfg.name}, which has "
                f"{cfg.num_layers} layers{of_base}: give the base that the adapter was trained on"
            )
        if not config.adapts(in_base(module)):
            raise ValueError(
                f"{file.path}: {one_line(name):.120} is not among the modules of "
                "adapter_config.json (target_modules, layers_to_transform): the files are of "
                "different adapters, download both again"
            )
    out = {}
    for module, (_, tensor) in known.items():
        if not config.adapts(in_base(module)):
            continue
        rank, (rows, columns) = config.rank(in_base(module)), disk_shape(tensor, sizes)
        pair: list[SafetensorsTensor] = []
        for side, shape in zip(SIDES, ((rank, columns), (rows, rank)), strict=True):
            stored = sides.get(module, {}).get(side)
            if stored is None:
                raise ValueError(
                    f"{file.path} lacks {OUTER}{in_base(module)}{side}, which adapter_config.json "
                    f"names and {cfg.name} has{of_base}: give the base that the adapter was "
                    "trained on"
                )
            if stored.shape != shape:
                raise ValueError(
                    f"{file.path}: {stored.name} is {stored.shape}, and {cfg.name} with rank "
                    f"{rank} needs {shape}{of_base}: give the base that the adapter was trained on"
                )
            pair.append(stored)
        out[module] = Adapter(pair[0], pair[1], config.scale(in_base(module)))
    if not out:
        raise ValueError(
            f"{file.path.parent}: no module of {cfg.name} matches target_modules="
            f"{config.target_modules!r:.80}: it has {', '.join(TARGETS)}"
        )
    return out


# ---------------------------------------------------------------- merging on load


def merge_into(reader: Reader, cfg: TransformerConfig, adapters: Adapters) -> TransformerConfig:
    """Replaces the adapted tensors of an open checkpoint by `MergedTensor`s.

    Returns the model's config, with a reward head if the adapter has one.
    """
    cfg = cfg.replace(scalar_head=cfg.scalar_head or adapters.score is not None)
    sizes, stored, ours = axis_sizes(cfg), tensor_map(cfg, reader.format), tensor_map(cfg, "hf")
    for param, source in ours.items():
        for hf, disk in zip(source.tensors, stored[param].tensors, strict=True):
            adapter = adapters.modules.get(hf.name.removesuffix(".weight"))
            base = reader.tensors.get(disk.name)
            if adapter is None or base is None:  # a missing tensor is an error of the loader
                continue
            if not isinstance(base, MergedTensor):
                base = reader.tensors[disk.name] = MergedTensor(base, sizes)
            base.deltas.append(Delta(adapter, hf.axes, disk.axes.replace(",", "")))
    if adapters.score is not None:
        reader.tensors[stored["score_D"].tensors[0].name] = adapters.score
    return cfg


class Delta(NamedTuple):
    """An adapter with its Hugging Face axes, such as "NH,D", and the axes of the tensor on disk."""

    adapter: Adapter
    axes: str
    letters: str

    def read(self, sizes: dict[str, int], index: Index) -> np.ndarray | None:
        """Returns float32 scale B A at an index of the tensor on disk.

        A digit among the letters selects one array of a tensor that holds several. Returns None if
        the index selects another array.
        """
        bounds: dict[str, slice] = {}
        for letter, at in zip(self.letters, index, strict=True):
            if not letter.isdigit():
                bounds[letter] = at
            elif at != int(letter):
                return None
        out_axes, in_axes = self.axes.split(",")
        a, b = (t.file.mapped(t) for t in self.adapter[:2])
        a = a.reshape(-1, *(sizes[x] for x in in_axes))[:, *(bounds[x] for x in in_axes)]
        b = b.reshape(*(sizes[x] for x in out_axes), -1)[*(bounds[x] for x in out_axes)]
        delta = np.tensordot(b.astype(np.float32) * self.adapter.scale, a.astype(np.float32), 1)
        kept = [x for x in self.letters if not x.isdigit()]
        return delta.transpose([(out_axes + in_axes).index(x) for x in kept])


class MergedTensor:
    """A tensor of a checkpoint that adds adapters to the ranges that are read."""

    def __init__(self, base: Any, sizes: dict[str, int]) -> None:
        self.base, self.sizes = base, sizes
        self.shape, self.dtype = base.shape, base.dtype
        self.deltas: list[Delta] = []

    def read_into(self, view: tuple[int, ...], index: Index, out: np.ndarray) -> None:
        merged = np.empty(out.shape, np.float32)
        self.base.read_into(view, index, merged)
        for delta in self.deltas:
            if (change := delta.read(self.sizes, index)) is not None:
                merged += change
        put(out, merged)
