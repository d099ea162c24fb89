"""Where an experiment's comparisons, general instructions, tokenizer and first parameters come from, by its `data` section.

data.judging = ("world",)                     the embedded judging world, endless
data.judging = ({"name": "helpsteer2", "layout": "helpsteer2", "files": ("train.jsonl.gz",), "rate": 1.0}, ...)
data.general = "world", or a tuple of JSONL files of chats (`data.sft.read_examples`)
"""

import dataclasses
import hashlib
import json
import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from grm_jax.data import batches, records, sft, world
from grm_jax.data.comparisons import read_comparisons
from grm_jax.data.layouts import LAYOUTS
from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.storage import as_path, fetch
from grm_jax.training import rft_samplers
from grm_jax.types import Comparison

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Comparisons by place. `size`: how many there are before they repeat, None for endless. `identity` names the data."""

    at: Callable[[int], Comparison]
    size: int | None
    identity: str

    def take(self, start: int, count: int) -> list[Comparison]:
        return [self.at(place) for place in range(start, start + count)]


def paths(config, stages: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """(field, path) of all files and folders that the stages (None: those of the config) read, as they stand in the config."""
    stages = config.stages if stages is None else stages
    for field in ("init", "tokenizer"):
        if config.get(field) and (field, config[field]) != ("tokenizer", "world"):
            yield f"config.{field}", config[field]
    data = config.get("data")
    if data is None:
        return
    if tuple(data.judging) != ("world",):
        used = {"judging": {"rft", "rl", "meta_rm"}, "held_out": {"eval"}}
        for field in [name for name, of in used.items() if of & set(stages)]:
            for entry in data.get(field, ()):
                yield from (
                    (f"config.data.{field} ({entry['name']})", path)
                    for path in _several(entry["files"])
                )
    if "rft" in stages:
        if data.general_items and data.general != "world":
            yield from (("config.data.general", path) for path in _several(data.general))
        if config.rft.sampler in ("file", "model") and "path" in config.rft.sampling:
            yield "config.rft.sampling.path", config.rft.sampling["path"]
    if "rl" in stages and config.rl.get("easy_trials"):
        yield "config.rl.easy_trials", config.rl.easy_trials


def check(config, stages: Collection[str] | None = None) -> None:
    """Looks for everything that `stages` (None: those of the config) will read, before hours are spent on what comes first.

    Raises FileNotFoundError for a file or folder that is not there, ValueError for a field that is empty or a layout that does not exist,
    all with the field's name.
    """
    stages = config.stages if stages is None else stages
    tokenizer_path(config)
    if tuple(config.data.judging) != ("world",):
        if "eval" in stages:
            _held_out(config, "test")
        for entry in (*config.data.judging, *config.data.get("held_out", ())):
            LAYOUTS[entry["layout"]]
    if "rft" in stages:
        rft_samplers.chosen_settings(config.rft.sampler, config.rft.sampling)
    for field, path in paths(config, stages):
        if not as_path(path).exists():
            raise FileNotFoundError(
                f"{field} names {path}, which does not exist, or may not be read from here: mend the path"
            )


def _several(files) -> tuple[str, ...]:
    return (files,) if isinstance(files, str) else tuple(files)


def _held_out(config, split: str):
    if not config.data.get("held_out", ()):
        raise ValueError(
            f"data.held_out is empty: name sources for the split {split!r}, or leave the stage eval out"
        )
    return config.data.held_out


def world_config(data) -> world.WorldConfig:
    """The mixture of the judging world that `data.world` describes; JSON-like configs have text keys."""
    fields: dict = {
        name: {int(k): v for k, v in data.world[name].items()}
        for name in ("levels", "sizes")
        if name in data.world
    }
    return world.WorldConfig(**fields)


def judging(config, split: str = "train", without: Collection[str] = ()) -> Source:
    """The comparisons to train on, or those held out for the split "test" (another split of the world, or `data.held_out`).

    without: ids that are left out; of the world, which is endless, none can be.
    Raises ValueError for a source that holds no comparison, or none but those left out, an unknown layout, or nothing held out.
    """
    data, seed = config.data, config.data.seed
    if tuple(data.judging) == ("world",):
        if without:
            raise ValueError(
                f"{len(without)} comparisons are to be left out of the judging world, which is endless: name sources"
            )
        families = tuple(data.families) or None
        at = batches.from_world(split, seed, families=families, config=world_config(data))
        of = json.dumps([families, data.world.to_dict()], sort_keys=True)
        source = Source(
            at, None, f"world/{split}/{seed}/{hashlib.sha256(of.encode()).hexdigest()[:12]}"
        )
    else:
        entries = data.judging if split == "train" else _held_out(config, split)
        lists = [_read(entry, data.max_skipped) for entry in entries]
        rates = [entry["rate"] for entry in entries]
        if without:
            lists = [
                _left(entry["name"], comparisons, without)
                for entry, comparisons in zip(entries, lists)
            ]
        if split != "train":  # Each once: rates are for what goes on for ever.
            lists, rates = [[comparison for found in lists for comparison in found]], [1.0]
        ats = [batches.from_list(comparisons, seed) for comparisons in lists]
        at = ats[0] if len(ats) == 1 else batches.from_mixture(ats, rates, seed)
        source = Source(at, sum(map(len, lists)), _identity(lists, rates, seed))
    return _shuffled_labels(source, seed) if data.shuffle_labels and split == "train" else source


def _read(entry, max_skipped: float) -> list[Comparison]:
    account = records.Account(max_skipped, entry["name"])
    files = [fetch(path) for path in _several(entry["files"])]
    found = list(read_comparisons(files, entry["layout"], max_skipped, account))
    log.info(
        "source %s: %d comparisons of %s", entry["name"], len(found), json.dumps(account.summary())
    )
    if not found:
        raise ValueError(
            f"source {entry['name']!r} holds no comparison: look at its files and layout ({entry['layout']})"
        )
    return found


def _left(
    name: str, comparisons: Sequence[Comparison], without: Collection[str]
) -> list[Comparison]:
    found = [c for c in comparisons if str(c.id) not in without]
    log.info(
        "source %s: %d of %d comparisons are left out",
        name,
        len(comparisons) - len(found),
        len(comparisons),
    )
    if not found:
        raise ValueError(
            f"source {name!r} has no comparison but those that are left out: take it out of config.data.judging"
        )
    return found


def _identity(lists: Sequence[Sequence[Comparison]], rates: Sequence[float], seed: int) -> str:
    """Of what decides which comparison stands at a place, its texts and labels with it."""
    digest = hashlib.sha256(json.dumps(list(rates)).encode())
    for comparisons in lists:
        for c in comparisons:
            digest.update(json.dumps([c.id, c.turns, c.responses, c.label]).encode())
    return f"{sum(map(len, lists))} comparisons/{digest.hexdigest()[:12]}/{seed}"


def _shuffled_labels(source: Source, seed: int) -> Source:
    """The control: each label drawn anew. What learns from it must end at chance on true labels."""

    def at(place: int) -> Comparison:
        comparison = source.at(place)
        rng = random.Random(f"labels/{seed}/{place}")
        label = (float(rng.random() < 0.5),) if comparison.n == 1 else rng.randrange(comparison.n)
        meta = dict(comparison.meta)
        if "world" in meta:
            meta["world"] = world.believing(meta["world"], label, rng)
        return dataclasses.replace(comparison, label=label, meta=meta)

    return Source(at, source.size, source.identity + "/shuffled labels")


def general(config) -> list[sft.Example]:
    """General instructions to mix into RFT: `data.general_items` of them (0: none)."""
    data = config.data
    if not data.general_items:
        return []
    if data.general == "world":
        found = world.general_items(
            "train",
            0,
            data.general_items,
            data.seed,
            tuple(data.families) or None,
            world_config(data),
        )
        return [
            sft.Example(tuple(one.messages[:-1]), one.answer, "general", one.id) for one in found
        ]
    examples: list[sft.Example] = []
    for path in _several(data.general):
        for example in sft.read_examples(
            fetch(path), data.max_skipped, records.Account(source="data.general")
        ):
            examples.append(example)
            if len(examples) == data.general_items:
                return examples
    log.warning(
        "data.general holds %d examples, fewer than the data.general_items=%d",
        len(examples),
        data.general_items,
    )
    return examples


def tokenizer_path(config) -> Path:
    """The tokenizer's file or folder; "world" is the judging world's own. Raises ValueError where the config names none."""
    if not config.tokenizer:
        raise ValueError(
            "config.tokenizer is empty: name the model's tokenizer, its file or the folder that holds it"
        )
    return vocabulary_path() if config.tokenizer == "world" else fetch(config.tokenizer)


def load_tokenizer(config):
    from grm_jax.text import tokenizer

    return tokenizer.load(tokenizer_path(config))


def first_params(config, cfg, mesh):
    """Float32 parameters to begin with: `config.init`, a checkpoint's path, or random ones from the seed where it is empty."""
    from flax import nnx

    from grm_jax.training import state as states

    if not config.init:
        if not config.model.startswith("tiny"):
            log.warning("config.init is empty: %s begins with random weights", config.model)
        return states.init_params(cfg, mesh, config.seed)
    from grm_jax import checkpoints

    model = checkpoints.load(
        fetch(config.init), mesh=mesh, dtype=cfg.dtype, param_dtype="float32", cfg=cfg
    )
    return nnx.state(model)
