"""The engine thread: samples the requests of all HTTP requests in one batch.

Only this thread touches the device. An HTTP request runs in a worker thread with a judge whose
sampler is a view of the engine (`EngineThread.sampler_for`), so that `Judge.stream` and `score` run
unchanged:

    worker 1: score(groups, judge 1)  -> requests \\
    worker 2: chat completion         -> requests  -> one Engine, a segment at a time
    worker 3: score(groups, judge 3)  -> requests /   completions -> each worker's queue

The thread takes one sampler request of each HTTP request in turn. A large one delays no small one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from jax.sharding import Mesh

from grm_jax.judging.judge import Judge
from grm_jax.judging.sampler import Sampler
from grm_jax.judging.scalar import ScalarJudge
from grm_jax.judging.scalar_head import ScalarHead
from grm_jax.sampling import Completion, Engine, Request
from grm_jax.sampling.slots import failed
from grm_jax.serving.rows import NoRows
from grm_jax.sharding import use_mesh

H = TypeVar("H", bound=ScalarHead)
STALLED_SECONDS = 300.0  # of one step after the warm-up, before the thread counts as failed


class Stopped(Exception):
    """A request ended before its result: its client is gone, or its deadline has passed."""


class DeadlineExceeded(Stopped):
    """The deadline of a request has passed."""


class EngineFailed(Exception):
    """The engine thread has ended; the message has the reason."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """New tokens of a sample; `logprobs` are under temperature 1."""

    sample_index: int
    tokens: list[int]
    logprobs: list[float]


Event = Tokens | Completion


class Context:
    """The deadline of one HTTP request, and its cancellation from any thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        self.error: Exception | None = None
        self._queues: set[queue.SimpleQueue[Any]] = set()
        self._lock = threading.Lock()

    def cancel(self, error: Exception) -> None:
        """Raises the error in the worker at its next completion, or at once if it waits."""
        with self._lock:
            self.error = self.error or error
            for waiting in self._queues:
                waiting.put(self.error)

    def watch(self, results: queue.SimpleQueue[Any]) -> None:
        """Puts a later cancellation into a queue. Raises the error of an earlier one."""
        with self._lock:
            if self.error is not None:
                raise self.error
            self._queues.add(results)

    def forget(self, results: queue.SimpleQueue[Any]) -> None:
        with self._lock:
            self._queues.discard(results)

    def get(self, results: queue.SimpleQueue[Any]) -> Any:
        """Waits for a result. Raises an error in the queue, or DeadlineExceeded."""
        remaining = self.deadline - time.monotonic()
        try:
            if remaining <= 0:
                raise queue.Empty
            item = results.get(timeout=remaining)
        except queue.Empty:
            raise DeadlineExceeded(
                f"the request was not finished after {self.seconds:g} s: send fewer or shorter "
                "responses, lower k or max_new_tokens, or raise the timeout"
            ) from None
        if isinstance(item, Exception):
            raise item
        return item


@dataclasses.dataclass(eq=False)
class _Ticket:
    """The sampler requests of one call; `pending` has those that the engine does not have yet."""

    requests: Sequence[Request]
    pending: deque[int]
    with_tokens: bool
    results: queue.SimpleQueue[Any] = dataclasses.field(default_factory=queue.SimpleQueue)
    keys: dict[int, int] = dataclasses.field(default_factory=dict)  # engine's key -> index


