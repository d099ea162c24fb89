"""The fields that `own_config` sets, and their values in the config.json of an earlier start."""

import logging
import operator
from collections.abc import Sequence
from typing import Any

from grm_jax import strict_json
from grm_jax.storage import as_path
from grm_jax.training import loop

log = logging.getLogger(__name__)

# Fields that only have to fit the devices: set anew on every start.
DEVICE_FIELDS = (
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "rft.micro_rows",
    "rl.micro_rows",
    "meta_rm.micro_rows",
)
# Set later, and kept like FIELDS.
LATE_FIELDS = ("rft.steps", "rft.warmup_steps", "rl.warmup_steps", "meta_rm.warmup_steps")
# Fields that results depend on: a resumed run takes them from WORKDIR/config.json.
FIELDS = (
    "model",
    "tokenizer",
    "template",
    "model_overrides.dtype",
    "model_overrides.remat",
    "seq_len",
    "batch_size",
    "rft.comparisons",
    "rft.lr",
    "rft.sampling.model",
    "rft.sampling.max_new_tokens",
    "rl.lr",
    "rl.steps",
    "rl.prompts",
    "rl.prompt_len",
    "rl.max_new_tokens",
    "rl.reference_dtype",
    "meta_rm.lr",
    "meta_rm.steps",
    "meta_rm.batch_size",
    "meta_rm.seq_len",
    "meta_rm.comparisons",
    "meta_rm.rft_trials",
    "eval.comparisons",
    "eval.max_new_tokens",
)
OPEN = frozenset((*DEVICE_FIELDS, *LATE_FIELDS, *FIELDS))
# Steps -> the fields that they are derived from, beside the number of comparisons.
_CRITIQUES = ("rft.comparisons", "rft.samples", "rft.hinted")
_DERIVED_FROM = {
    "rft.steps": ("rft.epochs", "batch_size"),
    "rl.steps": ("rl.epochs", "rl.prompts"),
    "meta_rm.rft_trials": _CRITIQUES,
    "meta_rm.steps": (
        *("meta_rm.epochs", "meta_rm.batch_size", "meta_rm.comparisons", "meta_rm.samples"),
        *_CRITIQUES[:2],
    ),
}
for _stage in ("rft", "rl", "meta_rm"):
    _DERIVED_FROM[f"{_stage}.warmup_steps"] = _DERIVED_FROM[f"{_stage}.steps"]


def set_open(config: Any, field: str, value: Any) -> None:
    """Sets a field that is open."""
    if not _value(config, field):
        _override(config, field, value)


def _override(config: Any, field: str, value: Any) -> None:
    section, _, name = field.rpartition(".")
    parent = operator.attrgetter(section)(config) if section else config
    with parent.ignore_type(), parent.unlocked():
        parent[name] = value


def take_saved(config: Any, workdir: Any) -> None:
    """Sets the open fields to the values of WORKDIR/config.json, if there is one.

    Steps stay open if a field that they are derived from has another value, and the stage has no
    checkpoint. A stage that has one keeps its steps and that field, with a warning.
    """
    path = None if workdir is None else as_path(workdir) / "config.json"
    if path is None or not path.exists():
        return
    saved = strict_json.read(path)
    if saved.get("init") != config.init:
        raise ValueError(
            f"config.init={config.init}: the run in {workdir} began from {saved.get('init')}; "
            "use another --workdir"
        )
    for field in (*FIELDS, *LATE_FIELDS):
        folder = as_path(workdir) / field.partition(".")[0]
        value, is_open = _value(saved, field), not _value(config, field)
        changed = _changed(config, saved, _DERIVED_FROM.get(field, ())) if is_open else {}
        if value is None or (changed and not _has_begun(folder)):
            continue
        for name, before in changed.items():
            log.warning(
                "config.%s=%s: the stage %s has begun with %s, and keeps it with %s=%s; remove %s "
                "and the folders of later stages to train with the new value",
                *(name, _value(config, name), folder.name, before, field, value),
                folder,
            )
            _override(config, name, before)
        set_open(config, field, value)


def _value(config: Any, field: str) -> Any:
    """Returns a field of a config, which may be a saved one; None without it."""
    for name in field.split("."):
        config = config.get(name) if hasattr(config, "get") else None
    return config


def _changed(config: Any, saved: Any, fields: Sequence[str]) -> dict[str, Any]:
    """Returns {field: saved value} of those fields that are set to another value."""
    values = {name: _value(config, name) for name in fields}
    chosen = [name for name, value in values.items() if value or name not in OPEN]
    before = {name: _value(saved, name) for name in chosen}
    return {name: was for name, was in before.items() if was not in (None, values[name])}


def _has_begun(folder: Any) -> bool:
    """Whether a stage is done or has a checkpoint to resume from."""
    checkpoints = folder / "checkpoints"
    steps = checkpoints.iterdir() if checkpoints.exists() else ()
    return loop.is_done(folder) or any(path.name.isdigit() for path in steps)
