"""What surrounds every route: the API key, sizes and times, errors as JSON, metrics, the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import sys
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grm_jax.serving.errors import Refusal, refusal_of, response_of
from grm_jax.serving.limits import BODIES_MIB, HEADER_BYTES
from grm_jax.serving.service import Service

logger = logging.getLogger("grm_jax.serving")
OPEN_ROUTES = ("/healthz", "/readyz")  # without an API key, for probes
PROBES = (*OPEN_ROUTES, "/metrics")  # not logged
MIB = 1 << 20
DRAINED = 4  # times --body_mib: bodies up to this are read and discarded


class Guard:
    """Wraps the application: each request is answered once, with its result or a reason.

    Args:
      key: the API key, "" for none; it is compared in constant time and never logged.
      routes: known paths, for metrics and the log; another path is counted as "other".
    """

    def __init__(self, app: ASGIApp, service: Service, key: str, routes: set[str]) -> None:
        self.app, self.service, self.key, self.routes = app, service, key.encode(), routes
        self._body_bytes = 0  # of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, id = time.monotonic(), 0, secrets.token_hex(8)
        body = bytearray()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        error: Exception | None = None
        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
                raise Refusal(431, f"the headers are longer than {HEADER_BYTES} bytes")
            self._check_key(scope)
            await self._read_body(scope, receive, body)
            await self.app(scope, _replayed(bytes(body), receive), sending)
        except Exception as raised:
            error = raised
            if not status:
                await response_of(refusal_of(error))(scope, receive, sending)
        finally:
            self._body_bytes -= len(body)
            seconds = time.monotonic() - started
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.service.metrics.observe(route, status or 499, seconds)
            self._log(scope, route, status or 499, seconds, id, error, body)

    def _check_key(self, scope: Scope) -> None:
        """Raises Refusal for a request without the API key."""
        if not self.key or scope["path"] in OPEN_ROUTES:
            return
        given = _header(scope, b"authorization") or b""
        scheme, _, value = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(value.strip(), self.key):
            raise Refusal(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )

    async def _read_body(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Reads the body. Raises Refusal if it is too large or too slow."""
        limits = self.service.limits
        most = int(limits.body_mib * MIB)
        length, received = _header(scope, b"content-length") or b"0", 0
        if length.isdigit() and int(length) > DRAINED * most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(limits.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(499, "the client has closed the connection")
                    part = message.get("body", b"")
                    received += len(part)
                    if received <= most:
                        body += part
                        self._body_bytes += len(part)
                    # A client that still writes would not read an answer.
                    elif received > DRAINED * most or not message.get("more_body"):
                        raise _too_large(most)
                    if self._body_bytes > BODIES_MIB * MIB:
                        raise Refusal(
                            429,
                            "the server holds too many large bodies: try again later",
                            headers={"retry-after": "1"},
                        )
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            raise Refusal(
                408, f"the body was not complete after {limits.read_timeout:g} s"
            ) from None

    def _log(
        self,
        scope: Scope,
        route: str,
        status: int,
        seconds: float,
        id: str,
        error: Exception | None,
        body: bytearray,
    ) -> None:
        fields: dict[str, Any] = {
            "id": id,
            "method": scope["method"] if scope["method"].isalpha() else "?",
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "bytes": len(body),
        }
        if error is not None and not isinstance(error, Refusal):
            fields["error"] = type(error).__name__
            if status == 500:  # where it was raised; its message may have a text of the request
                frames = traceback.extract_tb(error.__traceback__)[-8:]
                fields["frames"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        if self.service.log_texts:
            fields["body"] = bytes(body).decode("utf-8", "replace")
            fields["reason"] = str(error) if error is not None else None
        level = logging.ERROR if status >= 500 else logging.INFO
        level = logging.DEBUG if route in PROBES else level
        logger.log(level, "request", extra={"fields": fields})


def _too_large(most: int) -> Refusal:
    return Refusal(
        413,
        f"the body is larger than {most / MIB:g} MiB: send fewer groups, or raise --body_mib",
        headers={"connection": "close"},
    )


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives a body which was read, then what follows it."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class JSONLines(logging.Formatter):
    """One JSON object per record, with the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record."""
        event = record.getMessage()
        if record.name == "asyncio":  # arguments of a callback may have texts
            event = event.partition("\n")[0].partition("(")[0]
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": event,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_to_stderr() -> None:
    """Writes the server's log to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    for name in ("grm_jax.serving", "uvicorn.error", "asyncio"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO if name == "grm_jax.serving" else logging.WARNING)
