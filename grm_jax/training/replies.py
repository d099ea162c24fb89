"""Critique requests and replies: their types, reports of replies, and records of a `RunStore`."""

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grm_jax.run_store import RunStore
from grm_jax.storage import is_remote
from grm_jax.types import Comparison

# Seconds between two writes: the most that a killed run loses.
DISK_SECONDS, BUCKET_SECONDS = 2.0, 30.0


@dataclasses.dataclass(frozen=True)
class CritiqueRequest:
    """A critique to sample.

    order: order[j] is the caller's index of the response shown at position j.  sample: from 0.
    messages: the prompt, with the hint if `hinted`.
    """

    comparison: Comparison
    order: tuple[int, ...]
    hinted: bool
    sample: int
    messages: list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class CritiqueReply:
    """A sampled text, why it ended if known, and its order if that is not the requested one.

    prompt_tokens, new_tokens: as an endpoint counts them.
    """

    text: str
    finish: str | None = None
    order: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None


# Replies in the order of the requests; None for a request that failed.
Sampler = Callable[[Sequence[CritiqueRequest]], Sequence[CritiqueReply | None]]


# ---------------------------------------------------------------- reports of replies

OnReply = Callable[[int, CritiqueReply | None], None]
_on_reply = contextvars.ContextVar[OnReply]("on_reply", default=lambda i, reply: None)


def report_reply(i: int, reply: CritiqueReply | None) -> None:
    """Reports the reply to request i of a call. Slow samplers call it for each reply as it comes.

    None: the request failed.
    """
    _on_reply.get()(i, reply)


@contextlib.contextmanager
def on_reply(callback: OnReply) -> Iterator[None]:
    """Calls callback(i, reply) in the body for each reply that a sampler reports.

    The callback of a surrounding `on_reply` is called too.
    """
    outer = _on_reply.get()

    def both(i: int, reply: CritiqueReply | None) -> None:
        callback(i, reply)
        outer(i, reply)

    token = _on_reply.set(both)
    try:
        yield
    finally:
        _on_reply.reset(token)


# ---------------------------------------------------------------- records


class Writer:
    """Writes replies to a store in batches: a batch is one file of a store that is a folder."""

    def __init__(self, store: RunStore, keys: Sequence[str]):
        self.store, self.keys = store, keys
        self.pending: dict[str | int, dict[str, Any]] = {}
        self.seconds = BUCKET_SECONDS if is_remote(store.path) else DISK_SECONDS
        self.written = time.monotonic()

    def add(self, i: int, reply: CritiqueReply | None) -> None:
        """Adds a reply that has just come. Failures wait for the end of the call."""
        if reply:
            self.set(i, reply)
        if time.monotonic() - self.written > self.seconds:
            self.flush()

    def set(self, i: int, reply: CritiqueReply | None) -> None:
        if self.keys[i] not in self.store:
            self.pending[self.keys[i]] = reply_to_json(reply)

    def flush(self) -> None:
        self.store.append_all(self.pending)
        self.pending, self.written = {}, time.monotonic()


def is_usable(record: Mapping[str, Any], request: CritiqueRequest) -> bool:
    """Whether a record holds a reply to the request, or that it failed."""
    try:
        reply = reply_from_json(record)
        if reply is None:
            return True
        reply.text.encode()  # fails for half a surrogate pair
        places = list(range(request.comparison.n))
        order = places if reply.order is None else sorted(reply.order)
        return isinstance(reply.finish, str | None) and order == places
    except Exception:  # noqa: BLE001  a damaged record may raise any error
        return False


def reply_to_json(reply: CritiqueReply | None) -> dict[str, Any]:
    if reply is None:
        return {"text": None}
    record = dataclasses.asdict(reply)
    counts = ("prompt_tokens", "new_tokens")
    return {key: value for key, value in record.items() if value is not None or key not in counts}


def reply_from_json(record: Mapping[str, Any]) -> Any:
    if record["text"] is None:
        return None
    order = None if record.get("order") is None else tuple(record["order"])
    counts = [record.get(name) for name in ("prompt_tokens", "new_tokens")]
    return CritiqueReply(record["text"], record.get("finish"), order, *counts)
