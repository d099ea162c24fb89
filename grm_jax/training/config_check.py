"""Checks every value of an experiment before anything runs, with the rules of `config_rules`."""

import operator
from collections.abc import Collection, Iterator
from typing import Any

from grm_jax.models.config import CONFIGS
from grm_jax.registry import nearest
from grm_jax.sharding import batch_shards
from grm_jax.text import rendering
from grm_jax.training import (
    grpo,
    meta_rm,
    optim,
    own_fields,
    policy,
    reward_sources,
    rft,
    rft_samplers,
    sources,
)
from grm_jax.training.config_rules import OPTIONAL, SECTIONS, STAGES, Rule
from grm_jax.training.programs import model_config

# Fields that training needs and a compilation does not.
_OF_TRAINING = {
    "seed", "export", "tokenizer", "init", "rft.comparisons", "rft.samples", "rft.hinted",
    "rft.reject", "rft.sampler",
}  # fmt: skip
_SHOWN = 8  # faults in an error
_OF_LOOP = ("save_every", "keep", "log_every", "profile_steps")
# stage -> its batch, as a dotted field: every one is split over the mesh's data and fsdp axes.
_BATCHES = {
    "rft": "batch_size",
    "rl": "rl.prompts",
    "meta_rm": "meta_rm.batch_size",
    "sft": "batch_size",
    "policy": "policy.prompts",
}
# Sections whose fields are all known, so that another name is a mistake.
_CLOSED = (
    "mesh", "lora", "model_overrides", "data.world", "rft", "rft.sampling", "rl", "meta_rm", "eval",
    "sft", "policy", "policy.judge",
)  # fmt: skip


def check(config: Any, complete: bool = False) -> None:
    """Checks every value of an experiment, and that the values fit each other.

    Fields that `own_config.complete` sets may be open (0 or ""). Only the template is read.

    complete: every field that a stage of the run needs is required.

    Raises:
      ValueError: up to eight faults in one line, each beginning with "config.FIELD=VALUE"; or one
        fault that concerns several fields.
      FileNotFoundError: the template is neither a shipped one nor a file.
    """
    if not hasattr(config, "items"):
        raise ValueError(f"the config is {type(config).__name__}: use a ConfigDict")
    if faults := list(_faults(config, complete)):
        more = len(faults) - _SHOWN
        raise ValueError("; ".join([*faults[:_SHOWN], *[f"and {more} more"] * (more > 0)]))
    _check_model(config)
    checks = {
        "rft": rft.check,
        "rl": grpo.check,
        "meta_rm": meta_rm.check,
        "sft": policy.check_sft,
        "policy": policy.check,
    }
    for stage in config.stages:
        if stage in checks and (config[stage].steps or not _is_own_data(config)):
            checks[stage](config)
    if complete and "eval" in config.stages:
        sources.check_split(config, config.eval.split)
    if complete and "policy" in config.stages:
        reward_sources.check(reward_sources.JudgeSettings.of(config.policy.judge), complete)
    sampling = _section(config, "rft.sampling")
    if "rft" in config.stages and sampling is not None and sampling.get("max_new_tokens", 1):
        rft_samplers.chosen_settings(config.rft.sampler, sampling)
    if _section(config, "data.world") is not None:
        sources.world_config(config.data)  # raises for an unknown level
    if config.get("template"):
        rendering.load(config.template)


def check_batches(config: Any, mesh: Any) -> None:
    """Raises ValueError unless the batches of the run's stages divide over the mesh and in time."""
    for stage, field, size in check_shards(config, batch_shards(mesh)):
        try:
            count = optim.micro_batch_count(config[stage], size, mesh)
        except ValueError as error:
            raise ValueError(f"config.{stage}.{error}") from error
        if size % count:
            raise ValueError(
                f"config.{stage}.micro_batches={count} does not divide config.{field}={size}: "
                "use a divisor"
            )


