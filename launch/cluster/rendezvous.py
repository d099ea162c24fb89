"""All processes of a job meet before JAX starts, and learn at once when one of them dies.

JAX's own coordinator ends a job whose members do not come, or die, with a C++ stack trace that names nobody. So process 0 listens on a port
beside JAX's, the others report to it, and the connections stay open: the kernel closes those of a process that dies, and a machine that
vanishes stops beating.

    process i:  {"process": i, "host": "t1v-n-7"}          ->
                <- {"all": true}   or   {"absent": [3, 7]}
    later:      a beat every BEAT seconds, both ways;  {"bye": i} before a clean end;  {"dead": 3, "host": "..."} from process 0 to the rest
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from launch.errors import PEER_LOST, LaunchError

BEAT = 2.0
SILENCE = 15.0


class Meeting:
    """The open connections of one process. `watch()` starts looking after the others, `leave()` ends it cleanly."""

    def __init__(
        self,
        process: int,
        peers: dict[int, tuple[socket.socket, str]],
        on_death: Callable[[int, str], None],
    ):
        self.process, self.peers, self.on_death = process, peers, on_death
        self.leaving = threading.Event()
        self.lost = threading.Event()
        self.heard = dict.fromkeys(peers, time.monotonic())
        self.lock = threading.Lock()

    def watch(self) -> None:
        for target in (self._listen, self._beat):
            threading.Thread(target=target, daemon=True).start()

    def leave(self) -> None:
        self.leaving.set()
        for peer in list(self.peers):
            self._send(peer, {"bye": self.process})

    def _send(self, peer: int, message: dict) -> None:
        with self.lock:
            try:
                self.peers[peer][0].sendall((json.dumps(message) + "\n").encode())
            except (OSError, KeyError):
                pass  # a broken connection is seen by the listener

    def _beat(self) -> None:
        while not self.leaving.wait(BEAT):
            for peer in list(self.peers):
                self._send(peer, {})
                if peer in self.peers and time.monotonic() - self.heard[peer] > SILENCE:
                    self._died(peer)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            buffers = {}
            for peer, (connection, _) in self.peers.items():
                connection.settimeout(None)
                selector.register(connection, selectors.EVENT_READ, peer)
                buffers[peer] = b""
            while not self.leaving.is_set() and self.peers:
                for key, _ in selector.select(timeout=BEAT):
                    peer = key.data
                    try:
                        data = key.fileobj.recv(4096)  # type: ignore[union-attr]
                    except OSError:
                        data = b""
                    self.heard[peer] = time.monotonic()
                    *lines, buffers[peer] = (buffers[peer] + data).split(b"\n")
                    gone = not data
                    for message in map(json.loads, filter(None, lines)):
                        if "dead" in message:
                            self._died(message["dead"], message["host"])
                        gone |= "bye" in message
                    if gone:
                        selector.unregister(key.fileobj)
                        if not data and peer in self.peers:
                            self._died(peer)
                        self.peers.pop(peer, None)

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
    """One line, and out: a collective that waits for a dead process cannot be interrupted any other way."""
    print(
        f"launch: process {peer} on {host} died; this process ends. Start the job again: it goes on from its last checkpoint.",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(PEER_LOST)


def meet(
    host: str,
    port: int,
    process: int,
    count: int,
    timeout: float,
    on_death: Callable[[int, str], None] = end_process,
) -> Meeting:
    """Waits until all `count` processes are there. `host`, `port`: where process 0 listens.

    Raises LaunchError after `timeout` seconds, naming who did not come; or if two processes claim one number.
    """
    deadline = time.monotonic() + timeout
    own = socket.gethostname()
    if process == 0:
        peers = _gather(port, count, deadline, timeout)
    else:
        peers = {0: (_report(host, port, process, own, deadline, timeout), host)}
    meeting = Meeting(process, peers, on_death)
    meeting.watch()
    return meeting


def _gather(
    port: int, count: int, deadline: float, timeout: float
) -> dict[int, tuple[socket.socket, str]]:
    came: dict[int, tuple[socket.socket, str]] = {}
    try:
        server = socket.create_server(("", port), backlog=max(count, 16))
    except OSError as error:
        raise LaunchError(
            f"cannot listen on port {port}: {error.strerror}; another job may hold it: choose another --coordinator port"
        ) from error
    with server:
        while len(came) < count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
                connection.settimeout(10)
                hello = json.loads(_line(connection))
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                absent = sorted(set(range(1, count)) - set(came))
                _tell(came, {"absent": absent})
                raise LaunchError(_absence(absent, count, timeout)) from None
            except (OSError, ValueError):
                continue  # something else knocked on the port
            number, host = hello.get("process"), hello.get("host")
            if not isinstance(number, int) or not 0 < number < count or number in came:
                other = f" and {came[number][1]}" if number in came else ""
                reason = f"process number {number} of {host}{other} is taken or out of range: give each of the {count} processes its own --process_id"
                _tell({**came, -1: (connection, host)}, {"refused": reason})
                raise LaunchError(reason)
            came[number] = (connection, host)
    _tell(came, {"all": True})
    return came


def _report(
    host: str, port: int, process: int, own: str, deadline: float, timeout: float
) -> socket.socket:
    connection = None
    while connection is None:
        try:
            connection = socket.create_connection(
                (host, port), timeout=max(0.05, min(5.0, deadline - time.monotonic()))
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"process 0 did not come: nothing answers on {host}:{port} after {timeout:.0f} s ({error.strerror or error}). "
                    "Is it started, and is the port open between the hosts?"
                ) from None
            time.sleep(0.2)
    try:
        connection.sendall((json.dumps({"process": process, "host": own}) + "\n").encode())
        connection.settimeout(max(0.05, deadline - time.monotonic()) + 5)
        answer = json.loads(_line(connection))
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"process 0 on {host}:{port} went away while the processes gathered: see its own output"
        ) from error
    if "refused" in answer:
        raise LaunchError(answer["refused"])
    if "absent" in answer:
        raise LaunchError(_absence(answer["absent"], None, timeout))
    return connection


def _absence(absent: list[int], count: int | None, timeout: float) -> str:
    names = ", ".join(map(str, absent))
    of = f" of {count}" if count else ""
    return f"process{'es' if len(absent) > 1 else ''} {names}{of} did not come within {timeout:.0f} s: look at the output of worker {names}"


def _tell(peers: dict[int, tuple[socket.socket, str]], message: dict) -> None:
    for connection, _ in peers.values():
        try:
            connection.sendall((json.dumps(message) + "\n").encode())
        except OSError:
            pass  # it has gone; whoever looks after it will notice


def _line(connection: socket.socket) -> str:
    """One line, a byte at a time: what follows belongs to the listener."""
    data = b""
    while not data.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(data) > 4096:
            raise ValueError("the connection ended in the middle of a line")
        data += byte
    return data.decode()
