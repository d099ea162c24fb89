"""Our side of the parity tests: the toys of parity_cases.py through the package's own loader, and how far the logits are from the goldens."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from parity_cases import CASES, Case, batch, positions, weights
from safetensors.numpy import save_file

from grm_jax.checkpoints import load
from grm_jax.checkpoints.loading import flat_params
from grm_jax.models import token_logps

GOLDENS = Path(__file__).parent / "goldens"
LOGITS = 1e-4  # largest difference over the largest logit, float32
GRADIENTS = 1e-3  # the same for gradients


@functools.cache
def golden(peer: str) -> dict[str, np.ndarray]:
    """{"CASE/logits": ...} of "transformers" or "deepmind"."""
    return dict(np.load(GOLDENS / f"{peer}.npz"))


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
    """float32 logits of a padded batch: segment 0 is padding. Traced anew at every call, so that what a fault replaces is used."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, *batch: nnx.merge(graphdef, state)(*batch))
    return np.asarray(run(state, jnp.asarray(tokens), positions, jnp.asarray(mask)), np.float32)


def gradients_of(model, name: str) -> dict[str, jax.Array]:
    """Gradients of the mean log-prob of a case's tokens, by our parameter paths."""
    tokens = jnp.asarray(batch(CASES[name])[0])
    graphdef, state = nnx.split(model)

    @jax.jit
    def gradients(state):
        return jax.grad(lambda s: token_logps(nnx.merge(graphdef, s), tokens).logps[:, 1:].mean())(
            state
        )

    return {path: variable[...] for path, variable in flat_params(gradients(state)).items()}


def distance(ours: np.ndarray, theirs: np.ndarray, mask=None) -> float:
    """Largest difference over the largest value, at real tokens (what a padding slot predicts is nobody's business)."""
    real = np.ones(ours.shape[:2], bool) if mask is None else mask.astype(bool)
    return float(np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max())


def parity(name: str, model=None, peer: str = "transformers") -> float:
    """The check that faults must turn red: how far a case's logits are from the peer's."""
    case = CASES[name]
    tokens, mask = batch(case)
    places = positions(case) if case.pad == "gap" else None  # else our own, from the mask
    model = model_of(name) if model is None else model
    return distance(logits_of(model, tokens, mask, places), golden(peer)[f"{name}/logits"], mask)
