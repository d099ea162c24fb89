"""Loads experiment files: `experiments/NAME.py[:arg]` to a ConfigDict, then field overrides."""

import difflib
import inspect
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grm_jax.config_fields import set_field
from launch.errors import LaunchError

ROOT = Path(__file__).resolve().parents[1]


def load(spec: str, overrides: Mapping[str, str]) -> Any:
    """Returns the ConfigDict of `FILE.py[:arg]` with overrides (dotted field -> text) applied.

    Raises LaunchError or ValueError for an unknown file, argument, field or value, with the
    nearest known ones.
    """
    path, _, arg = spec.partition(":")
    config = _get_config(find(path), arg)
    for field, text in overrides.items():
        set_field(config, field, text)
    return config


def find(name: str) -> Path:
    """Returns the experiment's file, relative to the current folder or to the root of the tree.

    Raises LaunchError with the nearest file names.
    """
    for path in (Path(name), ROOT / name):
        if path.is_file() and path.suffix == ".py":
            return path.resolve()
    files = {path.stem: f"experiments/{path.name}" for path in (ROOT / "experiments").glob("*.py")}
    files.pop("__init__", None)
    near = difflib.get_close_matches(Path(name).stem, files, n=1, cutoff=0.6)
    known = f"use one of {', '.join(sorted(files.values()))}"
    hint = f"did you mean {files[near[0]]}?" if near else known
    raise LaunchError(f"config {name!r} does not exist: {hint}")


def _get_config(path: Path, arg: str) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise LaunchError(
            f"config {path} has no get_config(): use an experiment such as experiments/spct_tiny.py"
        )
    takes_arg = bool(inspect.signature(get_config).parameters)
    if arg and not takes_arg:
        raise LaunchError(f"config {path.name} takes no argument: remove {arg!r} after the colon")
    try:
        return get_config(arg) if takes_arg else get_config()
    except (ValueError, KeyError) as error:
        raise LaunchError(f"config {path.name}:{arg}: {error}") from error
