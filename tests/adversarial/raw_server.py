"""A loopback server that plays byte for byte what a test draws, and replies of every kind for it.

A script is a list of steps: bytes to send, a number of seconds to sleep, or RESET. The connection
is closed at its end.
"""

import contextlib
import gzip
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import fuzz

RESET = "reset"
GOOD = r"analysis, then \boxed{2, 9}"


class RawServer:
    """Answers each request with the steps of script(request body); counts the requests."""

    def __init__(self, script: Callable[[dict], list]):
        self.script, self.requests = script, []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            connection.settimeout(60)
            head, body = b"", b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return
                head += data
                if head.startswith(b"\x16"):  # TLS
                    return connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            head, _, body = head.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            while len(body) < length:
                body += connection.recv(65536)
            self.requests.append((head, body))
            for step in self.script(json.loads(body or b"{}")):
                if step == RESET:  # closes with RST
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                elif isinstance(step, bytes):
                    connection.sendall(step)
                else:
                    time.sleep(step)


@contextlib.contextmanager
def serving(script: Callable[[dict], list]) -> Iterator[RawServer]:
    server = RawServer(script)
    try:
        yield server
    finally:
        server.listener.close()


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """Returns a whole response; a header of None is skipped."""
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def reply(content: object = GOOD, finish: object = "stop", **more: object) -> dict:
    message = {"role": "assistant", "content": content, **more}
    usage = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def chunked(body: bytes, size: int = 7) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def trickled(data: bytes, seconds: float, size: int = 1) -> list:
    return [step for i in range(0, len(data), size) for step in (data[i : i + size], seconds)]


