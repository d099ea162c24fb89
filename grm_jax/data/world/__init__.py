"""The judging world: endless comparisons with rule-based labels, and a scripted teacher."""

from grm_jax.data.world.families import HELD_OUT_NAMES, TRAINED_NAMES
from grm_jax.data.world.items import (
    DEFAULT,
    SPLITS,
    Instruction,
    WorldConfig,
    believing,
    general_items,
    make_items,
)

__all__ = [
    "DEFAULT",
    "HELD_OUT_NAMES",
    "SPLITS",
    "TRAINED_NAMES",
    "Instruction",
    "WorldConfig",
    "believing",
    "general_items",
    "make_items",
]
