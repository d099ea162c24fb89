"""Sends many requests to an OpenAI-compatible server at once."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from grm_jax import strict_json
from grm_jax.endpoint.replies import Completion, parse_completion, parse_models
from grm_jax.endpoint.server import Server, api_key, endpoint_url
from grm_jax.endpoint.tries import FailedTry, Failure, OnFailedTry, fetch, request

STOP_AFTER = 5  # requests in a row that a server refuses for good


@dataclasses.dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
      body: values of JSON.
      path: below the server's address.
      parse: returns the result of a reply's JSON value; raises BadReply.
    """

    body: Mapping[str, Any]
    path: str = "chat/completions"
    parse: Callable[[Any], Any] = parse_completion

    @property
    def content(self) -> bytes:
        """The body as bytes. Raises ValueError if it is not JSON."""
        return strict_json.dumps(self.body).encode()


class EndpointError(OSError):
    """The server refuses every request: a wrong key, address or model."""


def complete(
    server: Server,
    bodies: Sequence[Mapping[str, Any]],
    on_failed_try: OnFailedTry = lambda kind, reason, repeated: None,
    groups: Sequence[int] | None = None,
) -> Iterator[tuple[int, Completion | Failure]]:
    """Yields (index, result) of every request, in the order in which they end.

    Closing the iterator cancels the requests in flight.

    Args:
      bodies: one request each: the fields of a chat completion but "model".
      on_failed_try: see there; called from another thread.
      groups: a number for each request; requests with the same number share one total deadline,
        which begins with the first of them. None: each request has its own.

    Raises:
      EndpointError: `STOP_AFTER` requests in a row, or all, were refused for a reason that holds
        for every request: a wrong key (401), address (404) or model.
      ValueError: the key cannot be sent, or a body is not JSON.
    """
    calls = [Call({"model": server.model, **body}) for body in bodies]
    refused = 0
    for i, result in post(server, calls, on_failed_try, groups):
        yield i, result
        refused = refused + 1 if isinstance(result, Failure) and result.refused else 0
        if refused >= min(STOP_AFTER, len(calls)):
            raise EndpointError(f"{result.reason}. {refused} requests in a row were refused")


def post(
    server: Server,
    calls: Sequence[Call],
    on_failed_try: OnFailedTry = lambda kind, reason, repeated: None,
    groups: Sequence[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yields (index, result or Failure) of every call, in the order in which they end.

    Args and errors as `complete`, without EndpointError.
    """
    contents = [call.content for call in calls]

    async def run(client: httpx.AsyncClient, put: Callable[[Any], None]) -> None:
        await _send_all(client, server, calls, contents, put, on_failed_try, groups)

    yield from _in_thread(run, _headers(server))


async def post_async(
    server: Server,
    calls: Sequence[Call],
    on_failed_try: OnFailedTry = lambda kind, reason, repeated: None,
    groups: Sequence[int] | None = None,
) -> list[Any]:
    """Returns the result or Failure of every call, in the order of the calls.

    Cancelling it closes the connections. Args and errors as `post`.
    """
    results: list[tuple[int, Any]] = []
    contents = [call.content for call in calls]
    async with _async_client(_headers(server)) as client:
        await _send_all(client, server, calls, contents, results.append, on_failed_try, groups)
    return [result for _, result in sorted(results, key=lambda one: one[0])]


async def _send_all(
    client: httpx.AsyncClient,
    server: Server,
    calls: Sequence[Call],
    contents: Sequence[bytes],
    put: Callable[[Any], None],
    on_failed_try: OnFailedTry,
    groups: Sequence[int] | None,
) -> None:
    """Sends all calls, `server.parallel` at once; puts (index, result)."""
    numbers = iter(range(len(calls)))
    ends: dict[int, float] = {}

    async def work() -> None:
        for i in numbers:
            end = time.monotonic() + server.seconds
            if groups is not None:
                end = ends.setdefault(groups[i], end)
            call = calls[i]
            fields = (contents[i], on_failed_try, end, call.path, call.parse)
            put((i, await request(client, server, *fields)))

    await asyncio.gather(*(work() for _ in range(min(server.parallel, len(calls)))))


def models(server: Server) -> list[str]:
    """Returns the names of the models that the server lists. Raises ValueError with the reason."""

    async def run(client: httpx.AsyncClient, put: Callable[[Any], None]) -> None:
        url = endpoint_url(server.url, "models")
        try:
            put(await fetch(client, "GET", url, None, server.timeout, parse_models))
        except FailedTry as failed:
            put(failed)

    (answer,) = _in_thread(run, _headers(server))
    if isinstance(answer, FailedTry):
        raise ValueError(str(answer))
    return answer


def equal_warning(samples: Iterable[tuple[Any, str]], temperature: float) -> str:
    """Returns a warning if all texts of a prompt are equal although they are sampled, else "".

    samples: (prompt, text), where a prompt is anything that JSON holds. Prompts with one text do
    not count.
    """
    texts = collections.defaultdict(list)
    for prompt, text in samples:
        texts[json.dumps(prompt, sort_keys=True)].append(text)
    groups = [group for group in texts.values() if len(group) > 1]
    equal = [group for group in groups if len(set(group)) == 1]
    if not equal or temperature <= 0:
        return ""
    return (
        f"all samples of {len(equal):,} of {len(groups):,} prompts are equal: does the endpoint "
        f"apply temperature={temperature:g}, or does it cache replies or fix the seed?"
    )


def _headers(server: Server) -> dict[str, str]:
    # One connection per request: a server that sends too much cannot answer the next request.
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    headers |= {"Connection": "close", "User-Agent": "grm_jax"}
    if key := api_key(server.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    return headers


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _async_client(headers: Mapping[str, str]) -> httpx.AsyncClient:
    # Unlimited here: a total deadline per try ends each of them.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    options: Any = {"timeout": None, "limits": limits, "verify": _tls()}
    return httpx.AsyncClient(headers=headers, **options)


def _in_thread(
    run: Callable[[httpx.AsyncClient, Callable[[Any], None]], Any], headers: Mapping[str, str]
) -> Iterator[Any]:
    """Runs `run(client, put)` in a thread with an event loop; yields what it puts."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = object()

    async def main() -> None:
        async with _async_client(headers) as client:
            await run(client, results.put)

    loop = asyncio.new_event_loop()
    task = loop.create_task(main())

    def target() -> None:
        error: BaseException | None = None
        try:
            loop.run_until_complete(task)
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as raised:  # of the caller: it is raised there
            error = raised
        finally:
            loop.close()
            results.put((end, error))

    thread = threading.Thread(target=target, name="endpoint", daemon=True)
    thread.start()
    try:
        while True:
            value = results.get()
            if isinstance(value, tuple) and value[0] is end:
                if value[1] is not None:
                    raise value[1]
                return
            yield value
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join(5.0)
