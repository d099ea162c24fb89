"""/v1/chat/completions and /v1/models: the sampler, in OpenAI's format."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from grm_jax import strict_json
from grm_jax.judging.orders import item_of
from grm_jax.sampling import Request
from grm_jax.sampling.request import MAX_STOP_TOKENS
from grm_jax.serving.bodies import ChatBody, parse
from grm_jax.serving.engine import Context, Tokens
from grm_jax.serving.errors import ClientGone, Refusal, body_of, json_response, refusal_of
from grm_jax.serving.service import Service
from grm_jax.text.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"  # the end of a text whose last character lacks bytes
Emit = Callable[["Delta"], None]


@dataclasses.dataclass(frozen=True)
class Delta:
    """New text of one choice. finish: set in its last delta."""

    index: int
    text: str
    logprobs: list[dict[str, Any]]
    finish: str | None = None


@dataclasses.dataclass
class Choice:
    """The text of one sample as it grows, up to a stop text."""

    index: int
    tokenizer: Tokenizer
    stops: Sequence[str]
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    text: str = ""  # sent so far
    reported: int = 0  # tokens whose log-probabilities were sent
    finish: str | None = None

    def add(self, tokens: list[int], logprobs: list[float]) -> Delta | None:
        """Adds tokens; returns the new text, without what may become a stop text."""
        if self.finish:
            return None
        self.tokens += tokens
        self.logprobs += logprobs
        text = self.tokenizer.decode(self.tokens)
        if (at := self._stop_at(text)) is not None:
            count = self._tokens_until(slice(*at), text)
            del self.tokens[count:], self.logprobs[count:]
            return self._delta(text[: at[0]], "stop")
        safe = text.rstrip(INCOMPLETE) if text.endswith(INCOMPLETE) else text
        pending = max((_overlap(safe, stop) for stop in self.stops), default=0)
        return self._delta(safe[: len(safe) - pending], None)

    def end(self, finish: str) -> Delta | None:
        """Returns the text that was held back, once the sampler has finished the sample."""
        if self.finish:
            return None
        return self._delta(self.tokenizer.decode(self.tokens), finish)

    def _delta(self, text: str, finish: str | None) -> Delta:
        new = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += new
        entries = [
            self._entry(token, logprob)
            for token, logprob in zip(self.tokens[self.reported :], self.logprobs[self.reported :])
            if token not in self.tokenizer.stop_ids
        ]
        self.reported, self.finish = len(self.tokens), finish
        return Delta(self.index, new, entries, finish)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.piece_bytes(token)
        text = data.decode("utf-8", "replace") or self.tokenizer.decode([token], False)
        return {"token": text, "logprob": logprob, "bytes": list(data), "top_logprobs": []}

    def _stop_at(self, text: str) -> tuple[int, int] | None:
        """Returns (start, end) of the first stop text."""
        places = [(text.find(stop), stop) for stop in self.stops]
        spans = [(start, start + len(stop)) for start, stop in places if start >= 0]
        return min(spans, default=None)

    def _tokens_until(self, place: slice, text: str) -> int:
        """Returns the fewest tokens whose text has the stop text in its place."""
        low, high = 1, len(self.tokens)
        while low < high:
            middle = (low + high) // 2
            complete = self.tokenizer.decode(self.tokens[:middle])[place] == text[place]
            low, high = (low, middle) if complete else (middle + 1, high)
        return low

    @property
    def sampled(self) -> int:
        """The number of tokens, a stop token excluded."""
        return sum(token not in self.tokenizer.stop_ids for token in self.tokens)


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of a text that begins a stop text."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


@dataclasses.dataclass(frozen=True)
class Chat:
    """One chat completion."""

    service: Service
    body: ChatBody
    request: Request
    stops: list[str]
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, service: Service, body: ChatBody) -> Chat:
        """Encodes the messages. Raises Refusal."""
        limits, lengths, tokenizer = service.limits, service.lengths, service.judge.tokenizer
        n = body.n or 1
        if n > limits.n:
            raise Refusal(400, f"n = {n}: this server samples at most {limits.n}", "n")
        if body.model not in (None, *model_names(service)):
            raise Refusal(404, f"no model {body.model!r:.80}: GET /v1/models has the name", "model")
        seed, stops, limit = body.sampling_seed(), body.stops(), body.limit(lengths.max_new_tokens)
        try:
            prompt = tokenizer.encode_chat([message.turn() for message in body.messages])
        except ValueError as error:
            raise Refusal(400, str(error).replace("\n", " "), "messages") from None
        if len(prompt) > lengths.max_prompt:
            raise Refusal(
                400,
                f"the messages have {len(prompt):,} tokens; this server takes "
                f"{lengths.max_prompt:,}: shorten them, or raise --max_prompt",
                "messages",
            )
        request = Request(
            prompt,
            n,
            limit,
            1.0 if body.temperature is None else body.temperature,
            body.top_p or 1.0,
            body.top_k or 0,
            tuple(tokenizer.stop_ids[:MAX_STOP_TOKENS]),
            seed,
            item_of(prompt),
        )
        return cls(service, body, request, stops)

    def sample(self, context: Context, emit: Emit) -> list[Choice]:
        """Samples all choices; calls `emit` with their texts as they grow."""
        tokenizer = cast(Tokenizer, self.service.judge.tokenizer)  # as of every judge with weights
        choices = [Choice(i, tokenizer, self.stops) for i in range(self.request.k)]
        for event in self.service.engine.events([self.request], context, with_tokens=True):
            choice = choices[event.sample_index]
            if isinstance(event, Tokens):
                delta = choice.add(event.tokens, event.logprobs)
            elif event.error:
                raise Refusal(500, f"the sampler failed: {event.error}")
            else:
                delta = choice.end(event.finish)
            if delta is not None and (delta.text or delta.logprobs or delta.finish):
                emit(delta)
            if all(choice.finish for choice in choices):
                break  # the rows of texts that have stopped are freed
        return choices

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        prompt, new = len(self.request.prompt), sum(choice.sampled for choice in choices)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.service.judge.name,
            "system_fingerprint": f"seed-{self.request.seed}",
        }

    def logprobs_of(self, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": entries, "refusal": None} if self.body.logprobs else None

    def chunk(self, delta: Delta, first: bool) -> dict[str, Any]:
        """Returns an event of a streamed answer."""
        content: dict[str, Any] = {"content": delta.text}
        choice = {
            "index": delta.index,
            "delta": {"role": "assistant", **content} if first else content,
            "logprobs": self.logprobs_of(delta.logprobs),
            "finish_reason": delta.finish,
        }
        return {**self.head("chat.completion.chunk"), "choices": [choice]}


def model_names(service: Service) -> list[str]:
    """Returns the names that a client may use."""
    name = service.judge.name
    return list(dict.fromkeys((name, name.partition("@")[0], "judge")))


async def models(service: Service, http: HTTPRequest) -> Response:
    """Answers GET /v1/models."""
    data = [
        {"id": name, "object": "model", "created": service.started, "owned_by": "grm_jax"}
        for name in model_names(service)
    ]
    return json_response({"object": "list", "data": data})


async def completions(service: Service, http: HTTPRequest) -> Response:
    """Answers POST /v1/chat/completions."""
    body = parse(ChatBody, await http.body())
    if service.judge.is_scalar:
        raise Refusal(
            404,
            f"{service.judge.name} is a scalar reward model, which writes no texts: send groups to "
            "/v1/score",
        )
    if body.stream:
        return await _streamed(service, http, body)
    with service.admitted(body.timeout) as context:
        deltas: list[Delta] = []

        def work() -> tuple[Chat, list[Choice]]:
            chat = Chat.of(service, body)
            return chat, chat.sample(context, deltas.append)

        chat, choices = await service.run(http, context, work)
    logprobs: dict[int, list[dict[str, Any]]] = {}
    for delta in deltas:
        logprobs.setdefault(delta.index, []).extend(delta.logprobs)
    listed = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat.logprobs_of(logprobs.get(choice.index, [])),
            "finish_reason": choice.finish,
        }
        for choice in choices
    ]
    head = chat.head("chat.completion")
    return json_response({**head, "choices": listed, "usage": chat.usage(choices)})


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called when the answer ends, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


async def _streamed(service: Service, http: HTTPRequest, body: ChatBody) -> Response:
    """Answers with server-sent events. Errors before the first one have a status of their own."""
    loop = asyncio.get_running_loop()
    deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(service.admitted(body.timeout))

        def work() -> tuple[Chat, list[Choice]]:
            chat = Chat.of(service, body)
            chats.append(chat)
            return chat, chat.sample(context, emit)

        def emit(delta: Delta) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, delta)

        chats: list[Chat] = []
        sampled = asyncio.ensure_future(service.run(http, context, work))
        sampled.add_done_callback(lambda _: deltas.put_nowait(None))
        first = await deltas.get()
        if first is None:
            await sampled  # raises its error
        remaining = stack.pop_all()

    def close() -> None:
        context.cancel(ClientGone("the client has closed the connection"))
        sampled.cancel()
        remaining.close()

    return EventStream(_events(chats[0], first, deltas, sampled), close)


async def _events(
    chat: Chat,
    delta: Delta | None,
    deltas: asyncio.Queue[Delta | None],
    sampled: asyncio.Future[tuple[Chat, list[Choice]]],
) -> AsyncIterator[str]:
    started: set[int] = set()
    while delta is not None:
        yield _event(chat.chunk(delta, delta.index not in started))
        started.add(delta.index)
        delta = await deltas.get()
    try:
        _, choices = await sampled
    except Exception as error:
        yield _event(body_of(refusal_of(error)))
        return
    if chat.body.stream_options and chat.body.stream_options.include_usage:
        head = chat.head("chat.completion.chunk")
        yield _event({**head, "choices": [], "usage": chat.usage(choices)})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {strict_json.dumps(value, separators=(',', ':'))}\n\n"
