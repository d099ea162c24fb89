"""Requests critiques of an OpenAI-compatible server."""

import dataclasses
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any

import jax

from grm_jax.storage import as_path
from grm_jax.training.inputs import from_process_0
from grm_jax.training.rft_data import CritiqueReply

log = logging.getLogger(__name__)

_RETRIED = (408, 409, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
_PROBE_SECONDS = 30.0
_answered: set[tuple[str, str]] = set()  # (address, model) of the probes of this process


@dataclasses.dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server, and how to sample from it.

    Attributes:
      url: base address; "/chat/completions" is added.
      model: name of the model on the server.
      key_variable: environment variable with the key; sent as a bearer token if it is set.
      parallel: requests in flight.
      retries: further attempts after a timeout, a refused connection, or a status that may pass.
      timeout: seconds for one attempt.
      max_failed: share of the requests of a call that may fail for good; above it TooManyFailed.
      pause: seconds before the first retry, doubled each time.
    """

    url: str
    model: str
    max_new_tokens: int
    temperature: float = 1.0
    key_variable: str = "OPENAI_API_KEY"
    parallel: int = 16
    retries: int = 5
    timeout: float = 120.0
    max_failed: float = 0.05
    pause: float = 1.0


def probe_endpoint(config: Any, folder: Any) -> None:
    """Requests one token of the endpoint, if the RFT stage has still to sample from it.

    An empty `rft.sampling.model` is set to the server's only model. folder: of the stage.

    Raises ValueError if the endpoint does not answer.
    """
    rft = config.rft
    is_sampled = (as_path(folder) / "data" / "ready.json").exists()
    if rft.sampler != "endpoint" or "rft" not in config.stages or is_sampled:
        return
    if not rft.sampling.get("url"):
        raise ValueError("config.rft.sampling.url is empty: the sampler 'endpoint' needs it")
    names = {"model": rft.sampling.get("model", "")}
    if jax.process_index() == 0:  # it samples, so the server may be on its host
        key_variable = rft.sampling.get("key_variable", Server.key_variable)
        names = {"model": probe(rft.sampling["url"], names["model"], key_variable)}
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
            f"config.rft.sampling.url={url} does not answer with a completion: {reason}. Start the "
            "server, correct the address (it usually ends in /v1), or sample here: "
            "--config.rft.sampler=self"
        )

    if (url, name) in _answered:
        return name
    if not url.startswith(("http://", "https://")):
        raise fail("it does not begin with http:// or https://")
    headers = _headers(key_variable)
    if not name:
        try:
            call = urllib.request.Request(url.rstrip("/") + "/models", headers=headers)
            with urllib.request.urlopen(call, timeout=_PROBE_SECONDS) as response:
                names = [str(model["id"]) for model in json.load(response)["data"]]
        except urllib.error.HTTPError as error:
            raise fail(f"/models answered {error.code}; name its model, sampling.model") from error
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            raise fail(error) from error
        if len(names) != 1:
            raise ValueError(
                f"config.rft.sampling.model is empty, and {url} serves {len(names)} models: set it "
                f"to one of {', '.join(names[:8])}"
            )
        (name,) = names
    server = Server(url, name, 1, 0.0, key_variable, retries=0, timeout=_PROBE_SECONDS)
    result = post(server, [{"role": "user", "content": "Hello"}])
    if isinstance(result, str):
        raise fail(result)
    _answered.add((url, name))
    log.info("%s answers, with the model %s", url, name)
    return name


def _headers(key_variable: str) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_variable):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def post(
    server: Server,
    messages: Sequence[Mapping[str, str]],
    on_retry: Callable[[str], None] = log.debug,
) -> CritiqueReply | str:
    """Returns the reply, or why the request failed for good. on_retry: gets each earlier reason."""
    address = server.url.rstrip("/") + "/chat/completions"
    body = {
        "model": server.model,
        "messages": messages,
        "max_tokens": server.max_new_tokens,
        "temperature": server.temperature,
    }
    data, reason = json.dumps(body).encode(), ""
    call = urllib.request.Request(address, data, _headers(server.key_variable))
    for attempt in range(server.retries + 1):
        try:
            with urllib.request.urlopen(call, timeout=server.timeout) as response:
                choice = json.load(response)["choices"][0]
            return CritiqueReply(choice["message"]["content"] or "", choice.get("finish_reason"))
        except urllib.error.HTTPError as error:
            answer = error.read()[:200].decode(errors="replace")
            reason = f"{address} answered {error.code}: {answer}"
            if error.code not in _RETRIED:
                return reason
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            reason = f"{address}: {type(error).__name__}: {error}"
        if attempt < server.retries:
            on_retry(reason)
            time.sleep(server.pause * 2**attempt)
    return reason
