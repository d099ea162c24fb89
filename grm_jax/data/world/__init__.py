"""The judging world: endless comparisons whose correct answer follows from rules, and a scripted teacher."""

from grm_jax.data.world.items import (
    DEFAULT,
    HELD_OUT_NAMES,
    SPLITS,
    TRAINED_NAMES,
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
