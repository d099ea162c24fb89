"""Connects all processes of a job before JAX starts, and ends all of them when one crashes.

JAX's coordinator reports a missing or crashed process with a C++ stack trace that does not name it.
So process 0 also listens on the port after JAX's, every other process connects to it, and the
connections stay open: the kernel closes those of a crashed process, and a lost machine stops its
heartbeats. Process 0 listens on the address of the slice's network, until all have joined, and
ignores connections without the job's secret.

    process i -> process 0   {"process": i, "host": "t1v-n-7", "secret": "..."}
    process 0 -> process i   {"all": true}, {"absent": [3, 7]}, {"refused": "..."}
                             or {"ignored": true} to a process of another job
    later, both directions   {} every HEARTBEAT seconds; {"bye": i} before a clean exit
    process 0 -> the others  {"dead": 3, "host": "..."}
"""

import contextlib
import hmac
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from grm_jax import strict_json
from grm_jax.hosts.errors import PEER_LOST, LaunchError, WorkersAbsent

SECRET = "GRM_JOB_SECRET"  # environment variable with the secret of the job
HEARTBEAT = 2.0
SILENCE = 15.0
ABORT_SECONDS = 1.0  # in which the others exit: JAX aborts them when its coordinator has gone
LONGEST_LINE = 4096  # bytes
MOST_WAITING = 256  # connections that have not sent their line; the oldest is closed

OnDeath = Callable[[int, str], None]


class Peers:
    """Open connections of one process: `watch()` detects crashed peers, `leave()` exits cleanly."""

    def __init__(
        self, process: int, peers: dict[int, tuple[socket.socket, str]], on_death: OnDeath
    ):
        self.process, self.peers, self.on_death = process, peers, on_death
        self.leaving = threading.Event()
        self.lost = threading.Event()
        self.last_heard = dict.fromkeys(peers, time.monotonic())
        self.lock = threading.Lock()

    def watch(self) -> None:
        for target in (self._listen, self._send_heartbeats):
            threading.Thread(target=target, daemon=True).start()

    def leave(self) -> None:
        self.leaving.set()
        for peer in list(self.peers):
            self._send(peer, {"bye": self.process})

    def fail(self, grace: float) -> None:
        """Lets the others exit: they may report an error of their own for `grace` seconds.

        JAX aborts a process whose coordinator has gone, so process 0 waits until they have exited.
        """
        self.leaving.set()  # this process exits with its own status even if a peer is faster
        time.sleep(grace)
        for peer in list(self.peers):
            self._send(peer, {"dead": self.process, "host": socket.gethostname()})
        deadline = time.monotonic() + grace
        for connection, _ in self.peers.values() if self.process == 0 else ():
            with contextlib.suppress(OSError):
                connection.settimeout(max(0.05, deadline - time.monotonic()))
                while connection.recv(LONGEST_LINE) and time.monotonic() < deadline:
                    pass

    def _send(self, peer: int, message: Mapping[str, Any]) -> None:
        with self.lock:
            try:
                self.peers[peer][0].sendall(_encode(message))
            except (OSError, KeyError):
                pass  # the listener detects broken connections

    def _send_heartbeats(self) -> None:
        while not self.leaving.wait(HEARTBEAT):
            for peer in list(self.peers):
                self._send(peer, {})
                if peer in self.peers and time.monotonic() - self.last_heard[peer] > SILENCE:
                    self._died(peer)

    def _listen(self) -> None:
        buffers = dict.fromkeys(self.peers, b"")
        with selectors.DefaultSelector() as selector:
            for peer, (connection, _) in self.peers.items():
                connection.settimeout(None)
                selector.register(connection, selectors.EVENT_READ, (peer, connection))
            while not self.leaving.is_set() and self.peers:
                for key, _ in selector.select(timeout=HEARTBEAT):
                    peer, connection = key.data
                    try:
                        data = connection.recv(4096)
                    except OSError:
                        data = b""
                    self.last_heard[peer] = time.monotonic()
                    *lines, buffers[peer] = (buffers[peer] + data).split(b"\n")
                    is_lost = not data or len(buffers[peer]) > LONGEST_LINE
                    if is_lost or self._handle(lines):
                        selector.unregister(connection)
                        if is_lost and peer in self.peers:
                            self._died(peer)
                        self.peers.pop(peer, None)

    def _handle(self, lines: list[bytes]) -> bool:
        """Handles a peer's messages; returns whether it leaves."""
        leaves = False
        for line in filter(None, lines):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged line is ignored
                message = strict_json.loads(line)
                leaves |= "bye" in message
                if "dead" in message:
                    self._died(int(message["dead"]), str(message["host"]))
        return leaves

    def _died(self, peer: int, host: str | None = None) -> None:
        if self.leaving.is_set() or self.lost.is_set():
            return
        self.lost.set()
        host = host or self.peers[peer][1]
        for other in list(self.peers):
            if other != peer:
                self._send(other, {"dead": peer, "host": host})
        if self.process == 0 and len(self.peers) > 1:
            time.sleep(ABORT_SECONDS)
        self.on_death(peer, host)


