"""Toy models and engines for this folder. Tests share a few shapes to save compilations."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from grm_jax.models import Transformer, build_model, get_config
from grm_jax.sampling import Engine, Request, buckets

PROMPT_BUCKETS = (8, 48)
RING_BUCKETS = (32, 224)
LENGTH = 256  # full forward passes are padded to this length


@pytest.fixture(scope="module", autouse=True)
def few_buckets():
    """Buckets of this folder's tests, and of no other: a process runs several folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "PROMPT_BUCKETS", PROMPT_BUCKETS)
        patch.setattr(buckets, "RING_BUCKETS", RING_BUCKETS)
        yield


class Lab:
    """Models, engines and full forward passes by model name, each built once."""

    @functools.cache  # noqa: B019 - lives for the session
    def model(self, name: str) -> Transformer:
        # Tests write NaN into the embedding rows beyond the vocabulary.
        model = build_model(get_config(name, vocab_pad=4), nnx.Rngs(0))
        biases = jax.random.normal(jax.random.key(7), (8,))  # a new model has zeros
        state = jax.tree.map_with_path(
            lambda path, x: x + biases if "_bias_" in jax.tree_util.keystr(path) else x,
            nnx.state(model),
        )
        nnx.update(model, state)
        return model

    @functools.cache  # noqa: B019
    def engine(self, name: str, P: int = 4, R: int = 2) -> Engine:
        return Engine(self.model(name), P, R, segment=32)

    @functools.cache  # noqa: B019
    def forward(self, name: str):
        graphdef, _ = nnx.split(self.model(name))
        return jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens))

    def logits(self, name: str, tokens) -> np.ndarray:
        """float32 logits (n, V) of a full forward pass over n tokens."""
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = self.forward(name)(nnx.state(self.model(name)), padded)
        return np.asarray(logits)[0, : len(tokens), :128]


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts shorter and much longer than the windows (6 and 5)."""
    rng = np.random.default_rng(0)
    return [rng.integers(4, 128, n).tolist() for n in (4, 20, 31, 40)]


def by_index(completions) -> dict:
    """Returns {(request index, sample index): Completion}."""
    return {(c.request_index, c.sample_index): c for c in completions}


@pytest.fixture(scope="session")
def runs(lab, prompts):
    """A run of greedy, filtered and invalid requests: (requests, completions by index)."""

    @functools.cache
    def run(name: str):
        requests = [
            Request(prompts[0], 3, 60, temperature=0.8, stop=(1, 2, 3), seed=7, item=0),
            Request(prompts[1], 1, 200, temperature=0.0, item=1),
            Request([], 2, 10, item=2),
            Request(
                prompts[2], 5, 40, temperature=1.3, top_p=0.9, top_k=20, stop=(5,), seed=7, item=3
            ),
            Request(prompts[3], 2, 100, seed=7, item=4),
            Request(prompts[3], 0, 10, item=5),
            Request([7] * 256, 2, 10, item=6),
        ]
        return requests, by_index(lab.engine(name).run(requests))

    return run
