"""Detects accelerators without opening them, and sets up the cache of compiled programs.

Command-line programs import this module before JAX.
"""

import contextlib
import importlib
import logging
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CACHE = "~/.cache/grm_jax/xla"
# JAX's events of one program: lowered, then compiled or loaded from the cache.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
# What JAX warns when it cannot read or write an entry of the cache; it names the program.
_CACHE_ERROR = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.*?)'")


def has_chips() -> bool:
    """Returns whether this machine has TPU chips."""
    return any(Path("/dev").glob("accel*")) or (
        Path("/dev/vfio").is_dir() and any(Path("/dev/vfio").glob("[0-9]*"))
    )


def has_nvidia_gpu() -> bool:
    """Returns whether this machine has an NVIDIA GPU with a driver."""
    return Path("/dev/dxg").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def choose_platform() -> None:
    """Selects JAX's platform on machines without TPU chips, so that libtpu is not loaded.

    libtpu would search for chips for a while and log errors, and so would the CUDA plugin on a
    machine without a GPU. Keeps a platform that is set, a backend that is already running, and
    the plugins of other vendors.
    """
    jax = sys.modules.get("jax")
    if has_chips() or "JAX_PLATFORMS" in os.environ or (jax and jax.config.jax_platforms):
        return
    plugins = _plugins()
    if any("cuda" not in name for name in plugins):
        return
    platforms = "cuda,cpu" if plugins and has_nvidia_gpu() else "cpu"
    os.environ["JAX_PLATFORMS"] = platforms
    if jax:  # JAX reads the environment only on import, and ignores this once a backend runs
        jax.config.update("jax_platforms", platforms)


def _plugins() -> list[str]:
    """Returns the names of JAX's plugins, such as xla_cuda12."""
    package = find_spec("jax_plugins")
    folders = package.submodule_search_locations if package else None
    return [module.name for module in pkgutil.iter_modules(folders)] if folders else []


def use_compilation_cache(folder: str | None = None) -> str | None:
    """Stores compiled programs on disk, so that a later process loads instead of compiling them.

    A folder that cannot be created, read or written costs one line on stderr, never the run.

    Args:
      folder: local or in a bucket; None for CACHE, unless JAX has a folder
        (JAX_COMPILATION_CACHE_DIR), which is kept with its settings. "off" changes nothing.

    Returns:
      The folder in use, or None.
    """
    if folder == "off":
        return None
    jax = importlib.import_module("jax")
    if folder is None and ("JAX_COMPILATION_CACHE_DIR" in os.environ or _cache_folder(jax)):
        return _cache_folder(jax)
    folder = os.path.expanduser(folder or CACHE)
    in_bucket = "://" in folder
    try:
        if not in_bucket:
            # Private, because whoever can write compiled programs can run code here.
            os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        logger.warning("no compilation cache, every start compiles again: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", folder)
    # A request to a bucket takes longer than compiling a small program.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0 if in_bucket else 0.0)
    _report_cache_errors_once(folder)
    return folder


@contextlib.contextmanager
def watch_compilations(report: Callable[[int, bool], None]) -> Iterator[None]:
    """Calls report(n, False) before the n-th program is compiled, and report(n, True) after it.

    A program that is loaded from the cache counts as well.
    """
    monitoring, n = importlib.import_module("jax.monitoring"), 0

    def listen(event: str, duration: float, **_: Any) -> None:
        nonlocal n
        n += event == _LOWERED
        if event in (_LOWERED, _COMPILED):
            report(n, event == _COMPILED)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        monitoring.unregister_event_duration_listener(listen)


def _cache_folder(jax: Any) -> str | None:
    return jax.config.jax_compilation_cache_dir or None


def _report_cache_errors_once(folder: str) -> None:
    """Replaces JAX's warnings, one per program, by one line; deletes local entries of no use.

    JAX never overwrites an entry, so that a damaged one would be compiled again at every start.
    """
    show = warnings.showwarning
    reported: list[re.Match[str]] = []

    def showwarning(message: Any, *args: Any, **kwargs: Any) -> None:
        match = _CACHE_ERROR.match(str(message))
        if not match:
            show(message, *args, **kwargs)
            return
        if not reported:
            reported.append(match)
            problem = str(message).partition(match[2])[2].lstrip("': ")
            logger.warning("compilation cache %s: error %s an entry: %s", folder, match[1], problem)
        if match[1] == "reading" and "://" not in folder:
            for entry in Path(folder).glob(f"{match[2]}-*-cache"):
                entry.unlink(missing_ok=True)

    warnings.showwarning = showwarning
