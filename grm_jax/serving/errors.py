"""Errors of the server as JSON, in OpenAI's shape: {"error": {"message", "type", "param"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from grm_jax import strict_json
from grm_jax.serving.engine import DeadlineExceeded, EngineFailed, Stopped

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "unscored_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    499: "cancelled_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class Refusal(ValueError):
    """A request that is answered with an error; the message is shown to the client.

    param: the field that is wrong.  headers: of the answer, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.headers = status, param, dict(headers or {})


class ShutDown(Stopped):
    """The server stops, and the request did not finish within the grace time."""


class ClientGone(Stopped):
    """The client has closed its connection."""


def refusal_of(error: BaseException) -> Refusal:
    """Returns the refusal of any error. The message of an unexpected one is not shown.

    It could contain a text of the request, or of a file.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DeadlineExceeded):
        return Refusal(504, str(error))
    if isinstance(error, ShutDown):
        return Refusal(503, str(error), headers={"retry-after": "5"})
    if isinstance(error, EngineFailed):
        return Refusal(503, str(error))
    if isinstance(error, Stopped):
        return Refusal(499, str(error))
    name = type(error).__name__
    return Refusal(500, f"an unexpected {name} in the server; its log has the place")


def body_of(refusal: Refusal) -> dict[str, Any]:
    """Returns the JSON object of a refusal."""
    kind = TYPES.get(refusal.status, "server_error")
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": None}}


def response_of(refusal: Refusal) -> Response:
    return json_response(body_of(refusal), refusal.status, refusal.headers)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a response of strict JSON."""
    text = strict_json.dumps(value, separators=(",", ":"))
    return Response(text, status, dict(headers or {}), "application/json")
