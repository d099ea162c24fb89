"""Ports for tests that start several processes."""

import contextlib
import random
import socket

# Below the ports that systems give to outgoing connections (32768 and more on Linux, 49152 and more
# elsewhere), so that no connection takes one before the test listens on it.
RANGE = range(20000, 32000, 2)


def free_pair() -> int:
    """Returns a free port of this machine whose successor is free as well."""
    draw = random.SystemRandom()  # tests seed the generator that processes share
    while True:
        port = draw.choice(RANGE)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in (port, port + 1):
                stack.enter_context(socket.socket()).bind(("", number))
            return port