@dataclasses.dataclass(eq=False)
class _Call:
    """A function that the thread runs between two steps."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    results: queue.SimpleQueue[Any] = dataclasses.field(default_factory=queue.SimpleQueue)


@dataclasses.dataclass(frozen=True)
class _Value:
    value: Any  # of a call; never confused with an error


class EngineThread:
    """Runs one engine for many workers.

    Attributes:
      failure: why the thread has ended; None while it runs.
    """

    def __init__(
        self,
        engine: Engine | NoRows,
        lengths: tuple[int, int],
        mesh: Mesh | None = None,
        common_prefix: Sequence[int] = (),
    ) -> None:
        """Does not start the thread.

        Args:
          lengths: most tokens of a prompt and of a sample; the engine is reserved for them.
          mesh: the mesh that the engine was built under.
          common_prefix: tokens with which most prompts begin; the engine prefills them once.
        """
        engine.reserve(*lengths, common_prefix)
        self.engine, self.lengths, self.mesh = engine, lengths, mesh
        self.failure: str | None = None
        self._changed = threading.Condition()
        self._live: set[_Ticket | _Call] = set()  # of workers that wait for results
        self._tickets: deque[_Ticket] = deque()  # with pending requests, in turn
        self._owners: dict[int, _Ticket] = {}  # engine's key -> ticket
        self._left: list[_Ticket] = []
        self._calls: deque[_Call] = deque()
        self._stopping = False
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self, warm_up: Callable[[], None]) -> Future[None]:
        """Starts the thread; the result is set once `warm_up` has run on it, or is its error."""
        ready: Future[None] = Future()

        def run() -> None:
            try:
                warm_up()
            except BaseException as error:
                self._fail(error)
                ready.set_exception(error)
            else:
                ready.set_result(None)
                self._main()

        self._thread = threading.Thread(target=run, name="engine", daemon=True)
        self._thread.start()
        return ready

    def stop(self) -> None:
        """Ends the thread after its current step; requests that run fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """Returns why the engine cannot answer, or None."""
        started = self._step_started
        if self.failure is None and started is not None:
            seconds = time.monotonic() - started
            if seconds > STALLED_SECONDS:
                return f"the device has not finished a step for {seconds:.0f} s"
        return self.failure

    @property
    def waiting(self) -> int:
        """The number of sampler requests that wait for a prompt slot."""
        with self._changed:
            pending = sum(len(ticket.pending) for ticket in self._tickets)
        return pending + self.engine.waiting

    # ------------------------------------------------------------ called by workers

    def sampler_for(self, context: Context) -> Sampler:
        """Returns a sampler that shares the engine with other workers.

        It raises DeadlineExceeded, EngineFailed, or the error of `context.cancel`.
        """

        def sample(requests: Sequence[Request]) -> Iterator[Completion]:
            for event in self.events(requests, context):
                if isinstance(event, Completion):
                    yield event

        return sample

    def events(
        self, requests: Sequence[Request], context: Context, with_tokens: bool = False
    ) -> Iterator[Event]:
        """Yields completions, and tokens as they are sampled, until every sample has finished.

        A caller that closes the iterator early frees the rows. Raises as `sampler_for`.
        """
        if not requests:
            return
        ticket = _Ticket(requests, deque(range(len(requests))), with_tokens)
        context.watch(ticket.results)
        try:
            self._enter(ticket, self._tickets)
            left = sum(max(1, request.k) for request in requests)
            while left:
                event = context.get(ticket.results)
                left -= isinstance(event, Completion)
                yield event
        finally:
            context.forget(ticket.results)
            with self._changed:
                self._live.discard(ticket)
                self._left.append(ticket)
                self._changed.notify()

    def call(self, context: Context, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns function(*arguments), run on the engine thread. Raises as `sampler_for`."""
        call = _Call(function, arguments)
        context.watch(call.results)
        try:
            self._enter(call, self._calls)
            return context.get(call.results).value
        finally:
            context.forget(call.results)
            with self._changed:
                self._live.discard(call)
                if call in self._calls:  # abandoned before its turn
                    self._calls.remove(call)

    def judge_for(self, judge: Judge, context: Context) -> Judge:
        """Returns the judge of one HTTP request: the same verdicts, computed on this thread."""
        if isinstance(judge, ScalarJudge):
            return dataclasses.replace(judge, head=_head_on(self, judge.head, context))
        meta_rm, expected = judge.meta_rm, judge.expected
        if meta_rm is not None:
            meta_rm = _head_on(self, meta_rm, context)
        if expected is not None:
            log_probs, expected = expected.log_probs, copy.copy(expected)
            expected.log_probs = lambda *arguments: self.call(context, log_probs, *arguments)
        return dataclasses.replace(
            judge, sampler=self.sampler_for(context), meta_rm=meta_rm, expected=expected
        )

    def _enter(self, entry: _Ticket | _Call, waiting: deque[Any]) -> None:
        with self._changed:
            if self.failure is not None:
                raise EngineFailed(self.failure)
            self._live.add(entry)
            waiting.append(entry)
            self._changed.notify()

    # ------------------------------------------------------------ the thread

    def _main(self) -> None:
        try:
            while self._wait():
                self._drop_left()
                self._run_calls()
                self._submit()
                self._step()
            self._fail(EngineFailed("the server has stopped"))
        except BaseException as error:  # reported to every worker and by /healthz
            self._fail(error)

    def _wait(self) -> bool:
        """Waits for work. Returns False if the thread should end."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopping or self._tickets or self._left or self._calls or self.engine.busy
                )
            )
            return not self._stopping

    def _drop_left(self) -> None:
        with self._changed:
            left, self._left = self._left, []
            for ticket in left:
                if ticket in self._tickets:
                    self._tickets.remove(ticket)
        for ticket in left:
            for key in ticket.keys:
                self.engine.cancel(key)
                self._owners.pop(key, None)

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):  # later ones wait for a step, as the rows do
            with self._changed:
                if self._stopping or not self._calls:
                    return
                call = self._calls.popleft()
            self._step_started = time.monotonic()
            try:
                call.results.put(_Value(call.function(*call.arguments)))
            except Exception as error:
                call.results.put(error)
            self._step_started = None

    def _submit(self) -> None:
        """Gives the engine as many requests as it has slots, one of each ticket in turn."""
        while self.engine.waiting < self.engine.P:
            with self._changed:
                if not self._tickets:
                    return
                ticket = self._tickets.popleft()
                index = ticket.pending.popleft()
                if ticket.pending:
                    self._tickets.append(ticket)
            self._submit_one(ticket, index)

    def _submit_one(self, ticket: _Ticket, index: int) -> None:
        request = ticket.requests[index]
        longest = (len(request.prompt), request.max_new_tokens)
        if any(value > most for value, most in zip(longest, self.lengths)):
            error = (
                "the prompt has {:,} tokens, and {:,} new ones are requested; this server takes "
                "{:,} and {:,}: shorten the texts, or raise --max_prompt or --max_new_tokens"
            ).format(*longest, *self.lengths)
            return self._refuse(ticket, index, error)

        def listen(sample: int, tokens: list[int], _: list[float], logprobs: list[float]) -> None:
            ticket.results.put(Tokens(sample, tokens, logprobs))

        try:
            key = self.engine.submit(request, listen if ticket.with_tokens else None)
        except ValueError as error:
            return self._refuse(ticket, index, str(error))
        ticket.keys[key], self._owners[key] = index, ticket

    def _refuse(self, ticket: _Ticket, index: int, error: str) -> None:
        for completion in failed(index, ticket.requests[index], error):
            ticket.results.put(completion)

    def _step(self) -> None:
        self._step_started = time.monotonic()
        with use_mesh(self.mesh):
            completions = self.engine.step()
        self._step_started = None
        for completion in completions:
            ticket = self._owners[completion.request_index]
            index = ticket.keys[completion.request_index]
            ticket.results.put(dataclasses.replace(completion, request_index=index))

    def _fail(self, error: BaseException) -> None:
        """Ends all requests with the reason."""
        lines = str(error).strip().splitlines() or [""]
        stopped = isinstance(error, EngineFailed)
        reason = lines[0] if stopped else f"the engine failed: {type(error).__name__}: {lines[0]}"
        with self._changed:
            self.failure, self._step_started = reason, None
            for entry in self._live:
                entry.results.put(EngineFailed(reason))


def _head_on(thread: EngineThread, head: H, context: Context) -> H:
    """Returns a model with a scalar head whose forward passes run on the engine thread."""
    served = copy.copy(head)
    served.run = functools.partial(thread.call, context)
    return served
