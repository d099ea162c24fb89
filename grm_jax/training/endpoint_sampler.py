"""The sampler `endpoint` of rejective fine-tuning: critiques of an OpenAI-compatible server."""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax

from grm_jax import endpoint
from grm_jax.storage import as_path
from grm_jax.training.errors import SamplingError, TooManyFailed
from grm_jax.training.inputs import from_process_0
from grm_jax.training.replies import CritiqueReply, CritiqueRequest, Sampler, report_reply

log = logging.getLogger(__name__)

_PROBE_SECONDS = 30.0
_answered: set[tuple[str, str]] = set()  # (address, model) of the probes of this process


@dataclasses.dataclass(frozen=True)
class Endpoint(endpoint.Server):
    """An OpenAI-compatible server, and how to sample from it.

    max_failed: share of the requests of a call that may fail for good; above it TooManyFailed.
    """

    max_new_tokens: int
    temperature: float = 1.0
    max_failed: float = dataclasses.field(default=0.05, kw_only=True)

    def build(self, config: Any, tokenizer: Any, mesh: Any) -> Sampler:
        if warning := endpoint.time_warning(self, self.max_new_tokens):
            log.warning("config.rft.sampling: %s", warning)
        return sampler(self)


# Settings that do not decide a reply.
FETCHING = endpoint.TRANSPORT | {"max_failed"}


def sampler(settings: Endpoint) -> Sampler:
    """Samples from an OpenAI-compatible server. Each reply is reported as it comes.

    The first failed try is logged at once; the request is then repeated. Raises TooManyFailed with
    the last reason, SamplingError if the server refuses every request.
    """
    first: list[str] = []

    def sample(requests: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        bodies = [
            {
                "messages": request.messages,
                "max_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
            }
            for request in requests
        ]
        tries: collections.Counter[str] = collections.Counter()

        def on_failed_try(kind: str, reason: str, repeated: bool) -> None:
            tries[kind] += 1
            if repeated and not first:
                log.warning("%s. Repeating it up to %d times", reason, settings.retries)
                first.append(reason)

        replies: list[CritiqueReply | None] = [None] * len(requests)
        reasons = []
        try:
            for i, result in endpoint.complete(settings, bodies, on_failed_try):
                if isinstance(result, endpoint.Failure):
                    reasons.append(result.reason)
                else:
                    replies[i] = CritiqueReply(
                        result.text, result.finish, None, result.prompt_tokens, result.new_tokens
                    )
                report_reply(i, replies[i])
        except endpoint.EndpointError as error:
            raise SamplingError(str(error)) from error
        _log_calls(settings, requests, replies, tries)
        if reasons:
            counts = len(reasons), len(requests)
            log.warning("%d of %d requests failed, the last with: %s", *counts, reasons[-1])
            if len(reasons) > settings.max_failed * len(requests):
                raise TooManyFailed(replies, settings.max_failed, reasons[-1])
        return replies

    return sample


def _log_calls(
    settings: Endpoint,
    requests: Sequence[CritiqueRequest],
    replies: Sequence[CritiqueReply | None],
    tries: collections.Counter[str],
) -> None:
    """Logs the failed tries by kind, the tokens, and samples that are all equal."""
    if tries:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in tries.most_common())
        log.info("%d tries failed: %s", tries.total(), kinds)
    counts = [
        sum(getattr(reply, name) or 0 for reply in replies if reply)
        for name in ("prompt_tokens", "new_tokens")
    ]
    if any(counts):
        log.info("tokens of the endpoint: %d of prompts, %d new", *counts)
    texts = [(one.messages, reply.text) for one, reply in zip(requests, replies) if reply]
    if warning := endpoint.equal_warning(texts, settings.temperature):
        log.warning("%s", warning)


def probe_endpoint(config: Any, folder: Any) -> None:
    """Requests one token of the endpoint, if the RFT stage has still to sample from it.

    An empty `rft.sampling.model` is set to the server's only model. folder: of the stage.

    Raises ValueError if the endpoint does not answer, or if its address contains a key.
    """
    if not hasattr(config, "rft"):
        return
    rft = config.rft
    if url := rft.sampling.get("url"):  # the config is written to the workdir
        try:
            endpoint.check_url(url)
        except ValueError as error:
            raise ValueError(f"config.rft.sampling.{error}") from None
    is_sampled = (as_path(folder) / "data" / "ready.json").exists()
    if rft.sampler != "endpoint" or "rft" not in config.stages or is_sampled:
        return
    if not url:
        raise ValueError("config.rft.sampling.url is empty: the sampler 'endpoint' needs it")
    names = {"model": rft.sampling.get("model", "")}
    if jax.process_index() == 0:  # it samples, so the server may be on its host
        key_variable = rft.sampling.get("key_variable", endpoint.Server.key_variable)
        names = {"model": probe(url, names["model"], key_variable)}
    rft.sampling.update(from_process_0(names))


def probe(url: str, name: str = "", key_variable: str = "OPENAI_API_KEY") -> str:
    """Requests one token of an OpenAI-compatible server; of each model once per process.

    Returns:
      The model's name: `name`, or that of the server's only model.

    Raises:
      ValueError: the server does not answer, or not with a completion.
    """

    def fail(reason: object) -> ValueError:
        return ValueError(
            f"config.rft.sampling.url={endpoint.public(url)} does not answer with a completion: "
            f"{reason}. Start the server, correct the address (it usually ends in /v1), or sample "
            "here: --config.rft.sampler=self"
        )

    if (url, name) in _answered:
        return name
    server = endpoint.Server(
        url, name, key_variable=key_variable, retries=0, timeout=_PROBE_SECONDS
    )
    if not name:
        try:
            names = endpoint.models(server)
        except ValueError as error:
            raise fail(f"{error}; or name its model, sampling.model") from error
        if len(names) != 1:
            raise ValueError(
                f"config.rft.sampling.model is empty, and {endpoint.public(url)} serves "
                f"{len(names)} models: set it to one of {', '.join(names[:8])}"
            )
        (name,) = names
        server = dataclasses.replace(server, model=name)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0.0}
    try:
        ((_, result),) = endpoint.complete(server, [body])
    except endpoint.EndpointError as error:
        raise fail(error) from error
    # One token may be part of a thought that the server removes.
    if isinstance(result, endpoint.Failure) and result.kind != "empty text":
        raise fail(result.reason)
    _answered.add((url, name))
    log.info("%s answers, with the model %s", endpoint.public(url), name)
    return name