CHUNKED = {"Content_Length": None, "Transfer_Encoding": "chunked"}
LIMIT = 0.3  # seconds of the client for one try of WAITING
BODY = encoded(reply())
WHOLE = http(BODY)
LONG = reply("x" * 3000)
PARTS = [{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]

# name -> steps; the client must return GOOD.
ACCEPTED = {
    "whole": [WHOLE],
    "parts": [http(encoded(reply(PARTS)))],
    "parts with a thought": [http(encoded(reply([{"type": "thinking", "thinking": []}, *PARTS])))],
    "chunked": [http(b"", **CHUNKED) + chunked(BODY)],
    "closed instead of a length": [http(BODY, Content_Length=None)],
    "gzip": [http(gzip.compress(BODY), Content_Encoding="gzip")],
    "in pieces": trickled(WHOLE, 0.001, 20),
    "no content type": [http(BODY, Content_Type=None)],
    "charset": [http(BODY, Content_Type="application/json; charset=utf-8")],
    "byte order mark": [http(b"\xef\xbb\xbf" + BODY)],
    "finish eos": [http(encoded(reply(finish="EOS_TOKEN")))],
    "finish null": [http(encoded(reply(finish=None)))],
    "null error": [http(encoded({**reply(refusal=None, tool_calls=[]), "error": None}))],
    "odd usage": [http(encoded({**reply(), "usage": {"prompt_tokens": -1, "total_tokens": ""}}))],
    "no usage": [http(encoded({"choices": reply()["choices"]}))],
    "100 first": [b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE],
    "a second response": [WHOLE + http(encoded(reply("of another request")))],
}  # fmt: skip

# name -> steps; the client must not return a text.
REFUSED = {
    "silence": [100.0],
    "closed": [],
    "reset": [RESET],
    "reset in the body": [WHOLE[:-30], RESET],
    "half a response": [WHOLE[: len(WHOLE) // 2]],
    "half a head": [b"HTTP/1.1 200 OK\r\nContent-Ty"],
    "half, then silence": [WHOLE[:-30], 100.0],
    "trickling head": trickled(WHOLE, 0.05),
    "trickling body": [http(BODY)[: -len(BODY)], *trickled(BODY, 0.05)],
    "bad chunk size": [http(b"", **CHUNKED) + b"zz\r\n" + BODY],
    "huge chunk size": [http(b"", **CHUNKED) + b"ffffffffffffffffffff\r\n" + BODY],
    "half a chunk": [http(b"", **CHUNKED) + chunked(BODY)[:-40]],
    "no last chunk": [http(b"", **CHUNKED) + chunked(BODY)[:-5]],
    "bad status line": [b"HTTP/1.1 OK 200\r\n\r\n" + BODY],
    "no status line": [BODY],
    "HTTP/2": [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18],
    "TLS": [b"\x16\x03\x01\x02\x00" + b"\x01" * 512],
    "a long header": [b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n" + BODY],
    "many headers": [b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 60_000 + b"\r\n" + BODY],
    "a header of control bytes": [b"HTTP/1.1 200 OK\r\nX: \x00\x1b[31m\r\n\r\n" + BODY],
    "two lengths": [http(BODY, content_length="3")],
    "a negative length": [http(BODY, Content_Length="-5")],
    "a short length": [http(BODY, Content_Length=str(len(BODY) - 4))],
    "a long length": [http(BODY, Content_Length=str(len(BODY) + 40)), 100.0],
    "no end of 100": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 20_000,
    "deep JSON": [http(b"[" * 200_000)],
    "deep content": [http(BODY.replace(b'"stop"', b"[" * 900 + b"]" * 900))],
    "not UTF-8": [http(b'{"choices": "\xff\xfe"}')],
    "NaN": [http(BODY.replace(b"12", b"NaN"))],
    "empty body": [http(b"")],
    "HTML": [http(b"<html><h1>502 Bad Gateway</h1>\n</html>", Content_Type="text/html")],
    "HTML as JSON": [http(b"<html><h1>502 Bad Gateway</h1>\n</html>")],
    "a stream of events": [http(b"data: " + BODY + b"\n\n", Content_Type="text/event-stream")],
    "JSON as HTML": [http(BODY, Content_Type="text/html")],
    "two replies": [http(BODY + b"\n" + BODY)],
    "a gzip bomb": [http(gzip.compress(b" " * (64 << 20)), Content_Encoding="gzip")],
    "half of gzip": [http(gzip.compress(BODY)[:-9], Content_Encoding="gzip")],
    "gzip that is none": [http(BODY, Content_Encoding="gzip")],
    "another encoding": [http(BODY, Content_Encoding="br")],
    "an endless body": [http(b"", Content_Length=None), *[b" " * (1 << 20)] * 40],
    "a redirect": [http(b"", "302 Found", Location="http://127.0.0.1:9/v1")],
    "no content": [http(b"", "204 No Content")],
    "created": [http(BODY, "201 Created")],
    "unauthorised": [http(b'{"error": {"message": "bad key sk-secret-key"}}', "401 No")],
    "no such model": [http(b'{"error": {"code": "model_not_found"}}', "404 Not Found")],
    "a wait of years": [http(b"{}", "429 Too Many Requests", Retry_After="1e9")],
    "a wait of nonsense": [http(b"{}", "503 No", Retry_After="Thu, 99 Foo 2026 99:99:99 GMT")],
    "an endless error page": [http(b"", "500 No", Content_Length=None), *[b"x" * 4096, 0.05] * 20],
    "error with status 200": [http(encoded({"error": {"message": "overloaded"}}))],
    "error beside a text": [http(encoded({**reply(), "error": "overloaded sk-secret-key"}))],
    "error in a choice": [http(encoded({"choices": [{**reply()["choices"][0], "error": "no"}]}))],
    "refusal": [http(encoded(reply(refusal="I cannot judge this")))],
    "filtered": [http(encoded(reply(finish="content_filter")))],
    "finish tool_calls": [http(encoded(reply(finish="tool_calls")))],
    "finish 5": [http(encoded(reply(finish=5)))],
    "finish list": [http(encoded(reply(finish=["stop"])))],
    "no choices": [http(encoded({"choices": []}))],
    "choices object": [http(encoded({"choices": {"0": reply()["choices"][0]}}))],
    "text instead of a message": [http(encoded({"choices": [{"text": GOOD}]}))],
    "list": [http(encoded([reply()]))],
    "text": [http(encoded(GOOD))],
    "null content": [http(encoded(reply(None, reasoning_content=GOOD)))],
    "empty text": [http(encoded(reply("")))],
    "blank text": [http(encoded(reply(" \n\u2003")))],
    "number": [http(encoded(reply(8.5)))],
    "true": [http(encoded(reply(True)))],
    "object": [http(encoded(reply({"type": "text", "text": GOOD})))],
    "an image part": [http(encoded(reply([*PARTS, {"type": "image_url", "image_url": {}}])))],
    "a part of a number": [http(encoded(reply([{"type": "text", "text": 5}])))],
    "parts as texts": [http(encoded(reply(["a", "b"])))],
    "no parts": [http(encoded(reply([])))],
    "half a surrogate pair": [http(BODY.replace(b"analysis", b"\\ud83d"))],
}  # fmt: skip

# Of REFUSED: these end by the client's time limit.
WAITING = ("silence", "half, then silence", "trickling head", "trickling body", "a long length")


def odd_reply(rng: random.Random) -> tuple[str, list, object]:
    """Returns (label, steps, the JSON value of a changed reply or None)."""
    kind = rng.choice(["json", "json", "json", "bytes", "bytes", "cut", "status", "text"])
    if kind == "json":
        value = rng.choice([reply(), reply(PARTS), LONG])
        for _ in range(rng.choice([1, 1, 2, 4])):
            value = fuzz.change_json(rng, value)
        return f"json {value!r:.300}", [http(encoded(value))], value
    if kind == "bytes":
        data = rng.choice([WHOLE, http(b"", **CHUNKED) + chunked(BODY), *ACCEPTED["gzip"]])
        data = fuzz.change_bytes(rng, data, rng.choice([1, 2, 8]))
        return f"bytes {data!r:.300}", [data], None
    if kind == "cut":
        place = rng.randrange(len(WHOLE))
        return f"cut at {place}", [WHOLE[:place], rng.choice([RESET, 0.0, 100.0])], {}
    if kind == "status":
        status = rng.choice(
            [*range(199, 206), *range(299, 309), *range(400, 430), *range(500, 530), 999]
        )
        body = rng.choice([BODY, b"", b"<html>", encoded({"error": rng.choice(fuzz.ODD_VALUES)})])
        wait = rng.choice(["", "0", "-1", "NaN", "inf", "5", "9" * 400, "\x00", "Wed"])
        is_good = status == 200 and body == BODY and wait != "\x00"  # no header holds it
        value = reply() if is_good else {}
        return f"status {status}", [http(body, f"{status} X", Retry_After=wait or None)], value
    data = rng.randbytes(rng.randrange(400))
    return f"noise {data!r:.300}", [data], {}
