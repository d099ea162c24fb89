"""grm_jax: generative reward models that judge with self-written principles (SPCT), on TPUs.

Nothing heavy is imported here: each public name loads its module when it is first used. Type
checkers and editors read the imports under TYPE_CHECKING.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Critique",
    "Judge",
    "Principle",
    "Ranking",
    "Verdict",
    "__version__",
    "checkpoints",
    "data",
    "evals",
    "judging",
    "models",
    "sampling",
    "serving",
    "sharding",
    "text",
    "training",
]

if TYPE_CHECKING:
    from grm_jax import (
        checkpoints,
        data,
        evals,
        judging,
        models,
        sampling,
        serving,
        sharding,
        text,
        training,
    )
    from grm_jax.judging.judge import Judge
    from grm_jax.types import Comparison, Critique, Principle, Ranking, Verdict
else:

    def __getattr__(name):
        import importlib

        if name not in __all__:
            known = ", ".join(__all__)
            raise AttributeError(f"module 'grm_jax' has no attribute {name!r}; it has {known}")
        if name == "Judge":
            value = importlib.import_module("grm_jax.judging.judge").Judge
        elif name[0].isupper():
            value = getattr(importlib.import_module("grm_jax.types"), name)
        else:
            value = importlib.import_module(f"grm_jax.{name}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted(__all__)
