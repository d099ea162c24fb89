"""The k-way sampler: one prefill per prompt, k samples that share its keys and values.

Works on models and token ids; text is in `grm_jax.text`.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np

from grm_jax.models import Transformer
from grm_jax.sampling.plan import fit
from grm_jax.sampling.request import Completion, Request
from grm_jax.sampling.scheduler import Engine, Stats
from grm_jax.sampling.weights import for_decoding

__all__ = ["Completion", "Engine", "Request", "Samples", "Stats", "sample"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """k samples of each of P prompts, padded with 0 after each sample's length.

    Attributes:
      tokens: (P, k, T) int32.
      logprobs: (P, k, T) float32, natural log, before top-k and top-p, under the sampling
        temperature (under 1 where it is 0).
      logprobs_1: (P, k, T) float32, the same under temperature 1.
      lengths: (P, k) int32, the stop token included.
      finish: (P, k) "stop", "length" or "error".
      errors: why a prompt could not be sampled, by its index.
      stats: counts of the engine.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    logprobs_1: np.ndarray
    lengths: np.ndarray
    finish: np.ndarray
    errors: dict[int, str]
    stats: Stats


def sample(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    k: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: Sequence[int] = (),
    seed: int = 0,
    items: Sequence[int] | None = None,
    prompt_slots: int | None = None,
    rows: int | None = None,
    progress: bool = False,
) -> Samples:
    """Samples k continuations of each prompt (lists of token ids).

    A sample is a function of (weights, prompt, sampling parameters, seed, item, sample index); the
    other prompts do not change it. A prompt that cannot run is reported in `errors`, the others
    finish.

    Args:
      temperature: 0 is greedy.
      items: one number per prompt; default 0, 1, ...
      prompt_slots, rows: bound how much runs at once; see `plan.fit` for the default.
      progress: shows a progress bar.

    Raises:
      ValueError: k or max_new_tokens below 1.
    """
    if k < 1 or max_new_tokens < 1:
        raise ValueError(f"k = {k}, max_new_tokens = {max_new_tokens}: both must be at least 1")
    items = range(len(prompts)) if items is None else items
    requests = [
        Request(prompt, k, max_new_tokens, temperature, top_p, top_k, tuple(stop), seed, item)
        for prompt, item in zip(prompts, items, strict=True)
    ]
    model = for_decoding(model)  # before memory is planned
    engine = Engine(model, *fit(model.cfg, requests, prompt_slots, rows, share_prefixes=True))
    shape = (len(prompts), k)
    out = Samples(
        np.zeros((*shape, max_new_tokens), np.int32),
        np.zeros((*shape, max_new_tokens), np.float32),
        np.zeros((*shape, max_new_tokens), np.float32),
        np.zeros(shape, np.int32),
        np.full(shape, "error", "<U6"),
        {},
        engine.stats,
    )
    for done in _with_bar(engine, requests) if progress else engine.run(requests):
        index, n = (done.request_index, done.sample_index), len(done.tokens)
        out.tokens[index][:n] = done.tokens
        out.logprobs[index][:n] = done.logprobs
        out.logprobs_1[index][:n] = done.logprobs_1
        out.lengths[index], out.finish[index] = n, done.finish
        if done.error:
            out.errors[done.request_index] = done.error
    return out


def _with_bar(engine: Engine, requests: Sequence[Request]) -> Iterator[Completion]:
    """Yields the engine's completions, and shows tokens per second and the share of busy rows."""
    from tqdm.auto import tqdm

    start, stats = time.monotonic(), engine.stats
    total = sum(max(1, r.k) for r in requests)
    with tqdm(total=total, unit="sample", desc="sampling", miniters=0) as bar:

        def show(*_: int) -> None:  # without the engine, which would keep itself alive
            rate = stats.tokens / max(1e-9, time.monotonic() - start)
            text = f"{rate:,.0f} tok/s, rows busy {stats.utilisation:.0%}"
            if not stats.tokens:
                text = f"{stats.prompts} prompts prefilled"
            bar.set_postfix_str(text, refresh=False)
            bar.update(0)

        engine.watch = show
        for completion in engine.run(requests):
            bar.update()
            yield completion
