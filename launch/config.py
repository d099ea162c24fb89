"""Loads experiment files: `experiments/NAME.py[:arg]` to a ConfigDict, then field overrides."""

import difflib
import inspect
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grm_jax.config_fields import set_field
from launch.errors import LaunchError

ROOT = Path(__file__).resolve().parents[1]


def load(spec: str, overrides: Mapping[str, str]) -> Any:
    """Returns the ConfigDict of `FILE.py[:arg]` with overrides (dotted field -> text) applied.

    Raises LaunchError, ValueError or FileNotFoundError for a file that fails, an unknown argument
    or field (with the nearest known ones), and for values that `config_check.check` refuses.
    """
    path, _, arg = spec.partition(":")
    config = _get_config(find(path), arg)
    for field, text in overrides.items():
        set_field(config, field, text)
    from grm_jax.training import config_check  # imports JAX

    config_check.check(config)
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
    get_config = _run(path, lambda: runpy.run_path(str(path))).get("get_config")
    if not callable(get_config):
        raise LaunchError(
            f"config {path} has no get_config(): use an experiment such as experiments/spct_tiny.py"
        )
    takes_arg = bool(_run(path, lambda: inspect.signature(get_config)).parameters)
    if arg and not takes_arg:
        raise LaunchError(f"config {path.name} takes no argument: remove {arg!r} after the colon")
    call = (lambda: get_config(arg)) if takes_arg else get_config
    config = _run(path, call, f"{path.name}:{arg}" if arg else "")
    if isinstance(config, type) or not hasattr(config, "copy_and_resolve_references"):
        raise LaunchError(
            f"config {path.name}: get_config() returned {type(config).__name__}: "
            "return an ml_collections.ConfigDict"
        )
    return config


def _run(path: Path, code: Callable[[], Any], spec: str = "") -> Any:
    """Runs code of a config file.

    spec: FILE:ARG, for a ValueError.  Raises LaunchError with the file and the line.
    """
    try:
        return code()
    except (Exception, SystemExit) as error:
        if spec and isinstance(error, ValueError):
            raise LaunchError(f"config {spec}: {error}") from error
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line, reason = lines[-1] if lines else None, str(error)
        if isinstance(error, SyntaxError):
            path, line, reason = Path(error.filename or path), error.lineno, error.msg
        place = f"{path}:{line}" if line else str(path)
        raise LaunchError(f"config {place}: {type(error).__name__}: {reason}") from error
