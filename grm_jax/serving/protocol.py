"""HTTP connections with time limits: uvicorn has none for a request's head or a slow reader."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from grm_jax.serving.errors import Refusal, body_of
from grm_jax.serving.limits import HEADER_BYTES, Limits


def protocol_class(limits: Limits) -> type[H11Protocol]:
    """Returns the protocol for `uvicorn.Config(http=...)`."""
    seconds, most = limits.read_timeout, limits.connections

    class Protocol(H11Protocol):
        """Closes a connection that sends no complete head in time, or reads no answer."""

        _timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                self._answer(503, f"the server has {most} connections: try again later")
                return
            self._arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()  # the body has its own limit
            elif self._timer is None and not self.transport.is_closing():
                self._arm()  # the head of the connection's next request

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._disarm()
            if self.conn.trailing_data[0]:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            if self._write_timer is not None:
                self._write_timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            """Called when the client does not read what was sent."""
            self.flow.pause_writing()
            self._write_timer = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self.flow.resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()

        def send_400_response(self, msg: str) -> None:
            """Answers a request that is not HTTP, or has too long a head."""
            size = len(self.conn.trailing_data[0])
            if size >= HEADER_BYTES:
                self._answer(431, f"the head of the request is longer than {HEADER_BYTES} bytes")
            else:
                self._answer(400, "the request is not valid HTTP")

        def _late(self) -> None:
            if self.conn.trailing_data[0] and not self.transport.is_closing():
                self._answer(408, f"the head of the request was not complete after {seconds:g} s")
            self.transport.abort() if self.transport.is_closing() else self.transport.close()

        def _answer(self, status: int, message: str) -> None:
            """Writes an error and closes the connection."""
            self._disarm()
            body = json.dumps(body_of(Refusal(status, message))).encode()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                lines = [
                    f"HTTP/1.1 {status} {_PHRASES[status]}",
                    "content-type: application/json",
                    f"content-length: {len(body)}",
                    "connection: close",
                    "",
                    "",
                ]
                self.transport.write("\r\n".join(lines).encode() + body)
            self.transport.close()

        def _arm(self) -> None:
            self._disarm()
            self._timer = self.loop.call_later(seconds, self._late)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol


_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
