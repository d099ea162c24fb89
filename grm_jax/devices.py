"""Detects accelerators without opening them. Command-line programs import it before JAX."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def has_chips() -> bool:
    """Whether this machine has TPU chips."""
    return any(Path("/dev").glob("accel*")) or (
        Path("/dev/vfio").is_dir() and any(Path("/dev/vfio").glob("[0-9]*"))
    )


def choose_platform() -> None:
    """Without TPU chips libtpu, where it is installed, is not asked: it would look for them for a while, and complain.

    A JAX_PLATFORMS of the user's is left as it is.
    """
    if has_chips() or "JAX_PLATFORMS" in os.environ:
        return
    platforms = (
        "cuda,cpu" if find_spec("jax_cuda12_plugin") or find_spec("jax_cuda13_plugin") else "cpu"
    )
    os.environ["JAX_PLATFORMS"] = platforms
    if "jax" in sys.modules:  # it read the environment when it was imported
        sys.modules["jax"].config.update("jax_platforms", platforms)
