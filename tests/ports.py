"""Ports for tests that start several processes."""

import contextlib
import socket


def free_pair() -> int:
    """Returns a free port of this machine whose successor is free as well."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
