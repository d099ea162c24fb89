"""One request: its tries, each with a total deadline, and the reading of its bounded reply."""

import asyncio
import dataclasses
import math
import os
import random
import ssl
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from grm_jax import strict_json
from grm_jax.display import outside_text
from grm_jax.endpoint.replies import BadReply, parse_completion, parse_error
from grm_jax.endpoint.server import Server, endpoint_url, public

MAX_BODY = 16 << 20  # bytes of a reply, decompressed
MAX_WAIT = 60.0  # seconds between two tries, unless the server names more in Retry-After
_MAX_ERROR_BODY = 1 << 16
_jitter = random.Random()  # draws of its own: seeded runs use the global generator
_RETRIED = (408, 409, 425, 429)  # and all 5xx but 501: these may pass
_REFUSED = (*range(300, 400), 401, 402, 403, 404, 405, 407, 410, 501)  # of every request alike
# (url, model) of models that refuse "max_tokens", as newer ones of OpenAI do.
_other_limit: set[tuple[str, str]] = set()


# Called with the kind and the reason of a failed try, and whether the request is repeated.
OnFailedTry = Callable[[str, str, bool], None]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A request that has no reply.

    kind: what went wrong in the last try, for counts: "timeout", "HTTP 503", "not JSON", ...
    reason: one line with address and detail.  refused: the server refuses every request alike.
    unfit: it refuses this request, which may be too long; or every one, because of some field.
    """

    kind: str
    reason: str
    refused: bool = False
    unfit: bool = False


class FailedTry(Exception):
    """One failed try. retried: another one may succeed. wait: seconds that the server asks for."""

    def __init__(
        self, kind: str, detail: str, retried: bool = True, refused: bool = False, wait: float = 0
    ):
        super().__init__(detail)
        self.kind, self.retried, self.refused, self.wait = kind, retried, refused, wait


async def request(
    client: httpx.AsyncClient,
    server: Server,
    content: bytes,
    on_failed_try: OnFailedTry,
    end: float,
    path: str = "chat/completions",
    parse: Callable[[Any], Any] = parse_completion,
) -> Any:
    """Tries a request until it succeeds, fails for good, or its time is over.

    Args:
      end: of all tries, a time of `time.monotonic`.
      path: below the server's address.
      parse: returns the result of a reply's JSON value; raises BadReply.

    Returns:
      parse(JSON value), or a Failure.
    """
    url = endpoint_url(server.url, path)
    if time.monotonic() >= end:
        text = f"{public(url)}: no time for a request within {server.seconds:g} s"
        return Failure("timeout", text)
    for attempt in range(server.retries + 1):
        try:
            return await _try(client, server, url, content, end, parse)
        except FailedTry as error:
            failed, reason = error, str(error)
        backoff = min(server.pause * 2 ** min(attempt, 30), MAX_WAIT) * _jitter.uniform(0.5, 1.5)
        wait = max(failed.wait, backoff)
        repeated = failed.retried and attempt < server.retries
        if repeated and time.monotonic() + wait >= end:
            repeated = False
            reason += f". No time for another try within {server.seconds:g} s"
        on_failed_try(failed.kind, reason, repeated)
        if not repeated:
            break
        await asyncio.sleep(wait)
    return Failure(failed.kind, reason, failed.refused, not (failed.retried or failed.refused))


async def _try(
    client: httpx.AsyncClient,
    server: Server,
    url: str,
    content: bytes,
    end: float,
    parse: Callable[[Any], Any],
) -> Any:
    """Sends one try; if the model refuses "max_tokens", again with "max_completion_tokens"."""
    model = (server.url, server.model)
    while True:
        renamed = model in _other_limit
        sent = _with_other_limit(content) if renamed else content
        seconds = min(server.timeout, end - time.monotonic())
        try:
            return await fetch(client, "POST", url, sent, seconds, parse)
        except FailedTry as failed:
            refused = failed.kind == "HTTP 400" and "max_completion_tokens" in str(failed)
            if renamed or not refused:
                raise
            _other_limit.add(model)


def _with_other_limit(content: bytes) -> bytes:
    """Renames the field "max_tokens" of a request."""
    names = {"max_tokens": "max_completion_tokens"}
    fields = strict_json.loads(content).items()
    return strict_json.dumps({names.get(key, key): value for key, value in fields}).encode()


async def fetch(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    content: bytes | None,
    seconds: float,
    parse: Callable[[Any], Any],
) -> Any:
    """Sends one request; returns parse(JSON value) of a reply with status 200.

    Raises FailedTry for everything else: no fault of a server or network raises another error.
    """
    address, key = public(url), client.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        async with asyncio.timeout(seconds):
            async with client.stream(method, url, content=content) as response:
                is_error = response.status_code != 200
                body = await _body(response, _MAX_ERROR_BODY if is_error else MAX_BODY, is_error)
        if is_error:
            raise _status_error(response, _without(key, body))
        type_ = response.headers.get("content-type", "application/json").split(";")[0].strip()
        if "json" not in type_.lower():
            raise BadReply("not JSON", f"{outside_text(type_)}, not JSON")
        try:
            return parse(strict_json.loads(body))
        except ValueError:  # again, for an error that does not quote the key
            return parse(strict_json.loads(_without(key, body)))
    except FailedTry as failed:
        error = failed
        detail = f"answered {failed}"
    except BadReply as bad:
        error = FailedTry(bad.kind, "", not bad.refused, bad.refused)
        detail = f"answered 200: {bad}"
    except TimeoutError:
        error = FailedTry("timeout", "")
        detail = f"did not answer within {seconds:.3g} s"
    except (httpx.ConnectError, OSError) as raised:
        error = FailedTry("connection", "")
        detail = f"is not reachable: {_cause(raised)}"
    except Exception as raised:  # noqa: BLE001  libraries raise many types for a damaged reply
        is_json = isinstance(raised, ValueError) and not isinstance(raised, httpx.InvalidURL)
        error = FailedTry("not JSON" if is_json else "broken reply", "")
        detail = f"answered with a damaged reply: {outside_text(raised) or type(raised).__name__}"
    error.args = (_without(key, f"{address} {detail}".encode()).decode(),)
    raise error from None


def _cause(error: BaseException) -> str:
    """Names the cause of a failed connection, such as "Connection refused"."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 20:
        chain.append(inner)
    for one in reversed(chain):
        if isinstance(one, OSError) and not isinstance(one, ssl.SSLError) and (one.errno or 0) > 0:
            return os.strerror(one.errno or 0)
    return outside_text(error) or type(error).__name__


