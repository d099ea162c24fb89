"""The ASGI application: which function answers which route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from grm_jax.serving import chat, nemo_gym, openapi, openrlhf, scoring
from grm_jax.serving.errors import Refusal, json_response
from grm_jax.serving.guard import Guard
from grm_jax.serving.service import Service

Handler = Callable[[Service, HTTPRequest], Awaitable[Response]]


async def health(service: Service, http: HTTPRequest) -> Response:
    """Answers GET /healthz: 503 once the engine has failed, when the process must be restarted."""
    if problem := service.engine.problem():
        raise Refusal(503, problem)
    return json_response({"status": "ok"})


async def ready(service: Service, http: HTTPRequest) -> Response:
    """Answers GET /readyz: 503 while programs compile and while the server shuts down."""
    if problem := service.problem():
        raise Refusal(503, problem)
    return json_response({"status": "ready", "model": service.judge.name})


async def metrics(service: Service, http: HTTPRequest) -> Response:
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/score": {"POST": scoring.scores},
    "/get_reward": {"POST": openrlhf.get_reward},
    "/compare": {"POST": nemo_gym.compare},
    "/verify": {"POST": nemo_gym.verify},
    "/v1/chat/completions": {"POST": chat.completions},
    "/v1/models": {"GET": chat.models},
    "/healthz": {"GET": health},
    "/readyz": {"GET": ready},
    "/metrics": {"GET": metrics},
    "/openapi.json": {"GET": openapi.openapi},
    "/docs": {"GET": openapi.docs},
}


def application(service: Service, key: str = "") -> ASGIApp:
    """Returns the ASGI application of a service. key: the API key, "" for none."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        methods = ROUTES.get(scope["path"])
        if methods is None:
            raise Refusal(404, f"no such path: this server has {', '.join(ROUTES)}")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in methods:
            allowed = ", ".join(methods)
            raise Refusal(405, f"use {allowed} for this path", headers={"allow": allowed})
        response = await methods[method](service, HTTPRequest(scope, receive))
        await response(scope, receive, send)

    return Guard(route, service, key, set(ROUTES))
