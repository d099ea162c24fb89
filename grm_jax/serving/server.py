"""Runs the ASGI application: the socket, signals, and the order of start and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future

import uvicorn

from grm_jax.serving.app import application
from grm_jax.serving.limits import HEADER_BYTES
from grm_jax.serving.protocol import protocol_class
from grm_jax.serving.service import Service, warm_up

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """Leaves signals to `serve`; uvicorn would raise each one again after the shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    service: Service, listener: socket.socket, key: str = "", signals: Sequence[signal.Signals] = ()
) -> int:
    """Answers requests until one of the signals, or `service.stop()`; returns the exit status.

    Connections are accepted at once; /readyz fails until every program is compiled. Raises the
    error of the compilation, such as ValueError for non-finite weights.
    """
    loop, limits = asyncio.get_running_loop(), service.limits
    log = logging.getLogger("grm_jax.serving")
    config = uvicorn.Config(
        application(service, key),
        http=protocol_class(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        # Annotated as an int, and used as the seconds of `loop.call_later` alone.
        timeout_keep_alive=limits.read_timeout,  # type: ignore[arg-type]
        timeout_graceful_shutdown=int(limits.grace) + 5,
    )
    server = _Server(config)

    def stop() -> None:
        if service.draining:  # a second signal
            service.cancel_all()
        running = len(service.contexts)
        log.info("stopping", extra={"fields": {"running": running, "grace": limits.grace}})
        service.drain()
        loop.call_later(limits.grace, service.cancel_all)
        server.should_exit = True

    def call_soon(callback: Callable[..., object], *args: object) -> None:
        """Calls it on the loop, from any thread; does nothing after the server has ended."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(callback, *args)

    service.stop = lambda: call_soon(stop)
    for number in signals:
        loop.add_signal_handler(number, stop)
    compiled = service.engine.start(lambda: warm_up(service))

    def started(done: Future[None]) -> None:
        if done.exception() is None:
            service.ready = True
            log.info(
                "ready", extra={"fields": {"url": url_of(listener), "model": service.judge.name}}
            )
        else:
            server.should_exit = True

    compiled.add_done_callback(lambda done: call_soon(started, done))
    log.info("listening", extra={"fields": {"url": url_of(listener)}})
    await server.serve(sockets=[listener])
    service.cancel_all()
    await asyncio.to_thread(service.engine.stop)
    service.workers.shutdown(wait=False, cancel_futures=True)
    if compiled.done() and (error := compiled.exception()) is not None:
        raise error
    log.info("stopped")
    return 0


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Binds the address before the weights are loaded. Raises OSError that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        yield listener


def url_of(listener: socket.socket) -> str:
    """Returns the address of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
