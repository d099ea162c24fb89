"""Experiment files: `experiments/NAME.py:arg` to a ConfigDict, and `--config.field=value` on top of it."""

import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.errors import LaunchError

ROOT = Path(__file__).resolve().parents[1]


def load(spec: str, overrides: dict[str, str]) -> Any:
    """The ConfigDict of `FILE.py[:arg]` with fields replaced.

    overrides: dotted field -> text. Raises LaunchError for a file, an argument, a field or a value that does not exist, naming the nearest.
    """
    path_text, _, arg = spec.partition(":")
    config = _get_config(find(path_text), arg)
    for field, text in overrides.items():
        set_field(config, field, text)
    return config


def find(text: str) -> Path:
    """The experiment's file, from here or from the root of the tree. Raises LaunchError naming the nearest."""
    for path in (Path(text), ROOT / text):
        if path.is_file() and path.suffix == ".py":
            return path.resolve()
    known = sorted(
        str(p.relative_to(ROOT))
        for p in (ROOT / "experiments").glob("*.py")
        if p.stem != "__init__"
    )
    stems = {Path(k).stem: k for k in known}
    near = difflib.get_close_matches(Path(text).stem, stems, n=1, cutoff=0.6)
    hint = (
        f"did you mean {' or '.join(stems[n] for n in near)}?"
        if near
        else f"there are {', '.join(known)}"
    )
    raise LaunchError(f"config {text!r} does not exist: {hint}")


def _get_config(path: Path, arg: str) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise LaunchError(
            f"config {path} has no get_config(): give an experiment, such as experiments/spct_tiny.py"
        )
    takes_arg = bool(inspect.signature(module.get_config).parameters)
    if arg and not takes_arg:
        raise LaunchError(
            f"config {path.name} takes no argument, {arg!r} was given after the colon"
        )
    try:
        return module.get_config(arg) if takes_arg else module.get_config()
    except (ValueError, KeyError) as error:
        raise LaunchError(f"config {path.name}:{arg}: {error}") from error


def fields(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values and sections."""
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from fields(value, f"{prefix}{name}.")


def set_field(config: Any, field: str, text: str) -> None:
    """Replaces one field ("rl.beta") by `text`, read as a value of the kind that it has. Raises LaunchError naming the nearest field."""
    *parents, last = field.split(".")
    section = config
    for name in parents:
        if name not in section or not hasattr(section[name], "items"):
            raise _unknown(config, field)
        section = section[name]
    if last in section:
        old = section[last]
    elif parents == ["model_overrides"] and last in _model_fields():
        old = _model_fields()[last]
    elif parents == ["rft", "sampling"] and last in _sampling_fields():
        old = _sampling_fields()[last]
    else:
        raise _unknown(config, field)
    if hasattr(old, "items"):
        raise LaunchError(
            f"config.{field} is a section: set one of {', '.join(f'config.{field}.{n}' for n in old)}"
        )
    value = _parse(field, text, old)
    if hasattr(section, "ignore_type"):
        with section.ignore_type(), section.unlocked():
            section[last] = value
    else:
        section[last] = value


def _model_fields() -> dict[str, Any]:
    """Fields of a model's configuration may be overridden whether the experiment names them or not."""
    import dataclasses

    from grm_jax.models.config import CONFIGS

    return dataclasses.asdict(next(iter(CONFIGS.values())))


def _sampling_fields() -> dict[str, Any]:
    """Settings of any sampler may be given, so that `rft.sampler` can be another than the experiment's."""
    from grm_jax.training import rft_samplers

    return {
        key: default
        for name in rft_samplers.SAMPLERS
        for key, default in rft_samplers.settings_of(name).items()
    }


def _unknown(config: Any, field: str) -> LaunchError:
    known = list(fields(config)) + [f"model_overrides.{name}" for name in _model_fields()]
    last = field.rpartition(".")[2]
    near = difflib.get_close_matches(field, known, n=2, cutoff=0.7)
    near += [
        k
        for k in known
        if difflib.SequenceMatcher(None, last, k.rpartition(".")[2]).ratio() > 0.75
        and k not in near
    ]
    hint = (
        " or ".join(f"config.{n}" for n in near[:3])
        if near
        else ", ".join(f"config.{n}" for n in config)
    )
    return LaunchError(
        f"config.{field} does not exist: "
        + (f"did you mean {hint}?" if near else f"there are {hint}")
    )


def _parse(field: str, text: str, old: Any) -> Any:
    """`text` as a value of the kind that the field has. A field that is None takes any literal, or text."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() in words:
            return words[text.lower()]
        raise LaunchError(f"config.{field}={text!r} is not a truth value: use true or false")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if old is None or (
        isinstance(old, float) and isinstance(value, int | float) and not isinstance(value, bool)
    ):
        return float(value) if isinstance(old, float) else value
    if isinstance(old, tuple | list):
        if isinstance(value, str):
            return type(old)(part.strip() for part in text.split(",") if part.strip())
        return type(old)(value) if isinstance(value, tuple | list) else type(old)((value,))
    if type(value) is type(old):
        return value
    raise LaunchError(
        f"config.{field}={text!r} is not {_kind(old)}: it is {old!r} in the experiment"
    )


def _kind(value: Any) -> str:
    return {int: "a whole number", float: "a number"}.get(type(value), f"a {type(value).__name__}")
