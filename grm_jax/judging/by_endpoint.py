"""A judge whose critiques an OpenAI-compatible server writes: its sampler, and its loading.

Orders, templates, parsing and votes are those of every `Judge`. A prompt is the UTF-8 bytes of its
chat messages; the server applies its own chat template. Each critique is one request, whose seed
depends on (seed, prompt, sample), so a resumed run sends the same requests.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax import endpoint, strict_json
from grm_jax.judging.sampler import Reply, TextCompletion
from grm_jax.sampling import Request
from grm_jax.types import FAILED

log = logging.getLogger(__name__)

MOST_FAILED = 32  # requests in a row, and at least two for each that is in flight
_NONE = np.zeros(0, np.float32)


class ChatMessages:
    """The `TextCodec` of an endpoint: ids are the UTF-8 bytes of chat messages as JSON."""

    stop_ids: tuple[int, ...] = ()

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the bytes of the messages."""
        return list(strict_json.dumps(messages).encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the bytes."""
        return bytes(int(i) for i in ids).decode()


@dataclasses.dataclass(eq=False)
class EndpointSampler:
    """Requests one completion for each sample; see `judging.sampler.Sampler`.

    Attributes:
      server: its total_timeout, if set, limits all critiques of a comparison together.
      tries: failed tries of this process by kind, such as "HTTP 429".
    """

    server: endpoint.Server
    tries: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    warned: set[str] = dataclasses.field(default_factory=set)

    def __call__(self, requests: Sequence[Request]) -> Iterator[TextCompletion]:
        """Yields the completions as they end.

        Raises endpoint.EndpointError if the server refuses every request, or answers none of many.
        """
        samples = [(i, sample) for i, request in enumerate(requests) for sample in range(request.k)]
        if not samples:
            return
        bodies = [_body(requests[i], sample) for i, sample in samples]
        groups = [requests[i].group for i, _ in samples] if self.server.total_timeout else None
        texts: list[tuple[int, str]] = []
        failed = 0
        most = max(MOST_FAILED, 2 * self.server.parallel)
        for number, result in endpoint.complete(self.server, bodies, self._failed_try, groups):
            i, sample = samples[number]
            if isinstance(result, endpoint.Completion):
                failed = 0
                texts.append((i, result.text))
                yield _completion(i, sample, result)
                continue
            failed += 1
            yield TextCompletion(i, sample, _NONE, _NONE, _NONE, FAILED, result.reason)
            if failed >= most:
                if not (result.unfit and self._answers_short(bodies[number])):
                    raise endpoint.EndpointError(
                        f"{result.reason}. {failed} requests in a row failed: start the server, "
                        "then resume"
                    )
                failed = 0
        if warning := endpoint.equal_warning(texts, requests[0].temperature):
            self._warn_once("equal", f"{self.server.model}: {warning}")

    def _answers_short(self, body: Mapping[str, Any]) -> bool:
        """Returns whether the server answers a short prompt with the other fields of a request."""
        body = {**body, "messages": [{"role": "user", "content": "Hello."}]}
        ((_, result),) = endpoint.complete(self.server, [body], self._failed_try)
        return isinstance(result, endpoint.Completion)

    def _failed_try(self, kind: str, reason: str, repeated: bool) -> None:
        self.tries[kind] += 1
        if repeated:
            self._warn_once("try", f"{reason}. Repeating it up to {self.server.retries} times")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            log.warning("%s", text)


def _body(request: Request, sample: int) -> dict[str, Any]:
    """Returns the fields of one chat completion; those that not all servers have only if set."""
    body: dict[str, Any] = {
        "messages": strict_json.loads(bytes(request.prompt)),
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request_seed(request.seed, request.item, sample),
    }
    body |= {"top_p": request.top_p} if request.top_p < 1 else {}
    return body | ({"top_k": request.top_k} if request.top_k else {})


def request_seed(seed: int, item: int, sample: int) -> int:
    """Returns the 31-bit seed of one request. item: the number of its prompt."""
    digest = hashlib.sha256(f"{seed},{item},{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _completion(index: int, sample: int, result: endpoint.Completion) -> TextCompletion:
    reply = Reply(result.text, result.finish, result.new_tokens, result.prompt_tokens)
    finish = result.finish or "unknown"
    return TextCompletion(index, sample, _NONE, _NONE, _NONE, finish, reply=reply)


# ---------------------------------------------------------------- loading

_SETTINGS = tuple(sorted(endpoint.TRANSPORT - {"url"}))
KEYWORDS = ("meta_rm", "mesh", "template", "max_new_tokens", "dtype", "meta_template", *_SETTINGS)


def judge_arguments(
    url: str,
    model: str,
    meta_rm: str | Path | None = None,
    mesh: Any = None,
    template: str | Path | None = None,
    max_new_tokens: int = 1024,
    **settings: Any,
) -> dict[str, Any]:
    """Returns the arguments of a `Judge` by endpoint; see `Judge.endpoint`.

    Args:
      meta_rm: a meta reward model to load here, with `mesh`.
      template: "grm" if None.
      max_new_tokens: longest critique if a call does not set it.
      settings: those of `endpoint.Server`, where total_timeout limits a comparison;
        dtype and meta_template of the meta reward model.
    """
    loading = {name: settings.pop(name) for name in ("dtype", "meta_template") if name in settings}
    if not isinstance(model, str) or not model.strip():
        raise ValueError(f"model = {model!r:.80}: name a model of the server")
    server = endpoint.Server(url, model, **settings)
    if warning := endpoint.time_warning(server, max_new_tokens):
        log.warning("%s", warning)
    judge: dict[str, Any] = {
        "tokenizer": ChatMessages(),
        "sampler": EndpointSampler(server),
        "template": str(template or "grm"),
        "name": model,
        "max_new_tokens": max_new_tokens,
        "settings": {"sampler": "endpoint"},
    }
    if meta_rm is not None:
        from grm_jax.judging.loading import load_meta_rm

        template, dtype = loading.get("meta_template"), loading.get("dtype", "bfloat16")
        judge["meta_rm"] = load_meta_rm(meta_rm, mesh, template, dtype, judge["template"])
    return judge
