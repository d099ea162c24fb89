"""The sampler of a judge: the k-way sampler of `grm_jax.sampling` as one callable.

A sampler works on token ids; a `TextCodec`, the tokenizer, has the texts. `by_endpoint` is the
sampler that requests texts of a server.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from grm_jax.models import cpu
from grm_jax.models.transformer import Transformer
from grm_jax.sampling import Completion, Engine, Request, plan
from grm_jax.sampling.scheduler import Watch
from grm_jax.sampling.weights import for_decoding
from grm_jax.sharding import use_mesh

# Yields the k completions of each request, in any order.
Sampler = Callable[[Sequence[Request]], Iterable[Completion]]


class TextCodec(Protocol):
    """What a judge needs of a tokenizer; hashed by identity (`job.template_prefix`)."""

    stop_ids: tuple[int, ...]

    def __hash__(self) -> int: ...

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the prompt of chat messages."""

    def decode(self, ids: Any) -> str:
        """Returns the text of a completion's tokens."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """The text of a completion. finish: "stop", "length", or None if unknown.

    num_tokens, prompt_tokens: None if they are not counted.
    """

    text: str
    finish: str | None
    num_tokens: int | None = None
    prompt_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class TextCompletion(Completion):
    """A completion that is a text, of a server: it has no tokens. finish may be `FAILED`."""

    reply: Reply | None = None


def text_of(completion: Completion, codec: TextCodec) -> Reply:
    """Returns the text of a completion, without stop tokens in its count."""
    if isinstance(completion, TextCompletion) and completion.reply is not None:
        return completion.reply
    ids = [int(i) for i in completion.tokens]
    count = sum(i not in codec.stop_ids for i in ids)
    return Reply(codec.decode(ids), completion.finish, count)


@dataclasses.dataclass(frozen=True, eq=False)
class EngineSampler:
    """The sampler of a model.

    Attributes:
      mesh: mesh of the model's parameters; None for one device.
      prompt_slots, rows: most prompts in a batch, most samples of one prompt; see `plan.fit`.
      few_shapes: on a CPU, pads batches so that few programs are compiled, and for small models the
        same whatever the number of requests.
    """

    model: Transformer
    mesh: Mesh | None = None
    prompt_slots: int | None = None
    rows: int | None = None
    few_shapes: bool = False

    @functools.cached_property
    def decoding_model(self) -> Transformer:
        """The weights as the decode loop uses them; read it under the mesh."""
        return for_decoding(self.model)

    def __call__(self, requests: Sequence[Request]) -> Iterable[Completion]:
        if not requests:
            return
        with use_mesh(self.mesh):
            engine = self._engine(requests)
        completions = iter(engine.run(requests))
        try:
            while True:
                # A generator must not leave the mesh in context at a yield.
                with use_mesh(self.mesh):
                    completion = next(completions, None)
                if completion is None:
                    self._spare[:] = [engine]  # with the common prefix of its prompts
                    return
                yield completion
        finally:
            completions.close()

    @functools.cached_property
    def watchers(self) -> list[Watch]:
        """Called with (prompts, tokens) as they are prefilled and sampled."""
        return []

    @functools.cached_property
    def _spare(self) -> list[Engine]:
        """The engine of the last call that has finished. A call takes it out of the list."""
        return []

    def _engine(self, requests: Sequence[Request]) -> Engine:
        """Returns an engine for the requests: the last one, if it has the batch that they need."""
        weights = self.decoding_model  # placed before the memory for the cache is planned
        cfg, bounds = self.model.cfg, (self.prompt_slots, self.rows)
        few = self.few_shapes and cpu.on_cpu()
        small = few and cfg.num_params <= plan.SMALL_MODEL
        if small and bounds == (None, None):
            batch = plan.fixed(cfg, requests, share_prefixes=True)
        else:
            batch = plan.fit(cfg, requests, *bounds, share_prefixes=True)
        last = self._spare.pop() if self._spare else None
        if last is not None and (last.P, last.R) == batch and last.few_shapes == few:
            return last
        idle = plan.SMALL_MODEL_IDLE if small else plan.IDLE
        # Not a bound method: with it, sampler and engine would keep each other and the weights.
        watch = functools.partial(_call_all, self.watchers)
        return Engine(weights, *batch, idle=idle, few_shapes=few, watch=watch)


def _call_all(watchers: Sequence[Watch], prompts: int, tokens: int) -> None:
    for watcher in watchers:
        watcher(prompts, tokens)


@contextlib.contextmanager
def watch_sampling(sampler: Sampler, watcher: Watch) -> Iterator[None]:
    """Calls the watcher while an `EngineSampler` works; other samplers report nothing."""
    watchers = sampler.watchers if isinstance(sampler, EngineSampler) else []
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.remove(watcher)
