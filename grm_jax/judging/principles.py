"""Principles that a judge writes before it sees the responses: their text, and its cache."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

from grm_jax.judging.job import Unjudged
from grm_jax.judging.options import Options
from grm_jax.judging.sampler import Sampler, TextCodec, text_of
from grm_jax.sampling import Completion, Request
from grm_jax.text import parse_principles, rendering
from grm_jax.types import FAILED

MAX_TEXTS = 4096  # of 1 to 5 KB each
MAX_CHARS = 4000  # of a text that does not parse as a list


class PrinciplesCache:
    """Texts by request. Beyond `size` texts, the least recently used one is dropped.

    A text is a function of the weights and the request, so a dropped one is sampled again, equal.
    """

    def __init__(self, size: int = MAX_TEXTS):
        self.size = size
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, request: Request) -> str | None:
        """Returns the text of a request, which counts as a use; None if there is none."""
        key = _key(request)
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def put(self, request: Request, text: str) -> None:
        """Adds a text, and drops the least recently used one if there are too many."""
        with self._lock:
            self._texts[_key(request)] = text
            while len(self._texts) > self.size:
                self._texts.popitem(last=False)


def _key(request: Request) -> bytes:
    """Returns a hash: the prompt itself may have thousands of tokens."""
    return hashlib.sha256(repr(request).encode()).digest()


def principles_of(completion: Completion, codec: TextCodec) -> str | Unjudged:
    """Returns the principles of a completion: its text as it is, if it does not parse as a list."""
    if completion.finish in (FAILED, "error"):
        no_reply = completion.finish == FAILED
        return Unjudged(f"no principles: {completion.error}", no_reply=no_reply)
    text = text_of(completion, codec).text
    principles = rendering.principles_text(parse_principles(text)) or text.strip()[:MAX_CHARS]
    return principles or Unjudged("no principles: the model's text is empty")


def samples_principles(options: Options) -> bool:
    """Returns whether principles are sampled before a comparison's prompts can be rendered."""
    return options.principles == "first" and options.given_principles is None


def sample_principles(
    requests: Sequence[Request], sampler: Sampler, codec: TextCodec, cache: PrinciplesCache
) -> dict[Request, str | Unjudged]:
    """Returns the principles of each request, of the cache or sampled now."""
    cached = {request: cache.get(request) for request in requests}
    results: dict[Request, str | Unjudged]
    results = {request: text for request, text in cached.items() if text is not None}
    new = [request for request in requests if request not in results]
    for completion in sampler(new):
        request = new[completion.request_index]
        result = results[request] = principles_of(completion, codec)
        if isinstance(result, str):
            cache.put(request, result)
    return results
