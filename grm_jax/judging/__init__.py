"""From comparisons to verdicts: sample critiques, parse them, vote."""

from typing import Any

_EXPORTS = {
    "Comparison": "grm_jax.types",
    "Critique": "grm_jax.types",
    "Principle": "grm_jax.types",
    "Verdict": "grm_jax.types",
    "Judge": "grm_jax.judging.judge",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Lazy, so that `grm judge --help` does not import JAX.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
