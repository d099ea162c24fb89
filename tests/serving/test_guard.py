"""The API key, sizes, times, the log, and what a client can and cannot see."""

import asyncio
import dataclasses
import json
import logging
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import httpx
import pytest
from toy_server import serving, toy_service, wait_until

from grm_jax.serving import cli
from grm_jax.serving.app import ROUTES, application
from grm_jax.serving.guard import JSONLines, log_to_stderr
from grm_jax.serving.limits import Limits

KEY = "a-secret-key"
GROUP = {"prompt": "name a moon", "responses": ["a blue moon", "a red cat"]}


def ask(service, method, path, key="", **options):
    """Answers one request without a socket."""

    async def run():
        transport = httpx.ASGITransport(application(service, key))
        async with httpx.AsyncClient(transport=transport, base_url="http://toy") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def exchange(url: str, data: bytes) -> bytes:
    """Sends bytes, and returns all that comes back until the server closes the connection."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def logged(caplog, count: int) -> list[str]:
    """Returns the lines of the log; a request is logged after it is answered."""
    wait_until(lambda: len(caplog.records) >= count)
    return [JSONLines().format(record) for record in caplog.records]


@pytest.fixture(scope="module")
def hasty():
    """A server that waits half a second for its clients, and takes four connections."""
    with serving(toy_service(read_timeout=0.5, connections=4)) as running:
        yield running


# ---------------------------------------------------------------- key


@pytest.mark.parametrize(
    "header",
    [None, "", KEY, "Bearer", "Bearer ", "Bearer x", f"Basic {KEY}", f"Bearer {KEY}x", "é"],
)
def test_a_request_without_the_key_is_refused(server, header):
    headers = {} if header is None else {"authorization": header.encode()}
    for path, methods in ROUTES.items():
        reply = ask(server.service, *methods, path, KEY, headers=headers)
        expected = 200 if path in ("/healthz", "/readyz") else 401
        assert reply.status_code == expected, path
        assert KEY not in reply.text


def test_the_key_is_accepted_and_not_logged(server, caplog):
    headers = {"authorization": f"bearer {KEY}"}
    server.service.log_texts = True
    try:
        with caplog.at_level(logging.DEBUG, "grm_jax.serving"):
            reply = ask(server.service, "GET", "/v1/score", KEY, headers=headers)
            lines = logged(caplog, 1)
    finally:
        server.service.log_texts = False
    assert reply.status_code == 405  # and not 401
    assert not any(KEY in line for line in lines)


def test_the_key_comes_from_the_environment_or_a_file(monkeypatch, tmp_path, capsys):
    keys = []

    class Stop(ValueError):
        pass

    def record(args, limits):
        raise Stop("recorded")

    monkeypatch.setattr(cli, "service_from", record)
    real = cli.api_key
    monkeypatch.setattr(cli, "api_key", lambda name: keys.append(real(name)) or keys[-1])
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("GRM_API_KEY_FILE", str(file))
    assert cli.main(["--model", "x", "--port", "0", "--host", "0.0.0.0"]) == 2
    monkeypatch.setenv("GRM_API_KEY", "other")
    assert cli.main(["--model", "x", "--port", "0"]) == 2
    assert keys == [KEY, "other"] and "warning" not in capsys.readouterr().err


def test_an_open_address_without_a_key_is_warned_about(monkeypatch, capsys):
    def stop(args, limits):
        raise ValueError("stopped")

    monkeypatch.setattr(cli, "service_from", stop)
    monkeypatch.delenv("GRM_API_KEY", raising=False)
    for host, warns in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        assert cli.main(["--model", "x", "--port", "0", "--host", host]) == 2
        assert ("warning: 0.0.0.0 is reachable" in capsys.readouterr().err) == warns


def test_a_package_that_is_not_installed_is_named():
    code = (
        "import sys; sys.modules['uvicorn'] = None; from grm_jax import cli; cli.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--model", "x"], capture_output=True, text=True
    )
    assert 'uvicorn is not installed: pip install "grm_jax[serve]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_command_line_is_refused_before_the_weights_are_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["--model", "x", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
    assert cli.main(["--model", "x", "--queue", "0"]) == 2
    assert "--queue 0" in capsys.readouterr().err


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_every_limit_is_an_option_with_a_range(field):
    args = cli.parser().parse_args(["--model", "x", f"--{field}", "3"])
    assert getattr(Limits(**{field: getattr(args, field)}), field) == 3
    with pytest.raises(ValueError, match=f"{field} = -1"):
        Limits(**{field: -1})


# ---------------------------------------------------------------- sizes


def test_a_large_body_is_refused(server, monkeypatch):
    small = dataclasses.replace(server.service.limits, body_mib=0.01)
    monkeypatch.setattr(server.service, "limits", small)
    for size in (20_000, 1_000_000):
        reply = server.client.post("/v1/score", content=b"[" * size)
        assert reply.status_code == 413 and "--body_mib" in reply.json()["error"]["message"]

        def parts(size=size):
            yield from [b" " * 1000] * (size // 1000)

        try:  # the connection may be closed while the client still writes
            assert server.client.post("/v1/score", content=parts()).status_code == 413
        except httpx.TransportError:
            assert size == 1_000_000
    assert server.post("/v1/score", {"groups": [GROUP]}).status_code == 200
    assert not server.service.contexts


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deep"),
        (b'{"k": 1, "k": 2}', "twice"),
        (b'{"k": NaN}', "finite"),
        (b'{"k": 1e999}', "finite"),
        (b'{"k": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"groups": [{"prompt": "\\ud800", "responses": ["a"]}]}', "surrogate"),
    ],
)
@pytest.mark.parametrize("path", [p for p, methods in ROUTES.items() if "POST" in methods])
def test_a_body_that_is_no_strict_json_object_is_refused(server, path, body, words):
    reply = server.client.post(path, content=body)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400 and words in message and "\n" not in message, message


# ---------------------------------------------------------------- raw connections


@pytest.mark.parametrize(
    "data, status",
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /v1/score HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: ", 408),  # and nothing more
        (b"POST /v1/score HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{", 408),
        (b"GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404),
        (b"GET /../healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404),
        (b"GET /%2e%2e/healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404),
        (b"DELETE /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 405),
        (b"POST /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 405),
    ],
)
def test_a_malformed_slow_or_wrong_request_is_answered_with_a_reason(hasty, data, status):
    reply = exchange(hasty.url, data)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), reply
    assert b"application/json" in head and json.loads(body)["error"]["message"]


def test_a_silent_or_idle_connection_is_closed(hasty):
    assert exchange(hasty.url, b"") == b""
    reply = exchange(hasty.url, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200") and reply.endswith(b'{"status":"ok"}')


def test_connections_beyond_the_limit_are_refused(hasty):
    address = urlsplit(hasty.url)
    connections = [socket.create_connection((address.hostname, address.port)) for _ in range(6)]
    try:
        replies = []
        for connection in connections:
            connection.settimeout(120)
            replies.append(connection.recv(65536))
        assert any(b"503" in reply and b"4 connections" in reply for reply in replies)
    finally:
        for connection in connections:
            connection.close()


# ---------------------------------------------------------------- errors and the log


def test_an_unexpected_error_has_a_reason_and_no_text_of_the_request(server, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("a blue moon")

    monkeypatch.setattr(server.service, "scored", fail)
    with caplog.at_level(logging.INFO, "grm_jax.serving"):
        reply = server.post("/v1/score", {"groups": [GROUP]})
    assert reply.status_code == 500 and "unexpected KeyError" in reply.json()["error"]["message"]
    (line,) = logged(caplog, 1)
    assert "moon" not in reply.text + line and json.loads(line)["error"] == "KeyError"
    assert any("test_guard.py" in frame for frame in json.loads(line)["frames"])


def test_the_log_has_texts_only_on_request(server, caplog):
    for log_texts in (False, True):
        caplog.clear()
        server.service.log_texts = log_texts
        try:
            with caplog.at_level(logging.INFO, "grm_jax.serving"):
                server.post("/v1/score", {"groups": [GROUP]})
                server.post("/v1/score?prompt=moon", {"groups": [GROUP], "moon": 1})
                lines = logged(caplog, 2)
        finally:
            server.service.log_texts = False
        assert len(lines) == 2 and all(("moon" in line) == log_texts for line in lines)
        assert [json.loads(line)["status"] for line in lines] == [200, 400]


def test_warnings_of_asyncio_are_json_without_texts(capsys):
    loggers = [logging.getLogger(name) for name in ("grm_jax.serving", "uvicorn.error", "asyncio")]
    kept = [(log.handlers, log.propagate, log.level) for log in loggers]
    try:
        log_to_stderr()
        loggers[-1].warning("socket.send() raised exception.")
        loggers[-1].error("Exception in callback put('a blue moon')\nhandle: <a blue moon>")
    finally:
        for log, (log.handlers, log.propagate, level) in zip(loggers, kept):
            log.setLevel(level)
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["socket.send", "Exception in callback put"]


def test_metrics_count_requests_rewards_and_tokens(server):
    def value(name):
        text = server.client.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[-1]) if lines else 0.0

    names = (
        'grm_requests_total{route="/v1/score",status="200"}',
        'grm_request_seconds_count{route="/v1/score"}',
        'grm_rewards_total{status="scored"}',
        "grm_tokens_total",
    )
    before = [value(name) for name in names]
    server.post("/v1/score", {"groups": [GROUP], "k": 1})
    wait_until(lambda: value(names[0]) > before[0])
    after = [value(name) for name in names]
    assert [a - b for a, b in zip(after[:3], before)] == [1, 1, 2] and after[3] > before[3]
    assert value("grm_ready") == 1 and value("grm_rows") == 8
    server.client.get("/a/path/of/somebody")
    assert "somebody" not in server.client.get("/metrics").text
