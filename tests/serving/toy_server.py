"""A server in this process with a toy model whose critiques parse."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import socket
import threading
import time

import httpx
from fake_judge import well_formed, world_tokenizer
from flax import nnx

from grm_jax.judging.judge import Judge
from grm_jax.judging.sampler import EngineSampler
from grm_jax.models import build_model, get_config
from grm_jax.serving.limits import Limits
from grm_jax.serving.server import bound, serve, url_of
from grm_jax.serving.service import Lengths, Service, build

LENGTHS = Lengths(max_prompt=128, max_new_tokens=24)


@functools.cache
def toy_model():
    """A random model over the vocabulary of the world."""
    vocabulary = world_tokenizer().vocab_size
    cfg = get_config("tiny_gemma2", vocab_size=vocabulary, max_length=1024)
    return build_model(cfg, nnx.Rngs(0))


class Scores:
    """Decodes any completion as a critique of two responses, with scores from its tokens."""

    def __init__(self):
        self.tokenizer = world_tokenizer()
        self.stop_ids = self.tokenizer.stop_ids

    def encode_chat(self, messages, add_generation_prompt=True):
        return self.tokenizer.encode_chat(messages, add_generation_prompt)

    def decode(self, ids):
        ids = [int(i) for i in ids]
        return well_formed([1 + sum(ids) % 10, 1 + sum(ids[::2]) % 10])


def toy_judge(scores: bool = True, **fields) -> Judge:
    """A judge whose samples are random tokens. scores: decode them as critiques."""
    codec = Scores() if scores else world_tokenizer()
    model = fields.pop("model", None) or toy_model()
    return Judge(
        codec,
        EngineSampler(model),
        "compact",
        **{"context": 1024, "name": "toy@0", "max_new_tokens": 24, **fields},
    )


def toy_service(judge: Judge | None = None, batch=(4, 2), **limits) -> Service:
    limits = Limits(**{"read_timeout": 60.0, "grace": 60.0, **limits})
    return build(judge or toy_judge(), limits, LENGTHS, batch)


def wait_until(condition):
    """Waits for a state; fails after two minutes."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "the state was not reached"
        time.sleep(0.01)


def sent(url: str, path: str, fields: dict) -> socket.socket:
    """Sends a request and returns its connection, for a client that hangs up."""
    address, content = httpx.URL(url), json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(content)}\r\n\r\n"
    connection = socket.create_connection((address.host, address.port), timeout=120)
    connection.sendall(head.encode() + content)
    return connection


@dataclasses.dataclass
class Server:
    """A running server. client: without a time limit. error: why it ended."""

    service: Service
    url: str
    client: httpx.Client
    thread: threading.Thread
    error: BaseException | None = None

    def post(self, path: str, value=None, **options) -> httpx.Response:
        return self.client.post(path, **({"json": value} if value is not None else {}), **options)


@contextlib.contextmanager
def serving(service: Service, key: str = "", wait: bool = True):
    """Serves in a thread; stops the server at the end. wait: until it is ready."""
    with bound("127.0.0.1", 0) as listener:

        def run():
            try:
                asyncio.run(serve(service, listener, key))
            except Exception as error:
                running.error = error

        thread = threading.Thread(target=run)
        url = url_of(listener)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url, timeout=None, headers=headers) as client:
            running = Server(service, url, client, thread)
            thread.start()
            try:
                while wait and not service.ready:
                    assert thread.is_alive(), running.error
                    time.sleep(0.02)
                yield running
            finally:
                while thread.is_alive():  # `stop` has no effect before the server has started
                    service.stop()
                    thread.join(0.1)
