"""Loads the toys of parity_cases.py with grm_jax and measures the distance to the goldens."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from parity_cases import CASES, Case, batch, positions, sample, weights
from safetensors.numpy import save_file

from grm_jax.checkpoints import load
from grm_jax.checkpoints.loading import flat_params
from grm_jax.checkpoints.saving import disk_array
from grm_jax.checkpoints.tensor_map import axis_sizes, tensor_map
from grm_jax.models import token_logps

GOLDENS = Path(__file__).parent / "goldens"
LOGITS = 1e-4  # largest difference over the largest logit, float32
GRADIENTS = 1e-3  # the same for gradients


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """{"CASE/logits": ...} of "transformers", "deepmind" or "rewards"."""
    return dict(np.load(GOLDENS / f"{name}.npz"))


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="parity")


@functools.cache
def folder(case: Case) -> Path:
    """The case as a Hugging Face folder, written by the safetensors library."""
    path = Path(_root().name) / str(abs(hash(case)))
    path.mkdir()
    save_file(weights(case), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(case.config))
    return path


def model_of(name: str, dtype: str = "float32", **changes):
    return load(folder(CASES[name]), dtype=dtype, **changes)


def logits_of(model, tokens, mask, positions=None):
    """float32 logits of a padded batch. Traced anew at every call, so that patched code is used."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, *batch: nnx.merge(graphdef, state)(*batch))
    return np.asarray(run(state, jnp.asarray(tokens), positions, jnp.asarray(mask)), np.float32)


def gradients_of(model, name: str) -> dict[str, jax.Array]:
    """Gradients of the mean log-prob of a case's tokens, by our parameter paths."""
    tokens = jnp.asarray(batch(CASES[name])[0])
    graphdef, state = nnx.split(model)

    def mean_logp(state):
        return token_logps(nnx.merge(graphdef, state), tokens).logps[:, 1:].mean()

    return by_path(jax.jit(jax.grad(mean_logp))(state))


def by_path(state) -> dict[str, jax.Array]:
    return {path: variable[...] for path, variable in flat_params(state).items()}


def compare_gradients(gradients, cfg, goldens: dict[str, np.ndarray], case: str) -> None:
    """Checks gradients against the goldens "CASE/grad/NAME", which hold evenly spaced entries.

    The tensor map converts every gradient to its Hugging Face name and shape.
    """
    sizes, prefix = axis_sizes(cfg), f"{case}/grad/"
    left = {key.removeprefix(prefix) for key in goldens if key.startswith(prefix)}
    assert left
    for path, source in tensor_map(cfg, "hf").items():
        for tensor in source.tensors:
            theirs = goldens[prefix + tensor.name]
            ours = disk_array(gradients[path], tensor, source.axes, sizes, np.dtype(np.float32))
            ours = sample(ours, len(theirs))
            assert np.abs(ours - theirs).max() <= GRADIENTS * np.abs(theirs).max(), tensor.name
            left.remove(tensor.name)
    assert not left


def distance(ours: np.ndarray, theirs: np.ndarray, mask=None) -> float:
    """Largest difference over the largest value, without padding slots."""
    real = np.ones(ours.shape[:2], bool) if mask is None else mask.astype(bool)
    return float(np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max())


def parity(name: str, model=None, peer: str = "transformers") -> float:
    """Distance of a case's logits from the peer's. Every fault must raise it above LOGITS."""
    case = CASES[name]
    tokens, mask = batch(case)
    # None: the model derives positions from the mask.
    position_ids = positions(case) if case.pad == "gap" else None
    model = model_of(name) if model is None else model
    ours = logits_of(model, tokens, mask, position_ids)
    return distance(ours, golden(peer)[f"{name}/logits"], mask)
