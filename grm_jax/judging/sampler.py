"""The sampler of a judge: the k-way sampler of `grm_jax.sampling` as one callable."""

import functools
from collections.abc import Callable, Iterable, Sequence

from jax.sharding import Mesh

from grm_jax.models import cpu
from grm_jax.models.transformer import Transformer
from grm_jax.sampling import Completion, Engine, Request, plan
from grm_jax.sampling.weights import for_decoding
from grm_jax.sharding import use_mesh

# Yields the k completions of each request, in any order.
Sampler = Callable[[Sequence[Request]], Iterable[Completion]]


def engine_sampler(
    model: Transformer,
    mesh: Mesh | None = None,
    prompt_slots: int | None = None,
    rows: int | None = None,
    few_shapes: bool = False,
) -> Sampler:
    """Returns the sampler of a model.

    Args:
      mesh: mesh of the model's parameters; None for one device.
      prompt_slots: most prompts in a batch; by default as many as memory holds.
      rows: most samples of one prompt in a batch; by default as many as memory holds.
      few_shapes: on a CPU, pads batches so that few programs are compiled, and for small models the
        same whatever the number of requests.
    """
    decoding_model = functools.cache(lambda: for_decoding(model))

    def sample(requests: Sequence[Request]) -> Iterable[Completion]:
        if not requests:
            return
        with use_mesh(mesh):
            weights = decoding_model()  # placed before the memory for the cache is planned
            few = few_shapes and cpu.on_cpu()
            if few and model.cfg.num_params <= plan.SMALL_MODEL and not (prompt_slots or rows):
                batch = plan.fixed(model.cfg, requests)
            else:
                batch = plan.fit(model.cfg, requests, prompt_slots, rows)
            engine = Engine(weights, *batch, few_shapes=few)
        completions = iter(engine.run(requests))
        while True:
            # A generator must not leave the mesh in context at a yield.
            with use_mesh(mesh):
                completion = next(completions, None)
            if completion is None:
                return
            yield completion

    return sample
