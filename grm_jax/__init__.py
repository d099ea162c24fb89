"""grm_jax: generative reward models that judge with self-written principles (SPCT), on TPUs.

Nothing heavy is imported here: each public name loads its module when it is first touched.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_NAMES = {
    "Comparison": "grm_jax.types",
    "Critique": "grm_jax.types",
    "Judge": "grm_jax.judging.judge",
    "Principle": "grm_jax.types",
    "Verdict": "grm_jax.types",
}
_MODULES = (
    "checkpoints",
    "data",
    "evals",
    "judging",
    "models",
    "sampling",
    "sharding",
    "text",
    "training",
)

__all__ = ["__version__", *_NAMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"grm_jax.{name}")
    raise AttributeError(f"module 'grm_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
