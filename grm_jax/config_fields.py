"""Sets fields of an experiment's ConfigDict from text: `set_field(config, "rl.beta", "0.02")`.

A value keeps the type of the field: "0.02" for a float, "rft,rl" for a tuple.
"""

import ast
import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_TYPE_NAMES = {int: "a whole number", float: "a number"}


def set_field(config: Any, field: str, text: str) -> None:
    """Sets one dotted field to the value in `text`.

    The fields of `config_rules.OPTIONAL`, of a model's configuration, of every sampler and of a
    policy's judge are known, even where the experiment does not list them.

    Raises ValueError for an unknown field (with the nearest ones) or a value of another type.
    """
    parent, _, name = field.rpartition(".")
    section = config
    for key in filter(None, parent.split(".")):
        if key not in section or not hasattr(section[key], "items"):
            raise _unknown(config, field)
        section = section[key]
    known = section if name in section else _implicit_fields(parent)
    if name not in known:
        raise _unknown(config, field)
    if hasattr(known[name], "items"):
        fields = ", ".join(f"config.{field}.{key}" for key in known[name])
        raise ValueError(f"config.{field} is a section: set one of {fields}")
    value = _parse(field, text, known[name])
    if hasattr(section, "ignore_type"):
        with section.ignore_type(), section.unlocked():
            section[name] = value
    else:
        section[name] = value


def field_names(config: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all fields and sections."""
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from field_names(value, f"{prefix}{name}.")


def _implicit_fields(section: str) -> dict[str, Any]:
    """Fields of a section that an experiment need not list, with their defaults."""
    from grm_jax.training.config_rules import OPTIONAL

    fields = {}
    for field, default in OPTIONAL.items():
        parent, _, name = field.rpartition(".")
        if parent == section:
            fields[name] = default
    if section == "model_overrides":
        from grm_jax.models.config import CONFIGS

        fields |= dataclasses.asdict(next(iter(CONFIGS.values())))
    if section == "rft.sampling":
        from grm_jax.training import rft_samplers

        for name in rft_samplers.SAMPLERS:
            fields |= rft_samplers.settings_of(name)
    if section == "policy.judge":
        from grm_jax.training.reward_sources import JudgeSettings

        fields |= dataclasses.asdict(JudgeSettings())
    return fields


def _unknown(config: Any, field: str) -> ValueError:
    from grm_jax.training.config_rules import OPTIONAL

    known = list(field_names(config))
    known += [f"model_overrides.{name}" for name in _implicit_fields("model_overrides")]
    known += [field for field in OPTIONAL if field.rpartition(".")[0] in ("", *known)]
    name = field.rpartition(".")[2]
    near = difflib.get_close_matches(field, known, n=2, cutoff=0.7)
    for other in known:
        ratio = difflib.SequenceMatcher(None, name, other.rpartition(".")[2]).ratio()
        if ratio > 0.75 and other not in near:
            near.append(other)
    if near:
        hint = f"did you mean {' or '.join(f'config.{other}' for other in near[:3])}?"
    else:
        hint = f"use one of {', '.join(f'config.{other}' for other in config)}"
    return ValueError(f"config.{field} does not exist: {hint}")


def _parse(field: str, text: str, old: Any) -> Any:
    """Parses `text` as the type of `old`; a field that is None takes any literal, or text."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        raise ValueError(f"config.{field}={text!r:.80} is not a boolean: use true or false")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if old is None or type(value) is type(old):
        return value
    if isinstance(old, float) and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            value = text
    if isinstance(old, tuple | list):
        if isinstance(value, str):
            value = [item.strip() for item in text.split(",") if item.strip()]
        return type(old)(value if isinstance(value, tuple | list) else [value])
    expected = _TYPE_NAMES.get(type(old), f"a {type(old).__name__}")
    raise ValueError(
        f"config.{field}={text!r:.80} is not {expected}: it is {old!r} in the experiment"
    )
