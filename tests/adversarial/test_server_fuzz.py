"""Hostile requests to the server: each is answered with a result or a reason, and it stays up.

pytest tests/adversarial/test_server_fuzz.py --run slow      # 10,000 requests
"""

import json
import random
import socket
import struct
from urllib.parse import urlsplit

import fuzz
import pytest
from toy_server import serving, toy_judge, toy_service

from grm_jax.serving.app import ROUTES
from grm_jax.serving.openapi import BODIES, SCORE_EXAMPLE

SECRET = "zebra"  # a text of another client
EXAMPLES = {
    path: body.model_config["json_schema_extra"]["example"] for path, body in BODIES.items()
}
EXAMPLES["/v1/score"] = SCORE_EXAMPLE
HEADERS = (
    b"content-length: 5",
    b"content-length: -1",
    b"content-length: 99999999999999999999",
    b"content-length: 4\r\ncontent-length: 5",
    b"transfer-encoding: chunked",
    b"transfer-encoding: chunked\r\ncontent-length: 3",
    b"transfer-encoding: gzip",
    b"content-encoding: gzip",
    b"expect: 100-continue",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: a",
    b"connection: upgrade, http2-settings\r\nupgrade: h2c",
    b"authorization: Bearer \xff\x00",
    b"cookie: " + b"a" * 9000,
    b"x: " + b"a" * 40_000,
    b"x" * 20_000 + b": 1",
    b"\r\n".join(b"x%d: y" % i for i in range(2000)),
    b"host: a\r\nhost: b",
    b"x: a\r\n b",
    b": empty",
    b"x: a\x00b",
    b"x: \xe9",
    b"content-type: text/plain",
    b"content-type: multipart/form-data; boundary=x",
)
PATHS = (
    *("/", "//v1/score", "/v1/score/", "/V1/SCORE", "/v1/score%00", "/v1%2fscore", "/v1/./score"),
    *("/v1/../v1/score", "/%2e%2e/%2e%2e/etc/passwd", "/..\\..\\x", "/v1/score;a=b", "/v1/score#x"),
    *("*", "http://other/v1/score", "/" + "a" * 9000, "/\xff", "/%ff%fe", "/?" + "a=b&" * 2000),
)
METHODS = ("GET", "POST", "HEAD", "PUT", "OPTIONS", "TRACE", "CONNECT", "get", "P\xd6ST", "X" * 300)


def mutated(rng: random.Random) -> bytes:
    """Returns the bytes of one request, damaged in one of its parts."""
    path = rng.choice(list(EXAMPLES))
    method, target, headers = "POST", path, []
    body = json.dumps(small(EXAMPLES[path])).encode()
    part = rng.choice(("json", "json", "json", "json", "bytes", "head", "path", "method", "raw"))
    if part == "json":
        value = fuzz.change_json(rng, small(EXAMPLES[path]), rng.randint(1, 3))
        body = json.dumps(value).encode("utf-8", "surrogatepass")
    elif part == "bytes":
        body = fuzz.change_bytes(rng, body, rng.randint(1, 4))
    elif part == "head":
        headers = rng.sample(HEADERS, rng.randint(1, 2))
    elif part == "path":
        target = rng.choice([*PATHS, *ROUTES])
    elif part == "method":
        method, target = rng.choice(METHODS), rng.choice(list(ROUTES))
    lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"host: toy", b"connection: close"]
    if not any(b"content-length" in h or b"chunked" in h for h in headers):
        lines.append(b"content-length: %d" % len(body))
    data = b"\r\n".join([*lines, *headers, b"", b""]) + body
    return fuzz.change_bytes(rng, data, rng.randint(1, 3)) if part == "raw" else data


def small(value):
    """Returns an example that is cheap to answer."""
    cheap = {"k": 1, "n": 1, "max_tokens": 2, "timeout": 5}
    names = {"k", "n", "max_tokens"} & set(value) | {"timeout"}
    return value | {name: cheap[name] for name in names}


def exchange(url: str, data: bytes, rng: random.Random) -> bytes:
    """Sends bytes, sometimes in pieces, and returns the answer; b"" if the connection was reset."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        try:
            cut = rng.randrange(len(data) + 1)
            connection.sendall(data[:cut])
            connection.sendall(data[cut:])
            if rng.random() < 0.1:  # hangs up, with a reset
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return b""
            if rng.random() < 0.1:  # the server takes this for a hang-up
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := connection.recv(65536):
                received += part
            return received
        except ConnectionError:
            return b""


@pytest.fixture(scope="module")
def running():
    judge, limits = toy_judge(scores=False), {"read_timeout": 0.25, "cohort_timeout": 1.0}
    with serving(toy_service(judge, timeout=30.0, **limits)) as server:
        yield server


def test_hostile_requests_are_answered_with_a_reason(running, record_property, cases):
    secret = {"groups": [{"prompt": SECRET, "responses": [SECRET, "moon"]}], "k": 1}
    assert running.post("/v1/score", secret).status_code == 200

    def check(case):
        data, rng = case
        reply = exchange(running.url, data, rng)
        assert SECRET.encode() not in reply
        if not reply:
            return
        head, _, body = reply.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head, _, body = body.partition(b"\r\n\r\n")
        if not head:  # the client closed its side before the request was complete
            return
        assert head.startswith(b"HTTP/1.1 "), reply[:200]
        status = int(head.split()[1])
        assert status < 500 or status in (503, 504), reply[:500]
        if status >= 400 and not data.startswith(b"HEAD"):
            message = json.loads(body)["error"]["message"]
            assert message and "\n" not in message
            raise ValueError(message[:80].replace("\n", " "))

    def draws():
        for i, rng in cases(fast=150, full=10_000):
            yield f"request {i}", (mutated(rng), rng)

    fuzz.run("requests", draws(), check, record_property, seconds=60)
    assert running.client.get("/healthz").status_code == 200
    assert running.post("/v1/score", secret).status_code == 200
