"""Input and output of the sampler: requests and completions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from grm_jax.models.config import TransformerConfig
from grm_jax.sampling import buckets

MAX_STOP_TOKENS = 8
MAX_TEMPERATURE = 1e4  # every token is as likely as another; float32 holds its inverse


@dataclasses.dataclass(frozen=True)
class Request:
    """k samples of one prompt.

    A sample is a function of the weights, the prompt, the sampling parameters and its random key,
    which is derived from (seed, item, sample index) alone.

    Attributes:
      prompt: token ids.
      k: number of samples.
      temperature: 0 is greedy.
      top_p: share of the probability that sampling is restricted to; 1 disables the filter.
      top_k: number of tokens that sampling is restricted to; 0 disables the filter.
      stop: token ids that end a completion, at most MAX_STOP_TOKENS.
      seed, item: integers in [0, 2**31).
      group: number of a comparison, for the deadline of an endpoint and for `group_prefix`.
      common_prefix: number of first tokens of the prompt that are prefilled by themselves, once for
        all requests of a run that begin with them (`prefixes.py`); None: as many as the engine
        finds worth it.
      group_prefix: number of first tokens of the prompt, above `common_prefix`, with which all
        requests of its `group` begin, such as the query of a comparison in two orders. They are
        prefilled once for the group; 0: for each request.
    """

    prompt: Sequence[int]
    k: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[int, ...] = ()
    seed: int = 0
    item: int = 0
    group: int = 0
    common_prefix: int | None = None
    group_prefix: int = 0

    def token_limit(self, cfg: TransformerConfig) -> int:
        """Returns how many new tokens the request and the model's context allow."""
        return min(self.max_new_tokens, cfg.max_length - len(self.prompt))


@dataclasses.dataclass(frozen=True)
class Completion:
    """One finished sample of a request.

    Attributes:
      request_index: index of the request in the list that was run.
      sample_index: 0 to k - 1.
      tokens: int32 (T,), the stop token included.
      logprobs: float32 (T,), natural log, before top-k and top-p, under the sampling temperature
        (under temperature 1 for greedy samples).
      logprobs_1: the same under temperature 1.
      finish: "stop", "length" or "error".
      error: why it failed.
    """

    request_index: int
    sample_index: int
    tokens: np.ndarray
    logprobs: np.ndarray
    logprobs_1: np.ndarray
    finish: str
    error: str | None = None


def check(request: Request, cfg: TransformerConfig) -> str | None:
    """Returns why a request cannot run, or None."""
    n, room = len(request.prompt), cfg.max_length - len(request.prompt)
    longest = buckets.PROMPT_BUCKETS[-1], buckets.RING_BUCKETS[-1]
    if n == 0:
        return "the prompt is empty: give at least one token"
    if request.k < 1:
        return f"k = {request.k}: request at least one sample"
    if request.max_new_tokens < 1:
        return f"max_new_tokens = {request.max_new_tokens}: request at least one token"
    if room < 1:
        return (
            f"the prompt of {n} tokens leaves no room in {cfg.name}'s context of "
            f"{cfg.max_length}: shorten it to {cfg.max_length - 1} or less"
        )
    if n > longest[0] or min(request.max_new_tokens, room) > longest[1]:
        return (
            f"{n} prompt tokens and {request.max_new_tokens} new tokens: "
            f"at most {longest[0]} and {longest[1]}"
        )
    prefixes = {"common_prefix": request.common_prefix or 0, "group_prefix": request.group_prefix}
    for name, value in prefixes.items():
        if not 0 <= value < n:
            return f"{name} = {value}: use 0 to {n - 1}, less than the prompt's tokens"
    for name, value in (("seed", request.seed), ("item", request.item)):
        if not 0 <= value < 2**31:
            return f"{name} = {value}: use a number from 0 to {2**31 - 1}"
    if len(request.stop) > MAX_STOP_TOKENS:
        return f"{len(request.stop)} stop tokens: at most {MAX_STOP_TOKENS}"
    if not 0 <= request.temperature <= MAX_TEMPERATURE:
        return f"temperature = {request.temperature}: use 0 (greedy) to {MAX_TEMPERATURE:g}"
    if not 0 < request.top_p <= 1:
        return f"top_p = {request.top_p}: use a value in (0, 1]"
    bad = [token for token in request.prompt if not 0 <= token < cfg.vocab_size]
    if bad:
        return (
            f"token {bad[0]} is outside the vocabulary of {cfg.vocab_size}: "
            "the prompt was encoded with another model's tokenizer"
        )
    return None
