"""Faults to inject into a toy model, and the pieces that they are made of."""

from collections.abc import Callable

from parity_cases import CASES
from parity_ours import folder, model_of

from grm_jax.checkpoints import open_checkpoint

# Name -> (function(monkeypatch, case) -> the faulty model or None, case, peer).
Faults = dict[str, tuple[Callable, str, str]]


def registry() -> tuple[Faults, Callable]:
    """Returns an empty table, and the decorator `fault(*cases, peer=...)` that fills it.

    The function returns the faulty model, or None if it only patches code.
    """
    faults: Faults = {}

    def fault(*cases: str, peer: str = "transformers"):
        def register(function):
            for case in cases:
                faults[f"{function.__name__}-{case}"] = (function, case, peer)
            return function

        return register

    return faults, fault


def changed(case: str, **changes):
    """The case's model with other config fields than those of its checkpoint."""
    return model_of(case, **changes)


def config_of(case: str):
    return open_checkpoint(folder(CASES[case])).model_config()


def with_layers(case: str, change):
    """The case's model with `change` applied to every layer's spec."""
    return changed(case, pattern=tuple(change(spec) for spec in config_of(case).pattern))


def with_parameters(case: str, change):
    """The case's model with `change(block)` applied to every block."""
    model = model_of(case)
    for block in (*model.units, *model.tail):
        change(block)
    return model
