"""The judge as a reward: `score` in this process, `grm serve` over HTTP, adapters for trainers."""

from grm_jax.judging.rewards import score as score

__all__ = ["score"]
