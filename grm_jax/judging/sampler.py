"""The sampler of a judge: the k-way sampler of `grm_jax.sampling` as one callable."""

import functools
from collections.abc import Callable, Iterable, Sequence

from jax.sharding import Mesh

from grm_jax.models.transformer import Transformer
from grm_jax.sampling import Completion, Engine, Request
from grm_jax.sampling.plan import fit
from grm_jax.sampling.weights import for_decoding
from grm_jax.sharding import use_mesh

# Yields the k completions of each request, in any order.
Sampler = Callable[[Sequence[Request]], Iterable[Completion]]


def engine_sampler(
    model: Transformer,
    mesh: Mesh | None = None,
    prompt_slots: int | None = None,
    rows: int | None = None,
) -> Sampler:
    """Returns the sampler of a model.

    Args:
      mesh: mesh of the model's parameters; None for one device.
      prompt_slots: most prompts in a batch; by default as many as memory holds.
      rows: most samples of one prompt in a batch; by default as many as memory holds.
    """
    decoding_model = functools.cache(lambda: for_decoding(model))

    def sample(requests: Sequence[Request]) -> Iterable[Completion]:
        if not requests:
            return
        with use_mesh(mesh):
            weights = decoding_model()  # placed before the memory for the cache is planned
            engine = Engine(weights, *fit(model.cfg, requests, prompt_slots, rows))
        completions = iter(engine.run(requests))
        while True:
            # A generator must not leave the mesh in context at a yield.
            with use_mesh(mesh):
                completion = next(completions, None)
            if completion is None:
                return
            yield completion

    return sample
