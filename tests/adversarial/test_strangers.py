"""Strangers at the port where the processes of a job join: none takes a place or delays one."""

import contextlib
import json
import random
import socket
import struct
import threading
import time

import fuzz
import ports
import pytest

from grm_jax.hosts import distributed, rendezvous
from launch.errors import LaunchError

HOST, SECRET = "127.0.0.1", "the job's"
HELLO = {"process": 1, "host": "stranger", "secret": "another job's"}
RESET, SILENT = "reset", "silent"


def line(value):
    return (value if isinstance(value, str) else json.dumps(value)).encode() + b"\n"


STRANGERS = {
    "list": [line([1])],
    "number": [line(5)],
    "null": [line(None)],
    "text": [line('"process"')],
    "no line": [b"abc"],
    "empty line": [b"\n"],
    "deep": [line("[" * 200_000)],
    "deep object": [line('{"process":' * 50_000)],
    "long line": [b"x" * 1_000_000],
    "number 99": [line({**HELLO, "process": 99})],
    "number true": [line({**HELLO, "process": True})],
    "number 1.0": [line({**HELLO, "process": 1.0})],
    "number 10**400": [line('{"process": 1' + "0" * 400 + ', "host": "x"}')],
    "no secret": [line({"process": 1, "host": "stranger"})],
    "a null secret": [line({**HELLO, "secret": None})],
    "a secret of another type": [line({**HELLO, "secret": [SECRET]})],
    "another secret": [line(HELLO)],
    "half a surrogate pair": [line({**HELLO, "secret": "\ud800", "host": "\ud800"})],
    "escapes of a terminal": [line({**HELLO, "host": "\x1b[31m"})],
    "not UTF-8": [b'{"process": 1, "host": "\xff"}\n'],
    "HTTP": [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"],
    "TLS": [b"\x16\x03\x01\x02\x00" + b"\x01" * 512],
    "dead": [line({"dead": 1, "host": "x"})],
    "silence": [SILENT],
    "reset": [line(HELLO), RESET],
    "half a line": [line(HELLO)[:-5]],
    "a byte at a time": [line(HELLO)[i : i + 1] for i in range(20)],
}


def call_on(port, steps, kept):
    """Connects, and sends the steps; keeps silent connections open."""
    with contextlib.suppress(OSError):
        connection = socket.create_connection((HOST, port), 60)
        for step in steps:
            if step == RESET:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif isinstance(step, bytes):
                connection.sendall(step)
                time.sleep(0.005 if len(steps) > 3 else 0)
        if steps[-1] in (RESET, SILENT):
            return connection.close() if steps[-1] == RESET else kept.append(connection)
        if random.random() < 0.5:
            connection.close()
        else:
            kept.append(connection)


@pytest.fixture
def port():
    return ports.free_pair()


def in_thread(outcomes, port, process, count=2, timeout=120.0, secret=SECRET):
    """Starts `join` of a process in a thread; outcomes[process] is its result or its error."""

    def run():
        try:
            outcomes[process] = rendezvous.join(
                HOST, port, process, count, timeout, lambda *_: None, secret
            )
        except LaunchError as error:
            outcomes[process] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_until_listening(port):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            return socket.create_connection((HOST, port), 60).close()
        time.sleep(0.01)
    raise AssertionError("process 0 does not listen")


def join_beside(strangers, are_first=False):
    """Two processes join while strangers call; raises AssertionError unless they do.

    The strangers keep their connections, and a process that waits for one fails after 120 s.
    are_first: the second process joins after all strangers have called.
    """
    port, outcomes, kept = ports.free_pair(), {}, []
    first = in_thread(outcomes, port, 0)
    try:
        wait_until_listening(port)
        callers = [threading.Thread(target=call_on, args=(port, s, kept)) for s in strangers]
        [caller.start() for caller in callers]
        [caller.join() for caller in callers if are_first]
        second = in_thread(outcomes, port, 1)
        [thread.join() for thread in (first, second, *callers)]
        assert all(isinstance(o, rendezvous.Peers) for o in outcomes.values()), outcomes
        (_, host) = outcomes[0].peers[1]
        assert host == socket.gethostname()
    finally:
        [o.leave() for o in outcomes.values() if isinstance(o, rendezvous.Peers)]
        [connection.close() for connection in kept]


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_takes_no_place(name):
    join_beside([STRANGERS[name]])


def test_many_strangers_do_not_delay_a_process():
    """108 strangers, within the backlog of 128: 1.2 s for each of them passes the deadline."""
    join_beside([*STRANGERS.values()] * 4, are_first=True)


def test_lines_of_strangers(record_property, cases):
    def draw(rng):
        kind = rng.choice(["named", "json", "json", "bytes", "noise", "many"])
        if kind == "named":
            name = rng.choice(list(STRANGERS))
            return name, [STRANGERS[name]]
        if kind == "json":
            value = fuzz.change_json(rng, HELLO)
            if isinstance(value, dict) and rng.random() < 0.3:
                value["process"] = rng.choice(fuzz.ODD_VALUES)
            return f"json {value!r:.200}", [[line(value)]]
        if kind == "bytes":
            data = fuzz.change_bytes(rng, line(HELLO), rng.choice([1, 2, 8]))
            return f"bytes {data!r:.200}", [[data]]
        if kind == "noise":
            data = rng.randbytes(rng.randrange(1, 6000))
            return f"noise {data!r:.100}", [[data]]
        names = [rng.choice(list(STRANGERS)) for _ in range(rng.randrange(2, 8))]
        return f"many {names}", [STRANGERS[name] for name in names]

    draws = (draw(rng) for _, rng in cases(fast=40, full=1000))
    fuzz.run("rendezvous lines", draws, join_beside, record_property)


def test_strangers_do_not_move_the_deadline(port):
    """Six silent connections, one byte at a time, and a flood; the absent process is named."""
    outcomes, kept, stop = {}, [], threading.Event()
    thread = in_thread(outcomes, port, 0, timeout=3.0)
    wait_until_listening(port)

    def trickle():
        with contextlib.suppress(OSError), socket.create_connection((HOST, port)) as connection:
            for byte in line(HELLO)[:-1] * 20:
                connection.sendall(bytes([byte]))
                if stop.wait(0.1):
                    return

    threading.Thread(target=trickle, daemon=True).start()
    for _ in range(rendezvous.MOST_WAITING + 50):
        call_on(port, [SILENT], kept)
    thread.join(60)  # the bytes trickle for longer
    assert not thread.is_alive()
    stop.set()
    [connection.close() for connection in kept]
    assert "process 1 of 2 did not join within 3 s" in str(outcomes[0])
    assert "connections of other programs were ignored" in str(outcomes[0])


def test_the_oldest_silent_connection_makes_room_for_others(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "MOST_WAITING", 4)
    outcomes, kept = {}, []
    first = in_thread(outcomes, port, 0)
    wait_until_listening(port)
    for _ in range(5):
        call_on(port, [SILENT], kept)
    kept[0].settimeout(60)
    assert kept[0].recv(1) == b""  # closed long before the deadline
    [thread.join(60) for thread in (first, in_thread(outcomes, port, 1))]
    [o.leave() for o in outcomes.values()]
    [connection.close() for connection in kept]


def test_a_process_of_another_job_is_told_apart(port):
    outcomes = {}
    threads = [
        in_thread(outcomes, port, 0, timeout=3.0),
        in_thread(outcomes, port, 1, timeout=2.0, secret="another"),
    ]
    [thread.join(60) for thread in threads]
    assert "process 1 of 2 did not join" in str(outcomes[0])
    assert "another job answers there: give the same --config or $GRM_JOB_SECRET" in str(
        outcomes[1]
    )


def test_a_process_that_leaves_while_others_join_can_join_again(port):
    outcomes = {}
    first = in_thread(outcomes, port, 0, count=3)
    wait_until_listening(port)
    hello = line({"process": 1, "host": "a", "secret": SECRET})
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(hello)
        time.sleep(0.2)
    others = [in_thread(outcomes, port, process, count=3) for process in (1, 2)]
    [thread.join(60) for thread in (first, *others)]
    assert all(isinstance(o, rendezvous.Peers) for o in outcomes.values()), outcomes
    [peers.leave() for peers in outcomes.values()]


@pytest.mark.parametrize(
    "reply",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"5\n", b"[" * 9000, b'{"all"', line({"some": 1})],
)
def test_another_program_in_the_place_of_process_0_is_reported(reply):
    with socket.create_server((HOST, 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(reply)
                    connection.recv(4096)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(LaunchError, match="process 0 did not join: .*another program answers"):
            rendezvous.join(HOST, server.getsockname()[1], 1, 2, 2.0, lambda *_: None, SECRET)


def test_damaged_lines_of_a_peer_are_ignored(port):
    outcomes, deaths = {}, []
    thread = in_thread(outcomes, port, 0)
    wait_until_listening(port)
    connection = socket.create_connection((HOST, port))
    connection.sendall(line({"process": 1, "host": "a", "secret": SECRET}))
    thread.join(60)
    peers = outcomes[0]
    peers.on_death = lambda *names: deaths.append(names)
    for data in (b"5\n", b"[\n", b"\xff\n", line({"dead": "x"}), line({"dead": [1], "host": 5})):
        connection.sendall(data)
    time.sleep(0.2)
    assert not deaths
    connection.close()
    for _ in range(1200):
        if deaths:
            break
        time.sleep(0.05)
    assert deaths == [(1, "a")]


def test_process_0_listens_on_one_address_where_its_name_has_one(monkeypatch):
    assert rendezvous.own_address("127.0.0.1") == "127.0.0.1"
    assert rendezvous.own_address("192.0.2.1") is None  # of another machine
    assert rendezvous.own_address("no such host") is None

    def resolve(*addresses):
        infos = [(socket.AF_INET, 1, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: infos)

    resolve("127.0.1.1")  # Debian's /etc/hosts; other hosts see another address
    assert rendezvous.own_address("worker-0") is None
    resolve("127.0.0.1", "127.0.0.2")
    assert rendezvous.own_address("worker-0") is None


def test_the_secret_is_that_of_the_launcher_or_of_the_experiment(monkeypatch):
    monkeypatch.delenv(rendezvous.SECRET, raising=False)
    derived = distributed.job_secret("experiments/spct_27b.py")
    assert derived == distributed.job_secret("/home/a/experiments/spct_27b.py")
    assert derived != distributed.job_secret("experiments/spct_2b.py")
    monkeypatch.setenv(rendezvous.SECRET, "abc")
    assert distributed.job_secret("experiments/spct_27b.py") == "abc"
