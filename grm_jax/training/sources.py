"""An experiment's comparisons, general instructions, tokenizer and first parameters.

config.data.judging   "world": the judging world, endless; "file": `config.data.file`, without the
                      comparisons that are held out; or a seqio mixture or task
config.data.held_out  a mixture or task, evaluated on its split `eval.split` (of "world": its own)
config.data.general   "world", or a mixture or task of general instructions
config.data.module    module that registers the tasks (see `data.mixtures`)
config.data.folder    folder of the tasks' files

A mixture is read through seqio once, into an indexed file in WORKDIR/data. From there every place
is found at once, so a run resumes exactly on any number of hosts. "world" and "file" need no
TensorFlow.
"""

import collections
import dataclasses
import hashlib
import importlib
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.data import batches, indexed, sft, world
from grm_jax.data.comparisons import from_json
from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.storage import as_path, fetch
from grm_jax.training import inputs, overlap, own_file, rft_samplers, shuffled_labels
from grm_jax.training.errors import TrainingError
from grm_jax.types import Comparison

log = logging.getLogger(__name__)

WORLD, FILE = "world", "file"
_READ_BY = {
    "judging": {"rft", "rl", "meta_rm", "policy"}, "held_out": {"eval"}, "general": {"rft", "sft"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """Comparisons by place.

    size: how many there are before they repeat, None for endless.  identity: of texts and labels.
    """

    at: Callable[[int], Comparison]
    size: int | None
    identity: str

    def at_most(self, count: int, stage: str) -> int:
        """Returns `count` of `config.STAGE.comparisons`, lowered with a warning to the size."""
        if self.size is not None and self.size < count:
            sizes = self.size, stage, count
            log.warning("the sources hold %d comparisons, fewer than %s.comparisons=%d", *sizes)
            return self.size
        return count

    def take(self, start: int, count: int) -> list[Comparison]:
        """Returns the comparisons of places start ... start + count - 1."""
        return [self.at(place) for place in range(start, start + count)]


@dataclasses.dataclass(frozen=True)
class _View(Sequence[Comparison]):
    """Some lines of an index, as comparisons."""

    file: indexed.Index
    lines: Sequence[int] | np.ndarray
    ids: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of lines, for another id

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: Any) -> Any:
        line = int(self.lines[i])
        fields = self.file[line]
        return from_json(fields | {"id": self.ids[line]} if line in self.ids else fields)


# ---------------------------------------------------------------- checks before a run


def paths(config: Any, stages: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yields (field, path) of all files and folders that the stages read.

    stages: None for the config's stages.
    """
    stages = config.stages if stages is None else stages
    for field in ("init", "tokenizer"):
        if config.get(field) and (field, config[field]) != ("tokenizer", WORLD):
            yield f"config.{field}", config[field]
    if config.get("data") is None:
        return
    for field in own_file.FIELDS:
        if own_file.is_path(path := config.data.get(field, "")):
            yield f"config.data.{field}", path
    for field in _fields(config, stages):
        mixtures, split = _mixtures(config), _split(config, field)
        for task in _tasks(config, field):
            for path in mixtures.paths(task, split):
                yield f"config.data.{field} ({task})", path
    if "rft" in stages and config.rft.sampler in ("file", "model"):
        if "path" in config.rft.sampling:
            yield "config.rft.sampling.path", config.rft.sampling["path"]
    if "policy" in stages:
        from grm_jax.training.judge_settings import JudgeSettings

        models = JudgeSettings.of(config.policy.judge).models()
        yield from ((f"config.policy.judge.{name}", path) for name, path in models.items())
    for stage in [stage for stage in ("rl", "policy") if stage in stages]:
        if path := config[stage].get("easy_trials"):
            yield f"config.{stage}.easy_trials", path


def check(config: Any, stages: Collection[str] | None = None) -> None:
    """Checks that all inputs of `stages` (None: the config's stages) exist.

    Raises MissingInputs for files, folders and hub names that are missing or not accessible, all in
    one message, ValueError for an empty field or an unknown mixture, task or split; all name the
    field.
    """
    stages = config.stages if stages is None else stages
    tokenizer_path(config)
    if "rft" in stages:
        rft_samplers.chosen_settings(config.rft.sampler, config.rft.sampling)
    inputs.check(paths(config, stages))


def _fields(config: Any, stages: Collection[str]) -> Iterator[str]:
    """The fields of `config.data` that these stages read through seqio."""
    for field, readers in _READ_BY.items():
        if not readers & set(stages) or (field == "general" and not _has_general(config)):
            continue
        if _name(config, "judging" if field == "held_out" else field) not in (WORLD, FILE):
            yield field


def _has_general(config: Any) -> bool:
    return bool(config.data.general_items and config.data.get("general"))


def _name(config: Any, field: str) -> str:
    name = config.data.get(field, "")
    name = name[0] if isinstance(name, (tuple, list)) and len(name) == 1 else name
    if not name:
        remedy = ", or remove eval from config.stages" if field == "held_out" else ""
        raise ValueError(f"config.data.{field} is empty: name a seqio mixture or task{remedy}")
    if not isinstance(name, str):
        raise ValueError(
            f"config.data.{field} is {name!r:.80}: give the name of a seqio mixture or task; "
            "files are registered in config.data.module"
        )
    return name


def _split(config: Any, field: str) -> str:
    return config.eval.split if field == "held_out" else "train"


def _mixtures(config: Any) -> Any:
    """`data.mixtures`, with the tasks of `config.data.module` and the settings of this config."""
    from grm_jax.data import mixtures

    mixtures.SETTINGS.folder = config.data.folder
    mixtures.SETTINGS.max_skipped = config.data.max_skipped
    try:
        importlib.import_module(config.data.module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"config.data.module={config.data.module} is not importable: {error}. Add its folder "
            "to PYTHONPATH"
        ) from error
    return mixtures


def _tasks(config: Any, field: str) -> dict[str, float]:
    """The tasks of a field with their rates. Raises ValueError, with the field's name."""
    mixtures, split = _mixtures(config), _split(config, field)
    try:
        tasks = mixtures.tasks(_name(config, field))
    except ValueError as error:
        raise ValueError(f"config.data.{field}: {error}") from error
    for task in tasks:
        if split not in mixtures.splits(task):
            raise ValueError(
                f"config.data.{field}: task {task!r} has no split {split!r}, but "
                f"{', '.join(mixtures.splits(task))}"
            )
    return tasks


# ---------------------------------------------------------------- comparisons


def judging(
    config: Any, split: str | None = None, without: Collection[str] = (), workdir: Any = None
) -> Source:
    """Returns the comparisons to train on, or with `split` those held out.

    Args:
      split: None, or `config.eval.split` for the held-out comparisons.
      without: ids to drop. The judging world is endless and cannot drop any.
      workdir: of the run, shared by its processes; None indexes into a temporary folder.

    Raises:
      ValueError: no comparisons, none but those dropped, an unknown mixture, nothing held out.
    """
    data, seed, name = config.data, config.data.seed, _name(config, "judging")
    check_split(config, split)
    if name == WORLD:
        if without:
            raise TrainingError(
                f"{len(without)} comparisons cannot be dropped from the judging world, which is "
                "endless: name a task"
            )
        source = _world_source(config, "train" if split is None else split)
    else:
        read = _file_views if name == FILE else _mixture_views
        views, rates = read(config, split, without, workdir)
        at = batches.from_mixture([batches.from_list(view, seed) for view in views], rates, seed)
        source = Source(at, sum(map(len, views)), _identity(views, rates, seed))
    if not data.shuffle_labels or split is not None:
        return source
    at = shuffled_labels.shuffle(source.at, seed)
    return Source(at, source.size, source.identity + "/shuffled labels")


def check_split(config: Any, split: str | None) -> None:
    """Raises ValueError for the split "train" of the judging world or a file: it is trained on."""
    if split == "train" and (name := _name(config, "judging")) in (WORLD, FILE):
        raise ValueError(
            f"config.eval.split='train': config.data.judging={name!r} trains on it; use 'test'"
        )


def _file_views(
    config: Any, split: str | None, without: Collection[str], workdir: Any
) -> tuple[list[_View], list[float]]:
    index = own_file.index(config, workdir)
    side = own_file.TRAIN if split is None else own_file.HELD_OUT
    view = _View(index, index.sections[side])
    return [_dropped(config.data.file, view, without) if without else view], [1.0]


def _mixture_views(
    config: Any, split: str | None, without: Collection[str], workdir: Any
) -> tuple[list[_View], list[float]]:
    field = "judging" if split is None else "held_out"
    tasks, index = _tasks(config, field), _index(config, field, workdir)
    if split is not None:  # each once: rates are for endless streams
        return [_View(index, range(len(index)))], [1.0]
    views = _with_unique_ids(tasks, index)
    views = _without_held_out(config, list(tasks), views, workdir)
    if without:
        views = [_dropped(task, view, without) for task, view in zip(tasks, views)]
    return views, list(tasks.values())


def _with_unique_ids(tasks: Iterable[str], index: indexed.Index) -> list[_View]:
    """Returns a view of each task. An id that occurs again is TASK/ID, or TASK/ID/LINE."""
    sections = dict(zip(tasks, index.sections.values(), strict=True))
    own = {line: str(index[line]["id"]) for lines in sections.values() for line in lines}
    new: dict[int, str] = {}
    for name in ("{task}/{id}", "{task}/{id}/{line}"):
        counts = collections.Counter((own | new).values())
        for task, lines in sections.items():
            again = [line for line in lines if counts[new.get(line, own[line])] > 1]
            new |= {line: name.format(task=task, id=own[line], line=line) for line in again}
    return [_View(index, lines, new) for lines in sections.values()]


def _world_source(config: Any, split: str) -> Source:
    data, families = config.data, tuple(config.data.families) or None
    at = batches.from_world(split, data.seed, families, world_config(data))
    digest = _digest(json.dumps([families, data.world.to_dict()], sort_keys=True))
    return Source(at, None, f"world/{split}/{data.seed}/{digest}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def world_config(data: Any) -> world.WorldConfig:
    """Returns the world's mixture of `config.data.world`, whose keys are texts as in JSON."""
    fields: dict[str, Any] = {
        name: {int(k): v for k, v in value.items()} if hasattr(value, "items") else value
        for name, value in data.world.items()
    }
    return world.WorldConfig(**fields)


def _index(config: Any, field: str, workdir: Any) -> indexed.Index:
    """The indexed file of a field's mixture. Process 0 writes it, the others wait for it."""
    mixtures, tasks, split = _mixtures(config), _tasks(config, field), _split(config, field)
    kind = mixtures.EXAMPLE if field == "general" else mixtures.COMPARISON
    identity = [[mixtures.identity(task, split), rate] for task, rate in tasks.items()]
    digest = _digest(json.dumps([identity, config.data.seed]))
    alone = workdir is None
    root = tempfile.mkdtemp(prefix="grm_jax-") if alone else as_path(workdir) / "data"
    folder = as_path(root) / f"{_name(config, field)}-{split}-{digest}"

    def write() -> None:
        indexed.write_index(folder, ((task, mixtures.read(task, split, kind)) for task in tasks))

    return indexed.open_or_write(folder, write, alone)


def _dropped(name: str, view: _View, without: Collection[str]) -> _View:
    # Also by the id of the file, which trials of this task alone have.
    ids = lambda line: {str(view.file[line]["id"]), view.ids.get(line)}
    kept = [line for line in map(int, view.lines) if ids(line).isdisjoint(without)]
    log.info("source %s: %d of %d comparisons dropped", name, len(view) - len(kept), len(view))
    if not kept:
        raise TrainingError(
            f"source {name!r} has no comparisons but those dropped: take it out of the mixture"
        )
    return dataclasses.replace(view, lines=np.array(kept))


def _without_held_out(
    config: Any, tasks: Sequence[str], views: Sequence[_View], workdir: Any
) -> list[_View]:
    """Drops the training comparisons whose query is held out, and writes their number.

    Without the stage eval, the held-out comparisons are read only if all their files are here.
    """
    held_out = config.data.get("held_out")
    if not held_out or ("eval" not in config.stages and not _is_local(config, "held_out")):
        return list(views)
    others = _index(config, "held_out", workdir)
    folder = None if workdir is None else as_path(workdir) / "data"
    kept = overlap.drop(dict(zip(tasks, views)), others, f"config.data.held_out={held_out}", folder)
    return [dataclasses.replace(view, lines=lines) for view, lines in zip(views, kept)]


def _is_local(config: Any, field: str) -> bool:
    """Whether all files of a field's tasks are on this machine's disk."""
    try:
        split = _split(config, field)
        files = [p for task in _tasks(config, field) for p in _mixtures(config).paths(task, split)]
    except ValueError:
        return False
    return bool(files) and all(Path(path).is_file() for path in files)


def _identity(lists: Sequence[Sequence[Comparison]], rates: Sequence[float], seed: int) -> str:
    """A digest of the texts and labels at each index; references and `meta` are not compared."""
    digest = hashlib.sha256(json.dumps(list(rates)).encode())
    for c in itertools.chain(*lists):
        digest.update(json.dumps([c.id, c.turns, c.responses, c.label]).encode())
    return f"{sum(map(len, lists))} comparisons/{digest.hexdigest()[:12]}/{seed}"


# ---------------------------------------------------------------- general instructions


def general(config: Any, workdir: Any = None) -> list[sft.Example]:
    """Returns the general instructions to mix into RFT, `data.general_items` of them.

    None for 0 items, or if `data.general` names no task.
    """
    data = config.data
    if not _has_general(config):
        return []
    if _name(config, "general") == WORLD:
        options = data.seed, tuple(data.families) or None, world_config(data)
        items = world.general_items("train", 0, data.general_items, *options)
        return list(map(sft.from_instruction, items))
    index, rates = _index(config, "general", workdir), list(_tasks(config, "general").values())
    count = min(data.general_items, len(index))
    if count < data.general_items:
        counts = count, data.general_items
        log.warning("data.general has %d examples, fewer than data.general_items=%d", *counts)
    places = [batches.from_list(lines, data.seed) for lines in index.sections.values()]
    at = batches.from_mixture(places, rates, data.seed)
    examples = (index[at(place)] for place in range(count))
    return [sft.Example(**{**one, "messages": tuple(one["messages"])}) for one in examples]


# ---------------------------------------------------------------- tokenizer and first parameters


def tokenizer_path(config: Any) -> Path:
    """Returns the tokenizer's file or folder; "world" is the judging world's own.

    Raises ValueError where the config names none.
    """
    if not config.tokenizer:
        raise ValueError(
            "config.tokenizer is empty: give the model's tokenizer file, or the folder that has it"
        )
    if config.tokenizer == WORLD:
        return vocabulary_path()
    return fetch(config.tokenizer, weights=False)


def load_tokenizer(config: Any) -> Any:
    """Returns the tokenizer of the config; that of a GGUF file is inside it."""
    from grm_jax.judging import loading
    from grm_jax.text import tokenizer

    path = tokenizer_path(config)
    if path.is_dir() or path.suffix == ".gguf":
        return loading.load_tokenizer(path)
    return tokenizer.load(path)


def first_params(config: Any, cfg: Any, mesh: Any) -> Any:
    """Returns the float32 parameters that training starts from.

    The checkpoint `config.init`, or random ones if it is empty; with LoRA, new adapters.
    """
    from grm_jax.training.programs import lora_config

    if lora_config(config) is not None:
        from grm_jax.models import init_adapters

        return init_adapters(cfg, mesh, config.seed)
    return _model_params(config, cfg, mesh, "float32")


def frozen_params(config: Any, mesh: Any) -> Any:
    """Returns the parameters that LoRA does not train, in the base's dtype; else an empty tree."""
    from flax import nnx

    from grm_jax.models import lora
    from grm_jax.training.programs import model_config

    cfg = model_config(config)
    if cfg.lora is None:
        return nnx.State({})
    return lora.frozen(_model_params(config, cfg, mesh, cfg.param_dtype))


def _model_params(config: Any, cfg: Any, mesh: Any, dtype: str) -> Any:
    """Returns all parameters of the checkpoint `config.init`, or random ones if it is empty."""
    from flax import nnx

    from grm_jax.training import state as states

    if not config.init:
        if not config.model.startswith("tiny"):
            log.warning("config.init is empty: %s starts from random weights", config.model)
        return states.init_params(cfg, mesh, config.seed)
    from grm_jax import checkpoints

    model = checkpoints.load(
        fetch(config.init), mesh=mesh, dtype=cfg.dtype, param_dtype=dtype, cfg=cfg
    )
    return nnx.state(model)
