"""The k-way sampler: one prefill per prompt, k rows that share its keys and values, nothing wasted. Models and tokens, no strings."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from grm_jax.models.transformer import Transformer
from grm_jax.sampling.request import Completion, Request
from grm_jax.sampling.scheduler import Engine, Stats

__all__ = ["Completion", "Engine", "Request", "Samples", "Stats", "sample"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """k samples of each of P prompts, padded with 0 past each row's length. Log-probs are natural logs, before any top-k or top-p filter."""

    tokens: np.ndarray  # (P, k, T) int32
    logprobs: (
        np.ndarray
    )  # (P, k, T) float32, under the sampling temperature (under 1 where it is 0)
    logprobs_1: np.ndarray  # (P, k, T) float32, under temperature 1
    lengths: np.ndarray  # (P, k) int32, the stop token counted
    finish: np.ndarray  # (P, k) "stop", "length" or "error"
    errors: dict[int, str]  # why a prompt, by its index, could not be sampled
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

    A row is a function of (weights, prompt, sampling parameters, seed, item, sample number), whatever else is in the call; `items` defaults to
    0, 1, ... temperature 0 is greedy. prompt_slots and rows bound what runs at once; by default as many as memory holds (`plan.fit`).
    Raises ValueError for a k or max_new_tokens below 1. A prompt that cannot run is reported in `errors`; the others finish.
    """
    from grm_jax.sampling.plan import fit
    from grm_jax.sampling.progress import track
    from grm_jax.sampling.weights import for_decoding

    if k < 1 or max_new_tokens < 1:
        raise ValueError(f"k = {k}, max_new_tokens = {max_new_tokens}: both must be at least 1")
    items = range(len(prompts)) if items is None else items
    requests = [
        Request(p, k, max_new_tokens, temperature, top_p, top_k, tuple(stop), seed, item)
        for p, item in zip(prompts, items, strict=True)
    ]
    model = for_decoding(model)  # before memory is planned
    engine = Engine(model, *fit(model.cfg, requests, prompt_slots, rows))
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
    for completion in track(engine, requests, progress):
        at, n = (completion.request_index, completion.sample_index), len(completion.tokens)
        out.tokens[at][:n], out.logprobs[at][:n], out.logprobs_1[at][:n] = (
            completion.tokens,
            completion.logprobs,
            completion.logprobs_1,
        )
        out.lengths[at], out.finish[at] = n, completion.finish
        if completion.error:
            out.errors[completion.request_index] = completion.error
    return out
