"""Detects accelerators without opening them. Command-line programs import it before JAX."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def has_chips() -> bool:
    """Returns whether this machine has TPU chips."""
    return any(Path("/dev").glob("accel*")) or (
        Path("/dev/vfio").is_dir() and any(Path("/dev/vfio").glob("[0-9]*"))
    )


def choose_platform() -> None:
    """Sets JAX_PLATFORMS on machines without TPU chips, so that an installed libtpu is not loaded.

    libtpu would search for chips for a while and log errors. A JAX_PLATFORMS that is set is kept.
    """
    if has_chips() or "JAX_PLATFORMS" in os.environ:
        return
    platforms = (
        "cuda,cpu" if find_spec("jax_cuda12_plugin") or find_spec("jax_cuda13_plugin") else "cpu"
    )
    os.environ["JAX_PLATFORMS"] = platforms
    if "jax" in sys.modules:  # JAX reads the environment only on import
        sys.modules["jax"].config.update("jax_platforms", platforms)