def check_shards(config: Any, shards: int) -> list[tuple[str, str, int]]:
    """Returns (stage, field, sequences) of each batch of the run.

    Raises ValueError for a batch that does not divide over `shards`.
    """
    batches = []
    for stage in filter(_BATCHES.get, config.stages):
        field = _BATCHES[stage]
        size = operator.attrgetter(field)(config)
        if size % shards:
            raise ValueError(
                f"config.{field}={size} does not divide over mesh data x fsdp = {shards}: "
                f"use a multiple of {shards}, or a larger config.mesh.tensor"
            )
        batches.append((stage, field, size))
    return batches


def _faults(config: Any, complete: bool) -> Iterator[str]:
    """Yields the faults of single fields."""
    stages = config.get("stages", ())
    stages = [one for one in stages if one in STAGES] if isinstance(stages, tuple | list) else ()
    for section, rules in SECTIONS.items():
        values = _section(config, section)
        prefix = f"{section}." if section else ""
        if values is None:
            needed = ("mesh", *stages, *["policy.judge"] * ("policy" in stages))
            if section in needed or (complete and section == "data"):
                yield f"config.{section} is missing, or is not a section"
            continue
        for name, rule in rules.items():
            field = prefix + name
            if name not in values:
                if _is_required(section, field, stages, complete):
                    yield f"config.{field} is missing"
            elif not _is_open(config, field, values[name]):
                yield from _fault(rule, field, values[name])
        if section in _CLOSED:
            for name in sorted(set(values) - set(rules)):
                if f"{prefix}{name}" not in SECTIONS:
                    yield f"config.{prefix}{name} does not exist: {nearest(name, rules)}"
    if (mesh := _section(config, "mesh")) is not None:
        if list(mesh.values()).count(-1) > 1:
            yield f"config.mesh={dict(mesh)}: one axis at most is -1"
        for axis, size in mesh.items():
            if size == 0 and not _is_open(config, f"mesh.{axis}", size):
                yield f"config.mesh.{axis}=0: use -1, or 1 or more"


def _fault(rule: Rule, field: str, value: Any) -> Iterator[str]:
    try:
        rule(f"config.{field}=", value)
    except ValueError as error:
        yield " ".join(str(error).split())


def _section(config: Any, name: str) -> Any:
    """Returns a section, None if there is none."""
    values = config
    for key in filter(None, name.split(".")):
        values = values.get(key) if hasattr(values, "items") else None
    return values if hasattr(values, "items") else None


def _is_required(section: str, field: str, stages: Collection[str], complete: bool) -> bool:
    """Whether every run, or a stage of this run, reads the field."""
    if field in OPTIONAL or section in (
        "model_overrides", "mesh", "rft.sampling", "data.world", "policy.judge",
    ):  # fmt: skip
        return False
    if not complete and (field in _OF_TRAINING or field.endswith(_OF_LOOP) or section == "data"):
        return False
    return section not in STAGES or section in stages


def _is_own_data(config: Any) -> bool:
    """Whether the run trains on `config.data.file`, so that open fields are set later."""
    data = _section(config, "data")
    return data is not None and data.get("judging") == sources.FILE


def _is_open(config: Any, field: str, value: Any) -> bool:
    """Whether `own_config.complete` or the first stage sets the field."""
    return (
        _is_own_data(config)
        and type(value) in (int, float, str)
        and not value
        and field in own_fields.OPEN
    )


def _check_model(config: Any) -> None:
    """Checks the model, and that prompts and critiques fit its context."""
    if not config.model and _is_own_data(config):
        return
    CONFIGS[config.model]  # raises for an unknown one
    cfg = model_config(config)
    lengths = {}
    for name in {"rl", "policy"} & set(config.stages):
        section = config[name]
        field = f"{name}.prompt_len + config.{name}.max_new_tokens"
        lengths[field] = section.prompt_len + section.max_new_tokens
    if "eval" in config.stages:
        lengths["eval.max_new_tokens"] = config.eval.max_new_tokens + 1
    for field, length in lengths.items():
        if length > cfg.max_length:
            raise ValueError(
                f"config.{field} takes {length:,} tokens; the context of {cfg.name} is "
                f"{cfg.max_length:,}: lower it"
            )
