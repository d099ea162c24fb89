"""A training of four numbers in milliseconds: `python toy_training.py FOLDER [OPTIONS as JSON]`.

Options: steps, save_every, keep, sleep (seconds per step), pause (seconds of the second step, which
writes the file `pausing` first), size (numbers), fsize (the largest file in bytes that this process
may write, as on a full disk).
"""

import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from grm_jax.training import loop
from grm_jax.training.stop import StopSignal


def initial_state(size):
    return {
        "params": {"w": jnp.zeros(size)},
        "step": jnp.int32(0),
        "rng": jax.random.key_data(jax.random.key(3)),
    }


def make_stage(folder, steps=6, save_every=2, keep=3, sleep=0.0, pause=0.0, size=4, lr=1.0):
    """Returns a stage whose step i adds noise that depends on i and the seed."""
    section = ml_collections.ConfigDict(
        dict(steps=steps, save_every=save_every, keep=keep, log_every=1, profile_steps=(), lr=lr)
    )
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: initial_state(size)),
    )

    def step(state, i, seed):
        if pause and i == 1:
            (Path(folder) / "pausing").touch()
            time.sleep(pause)
        time.sleep(sleep)
        noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
        w = state["params"]["w"] * 0.9 + lr * noise
        row = {"loss": jnp.abs(w).sum(), "grad_norm": jnp.float32(1), "finite": jnp.float32(1)}
        return {**state, "params": {"w": w}, "step": state["step"] + 1}, row, f"{i}"

    return loop.Stage(
        "toy",
        section,
        folder,
        init=lambda: initial_state(size),
        abstract_state=abstract,
        step=step,
        identity={"data": "a"},
        tensorboard=False,
    )


def train(folder, **options):
    """Trains, or resumes, and returns the numbers."""
    return np.asarray(loop.train(make_stage(folder, **options), StopSignal())["params"]["w"])


def abstract_params(folder, **options):
    return make_stage(folder, **options).abstract_state["params"]


if __name__ == "__main__":
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    if limit := options.pop("fsize", 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(sys.argv[1], **options)
    except (loop.Stopped, OSError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(130 if getattr(error, "interrupted", False) else 1)
