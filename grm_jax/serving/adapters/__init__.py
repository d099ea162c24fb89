"""The judge as a reward of other trainers; no JAX and no trainer is imported.

Every adapter takes a `Scorer`: a `Client` of `grm serve`, or `functools.partial(score,
judge=judge)` in the trainer's process.
"""
