"""Connects all processes of a job before JAX starts, and ends all of them when one crashes.

JAX's coordinator reports a missing or crashed process with a C++ stack trace that does not name it.
So process 0 also listens on the port after JAX's, every other process connects to it, and the
connections stay open: the kernel closes those of a crashed process, and a lost machine stops its
heartbeats.

    process i -> process 0   {"process": i, "host": "t1v-n-7"}
    process 0 -> process i   {"all": true}   or   {"absent": [3, 7]}   or   {"refused": "..."}
    later, both directions   {} every HEARTBEAT seconds; {"bye": i} before a clean exit
    process 0 -> the others  {"dead": 3, "host": "..."}
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from launch.errors import PEER_LOST, LaunchError

HEARTBEAT = 2.0
SILENCE = 15.0

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
                    if not data or self._handle(lines):
                        selector.unregister(connection)
                        if not data and peer in self.peers:
                            self._died(peer)
                        self.peers.pop(peer, None)

    def _handle(self, lines: list[bytes]) -> bool:
        """Handles a peer's messages; returns whether it leaves."""
        messages = [json.loads(line) for line in lines if line]
        for message in messages:
            if "dead" in message:
                self._died(message["dead"], message["host"])
        return any("bye" in message for message in messages)

    def _died(self, peer: int, host: str | None = None) -> None:
        if self.leaving.is_set() or self.lost.is_set():
            return
        self.lost.set()
        host = host or self.peers[peer][1]
        for other in list(self.peers):
            if other != peer:
                self._send(other, {"dead": peer, "host": host})
        self.on_death(peer, host)


def end_process(peer: int, host: str) -> None:
    """Reports the crash and exits at once: a collective that waits for the peer never returns."""
    print(
        f"launch: process {peer} on {host} died; this process exits. "
        "Start the job again: it resumes from its last checkpoint.",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(PEER_LOST)


def join(
    host: str, port: int, process: int, count: int, timeout: float, on_death: OnDeath = end_process
) -> Peers:
    """Waits until all `count` processes have joined. host, port: where process 0 listens.

    Raises LaunchError after `timeout` seconds, naming the absent processes, or if two processes
    have the same number.
    """
    deadline = time.monotonic() + timeout
    if process == 0:
        connections = _accept_all(port, count, deadline, timeout)
    else:
        connections = {0: (_connect(host, port, process, deadline, timeout), host)}
    peers = Peers(process, connections, on_death)
    peers.watch()
    return peers


def _accept_all(
    port: int, count: int, deadline: float, timeout: float
) -> dict[int, tuple[socket.socket, str]]:
    joined: dict[int, tuple[socket.socket, str]] = {}
    try:
        server = socket.create_server(("", port), backlog=max(count, 16))
    except OSError as error:
        raise LaunchError(
            f"cannot listen on port {port}: {error.strerror}; "
            "another job may use it: choose another --coordinator port"
        ) from error
    with server:
        while len(joined) < count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
                connection.settimeout(10)
                hello = json.loads(_receive_line(connection))
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                absent = sorted(set(range(1, count)) - set(joined))
                _send_all(joined, {"absent": absent})
                raise LaunchError(_absence(absent, count, timeout)) from None
            except (OSError, ValueError):
                continue  # not one of the job's processes
            number, host = hello.get("process"), hello.get("host")
            if not isinstance(number, int) or not 0 < number < count or number in joined:
                other = f" and {joined[number][1]}" if number in joined else ""
                reason = (
                    f"process number {number} of {host}{other} is taken or out of range: "
                    f"give each of the {count} processes its own --process_id"
                )
                _send_all({**joined, -1: (connection, host)}, {"refused": reason})
                raise LaunchError(reason)
            joined[number] = (connection, host)
    _send_all(joined, {"all": True})
    return joined


def _connect(host: str, port: int, process: int, deadline: float, timeout: float) -> socket.socket:
    while True:
        remaining = deadline - time.monotonic()
        try:
            connection = socket.create_connection((host, port), max(0.05, min(5.0, remaining)))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"process 0 did not join: no answer on {host}:{port} after {timeout:.0f} s "
                    f"({error.strerror or error}). Check that it runs and that the port is open "
                    "between the hosts"
                ) from None
            time.sleep(0.2)
    try:
        connection.sendall(_encode({"process": process, "host": socket.gethostname()}))
        connection.settimeout(max(0.05, deadline - time.monotonic()) + 5)
        reply = json.loads(_receive_line(connection))
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"process 0 on {host}:{port} exited while the processes joined: see its output"
        ) from error
    if "refused" in reply:
        raise LaunchError(reply["refused"])
    if "absent" in reply:
        raise LaunchError(_absence(reply["absent"], None, timeout))
    return connection


def _absence(absent: list[int], count: int | None, timeout: float) -> str:
    names = ", ".join(map(str, absent))
    total = f" of {count}" if count else ""
    return (
        f"process{'es' if len(absent) > 1 else ''} {names}{total} did not join within "
        f"{timeout:.0f} s: see the output of worker {names}"
    )


def _encode(message: Mapping[str, Any]) -> bytes:
    return (json.dumps(message) + "\n").encode()


def _send_all(peers: dict[int, tuple[socket.socket, str]], message: Mapping[str, Any]) -> None:
    for connection, _ in peers.values():
        try:
            connection.sendall(_encode(message))
        except OSError:
            pass  # the peer is gone; its own connection reports that


def _receive_line(connection: socket.socket) -> str:
    """Receives one line, byte by byte: the listener handles what follows."""
    data = b""
    while not data.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(data) > 4096:
            raise ValueError("the connection ended before the end of a line")
        data += byte
    return data.decode()
