"""Where an experiment's comparisons, general instructions, tokenizer and first parameters come from, by its `data` section.

data.judging = ("world",)                     the embedded judging world, endless
data.judging = ({"name": "helpsteer2", "layout": "helpsteer2", "files": ("train.jsonl.gz",), "rate": 1.0}, ...)
data.general = "world", or a tuple of JSONL files of chats (`data.sft.read_examples`)
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from grm_jax.data import batches, layouts, records, sft, world
from grm_jax.data.vocabulary import vocabulary_path
from grm_jax.judging.types import Comparison
from grm_jax.training.storage import fetched


@dataclasses.dataclass(frozen=True)
class Source:
    """Comparisons by place. `size`: how many there are before they repeat, None for endless. `identity` names the data."""

    at: Callable[[int], Comparison]
    size: int | None
    identity: str

    def take(self, start: int, count: int) -> list[Comparison]:
        return [self.at(place) for place in range(start, start + count)]


def world_config(data) -> world.WorldConfig:
    """The mixture of the judging world that `data.world` describes; JSON-like configs have text keys."""
    fields: dict = {
        name: {int(k): v for k, v in data.world[name].items()} for name in ("levels", "sizes") if name in data.world
    }
    return world.WorldConfig(**fields)


def judging(config, split: str = "train") -> Source:
    """The comparisons to train on, or those held out for the split "test" (another split of the world, or `data.held_out`).

    Raises ValueError for a source that holds no comparison, an unknown layout, or nothing held out.
    """
    data, seed = config.data, config.data.seed
    if tuple(data.judging) == ("world",):
        families = tuple(data.families) or None
        at = batches.from_world(split, seed, families=families, config=world_config(data))
        source = Source(at, None, f"world/{split}/{seed}")
    else:
        entries = data.judging if split == "train" else data.held_out
        if not entries:
            raise ValueError(
                f"data.held_out is empty: name sources for the split {split!r}, or leave the stage eval out"
            )
        lists = [_read(entry, data.max_skipped) for entry in entries]
        ats = [batches.from_list(comparisons, seed) for comparisons in lists]
        at = ats[0] if len(ats) == 1 else batches.from_mixture(ats, [entry["rate"] for entry in entries], seed)
        source = Source(at, sum(map(len, lists)), _identity(lists, seed))
    return _shuffled_labels(source, seed) if data.shuffle_labels and split == "train" else source


def _read(entry, max_skipped: float) -> list[Comparison]:
    account = records.Account(max_skipped)
    layout = layouts.get_layout(entry["layout"])
    found = list(records.read_comparisons(tuple(entry["files"]), layout, max_skipped, account))
    if not found:
        raise ValueError(
            f"source {entry['name']!r} holds no comparison: look at its files and layout ({entry['layout']})"
        )
    return found


def _identity(lists: Sequence[Sequence[Comparison]], seed: int) -> str:
    ids = json.dumps([[c.id for c in comparisons] for comparisons in lists])
    return f"{sum(map(len, lists))} comparisons/{hashlib.sha256(ids.encode()).hexdigest()[:12]}/{seed}"


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
            "train", 0, data.general_items, data.seed, tuple(data.families) or None, world_config(data)
        )
        return [sft.Example(tuple(one.messages[:-1]), one.answer, "general", one.id) for one in found]
    examples: list[sft.Example] = []
    for path in data.general:
        for example in sft.read_examples(path, data.max_skipped):
            examples.append(example)
            if len(examples) == data.general_items:
                return examples
    return examples


def tokenizer_path(config) -> Path:
    """The tokenizer's file or folder; "world" is the judging world's own."""
    return vocabulary_path() if config.tokenizer == "world" else fetched(config.tokenizer)


def load_tokenizer(config):
    from grm_jax.text import tokenizer

    return tokenizer.load(tokenizer_path(config))


def first_params(config, cfg, mesh):
    """Float32 parameters to begin with: `config.init`, a checkpoint's path, or random ones from the seed where it is empty."""
    from flax import nnx

    from grm_jax.training import state as states

    if not config.init:
        return states.init_params(cfg, mesh, config.seed)
    from grm_jax import checkpoints

    model = checkpoints.load(fetched(config.init), mesh=mesh, dtype=cfg.dtype, param_dtype="float32", cfg=cfg)
    return nnx.state(model)