def end_process(
    peer: int,
    host: str,
    program: str = "launch",
    resume: str = "Start the job again: it resumes from its last checkpoint.",
) -> None:
    """Reports the crash and exits at once: a collective that waits for the peer never returns.

    program: its name, before the message.  resume: how to resume the work.
    """
    loss = f"process {peer} on {host} exited unexpectedly; this process exits."
    print(f"{program}: {loss} {resume}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(PEER_LOST)


def join(
    host: str,
    port: int,
    process: int,
    count: int,
    timeout: float,
    on_death: OnDeath = end_process,
    secret: str = "",
) -> Peers:
    """Waits until all `count` processes have joined.

    Args:
      host, port: where process 0 listens.
      secret: the same text in all processes of the job; connections without it are ignored.

    Raises LaunchError after `timeout` seconds, naming the absent processes, or if two processes
    have the same number.
    """
    deadline = time.monotonic() + timeout
    if process == 0:
        with _listen_on(host, port, count) as server:
            connections = _Reception(server, count, secret).accept_all(deadline, timeout)
    else:
        hello = {"process": process, "host": socket.gethostname(), "secret": secret}
        connections = {0: (_connect(host, port, hello, deadline, timeout), host)}
    peers = Peers(process, connections, on_death)
    peers.watch()
    return peers


def own_address(host: str) -> str | None:
    """Returns the address of `host` if this machine has it, so that only its network can connect.

    None, which means all addresses, if the name has several, or if it resolves to a loopback
    address here (as in /etc/hosts of Debian) but not on other hosts.
    """
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, socket.AF_INET)}
        (address,) = addresses
        if address.startswith("127.") and address != host and host != "localhost":
            return None
        with socket.socket() as probe:
            probe.bind((address, 0))
    except (OSError, ValueError):
        return None
    return address


def _listen_on(host: str, port: int, count: int) -> socket.socket:
    try:
        return socket.create_server((own_address(host) or "", port), backlog=max(count, 128))
    except (OSError, OverflowError) as error:
        raise LaunchError(
            f"cannot listen on port {port}: {getattr(error, 'strerror', error)}; "
            "another job may use it: choose another --coordinator port"
        ) from error


class _Reception:
    """Process 0 until all have joined: serves all connections at once, so that none delays another.

    It closes connections that do not begin with a line of the job ("strangers").
    """

    def __init__(self, server: socket.socket, count: int, secret: str):
        self.server, self.count, self.secret = server, count, secret
        self.joined: dict[int, tuple[socket.socket, str]] = {}
        self.waiting: dict[socket.socket, bytes] = {}  # without a whole line, the oldest first
        self.strangers = 0
        self.selector = selectors.DefaultSelector()
        server.setblocking(False)
        self.selector.register(server, selectors.EVENT_READ)

    def accept_all(self, deadline: float, timeout: float) -> dict[int, tuple[socket.socket, str]]:
        """Returns {number: (connection, host)} of all other processes. Raises as `join`."""
        try:
            while len(self.joined) < self.count - 1:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    absent = sorted(set(range(1, self.count)) - set(self.joined))
                    _send_all(self.joined, {"absent": absent})
                    raise WorkersAbsent(_absence(absent, self.count, timeout, self.strangers))
                for key, _ in self.selector.select(remaining):
                    connection = key.fileobj
                    if connection is self.server:
                        self._admit()
                    elif isinstance(connection, socket.socket) and connection.fileno() >= 0:
                        self._receive(connection)
            _send_all(self.joined, {"all": True})
            return self.joined
        finally:
            self.selector.close()
            for connection in self.waiting:
                connection.close()

    def _admit(self) -> None:
        try:
            connection, _ = self.server.accept()
        except OSError:
            return  # the connection was closed, or this process has no more file descriptors
        connection.setblocking(False)
        self.waiting[connection] = b""
        self.selector.register(connection, selectors.EVENT_READ)
        if len(self.waiting) > MOST_WAITING:
            self._close(next(iter(self.waiting)))

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if connection not in self.waiting:  # of a process that has joined
            if not data:  # it closed the connection, and may join again
                self.joined = {i: peer for i, peer in self.joined.items() if peer[0] != connection}
                self._close(connection)
            return
        line = self.waiting[connection] + data
        if b"\n" in line:
            self._greet(connection, line.partition(b"\n")[0])
        elif data and len(line) <= LONGEST_LINE:
            self.waiting[connection] = line
        else:
            self._close(connection)

    def _greet(self, connection: socket.socket, line: bytes) -> None:
        """Adds a process of the job; closes any other connection."""
        number, host, is_ours = _parse_hello(line, self.secret)
        if not is_ours:
            if host:  # a launcher's line with another secret: a process of another job
                _send_all({0: (connection, host)}, {"ignored": True})
            return self._close(connection)
        if not 0 < number < self.count or number in self.joined:
            other = f" and {self.joined[number][1]}" if number in self.joined else ""
            reason = (
                f"process number {number} of {host}{other} is taken or out of range: "
                f"give each of the {self.count} processes its own --process_id"
            )
            _send_all({**self.joined, -1: (connection, host)}, {"refused": reason})
            raise LaunchError(reason)
        del self.waiting[connection]
        self.joined[number] = (connection, host)

    def _close(self, connection: socket.socket) -> None:
        """Closes a connection, and counts it if it has not joined."""
        self.strangers += self.waiting.pop(connection, None) is not None
        self.selector.unregister(connection)
        connection.close()