def _without(key: str, text: bytes) -> bytes:
    """Returns the text without the key, if it is longer than placeholders such as EMPTY."""
    return text.replace(key.encode(), b"***") if len(key) >= 8 else text


def _status_error(response: httpx.Response, body: bytes) -> FailedTry:
    """The failed try of a reply whose status is not 200."""
    status = response.status_code
    text, refused = parse_error(body)
    if 300 <= status < 400:
        text = f"a redirect, which is not followed: give the address that it leads to. {text}"
    refused = refused or status in _REFUSED
    retried = not refused and (status in _RETRIED or status >= 500 or status < 300)
    detail = f"{status}: {outside_text(text)}".rstrip(": .")
    return FailedTry(f"HTTP {status}", detail, retried, refused, _retry_after(response))


async def _body(response: httpx.Response, most: int, is_error: bool) -> bytes:
    """Returns the body, decompressed, of at most `most` bytes.

    is_error: a longer or broken body is cut. Raises BadReply for one otherwise.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    unpack = zlib.decompressobj(wbits=47) if encoding in ("gzip", "x-gzip", "deflate") else None
    if encoding not in ("identity", "") and unpack is None and not is_error:
        raise BadReply("broken reply", f"a body in the encoding {outside_text(encoding)}")
    body = bytearray()
    try:
        async for chunk in response.aiter_raw():
            body += unpack.decompress(chunk, most + 1 - len(body)) if unpack else chunk
            if len(body) > most:
                break
    except (httpx.RequestError, OSError, zlib.error):
        if not is_error:
            raise
    if len(body) > most and not is_error:
        raise BadReply("too long", f"more than {most >> 20} MiB")
    if unpack and not unpack.eof and not is_error:
        raise BadReply("broken reply", "half a compressed body")
    return bytes(body[:most])


def _retry_after(response: httpx.Response) -> float:
    """Returns the seconds of Retry-After, a number or a date; 0 without a usable one."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