def _parse_hello(line: bytes, secret: str) -> tuple[int, str, bool]:
    """Returns (number, host, whether the secret is right); (0, "", False) for any other line."""
    try:
        hello = strict_json.loads(line)
        number, host = hello["process"], hello["host"]
        if type(number) is not int or not isinstance(host, str) or not host.isprintable():
            return 0, "", False
        other = str(hello.get("secret", "")).encode()
        return number, host[:253], hmac.compare_digest(other, secret.encode())
    except Exception:  # noqa: BLE001  bytes of another program may raise anything
        return 0, "", False


def _connect(
    host: str, port: int, hello: Mapping[str, Any], deadline: float, timeout: float
) -> socket.socket:
    """Joins process 0. Retries until the deadline, also if another program answers there."""
    was_closed, reason = False, ""
    while True:
        try:
            remaining = max(0.05, deadline - time.monotonic())
            connection = socket.create_connection((host, port), min(5.0, remaining))
        except (OSError, UnicodeError) as error:
            if was_closed and isinstance(error, ConnectionRefusedError):
                raise LaunchError(
                    f"process 0 on {host}:{port} exited while the processes joined: see its output"
                ) from None
            reason = reason or str(getattr(error, "strerror", None) or error)
        else:
            reply = _exchange(connection, hello, deadline + 5)
            if "refused" in reply:
                raise LaunchError(str(reply["refused"]))
            if "absent" in reply:
                raise WorkersAbsent(_absence(reply["absent"], None, timeout))
            if "all" in reply:
                return connection
            connection.close()
            was_closed, reason = not reply, "another program answers there"
            if "ignored" in reply:
                reason = f"another job answers there: give the same --config or ${SECRET}"
        if time.monotonic() > deadline:
            raise WorkersAbsent(
                f"process 0 did not join: no answer on {host}:{port} after {timeout:.0f} s "
                f"({reason}). Check that it runs and that the port is open between the hosts"
            )
        time.sleep(0.2)


def _exchange(
    connection: socket.socket, hello: Mapping[str, Any], deadline: float
) -> dict[str, Any]:
    """Sends the hello and returns the reply, {} for none."""
    try:
        connection.settimeout(5)
        connection.sendall(_encode(hello))
        data = b""
        while not data.endswith(b"\n"):  # byte by byte: the listener handles what follows
            connection.settimeout(max(0.05, deadline - time.monotonic()))
            byte = connection.recv(1)
            if not byte or len(data) > LONGEST_LINE or time.monotonic() > deadline:
                return {}
            data += byte
        reply = strict_json.loads(data)
    except (OSError, ValueError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _absence(absent: object, count: int | None, timeout: float, strangers: int = 0) -> str:
    numbers = absent if isinstance(absent, list) else []
    names = ", ".join(map(str, numbers))
    total = f" of {count}" if count else ""
    ignored = f" ({strangers} connections of other programs were ignored)" if strangers else ""
    return (
        f"process{'es' if len(numbers) > 1 else ''} {names}{total} did not join within "
        f"{timeout:.0f} s{ignored}: see the output of worker {names}"
    )


def _encode(message: Mapping[str, Any]) -> bytes:
    return (strict_json.dumps(message) + "\n").encode()


def _send_all(peers: dict[int, tuple[socket.socket, str]], message: Mapping[str, Any]) -> None:
    for connection, _ in peers.values():
        try:
            connection.sendall(_encode(message))
        except OSError:
            pass  # the peer is gone; its own connection reports that
