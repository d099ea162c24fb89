"""What the routes share: the judge, the engine thread, limits, and work in worker threads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from grm_jax.judging import job
from grm_jax.judging.expected import ROW_TOKENS, TokenTree
from grm_jax.judging.groups import Group, GroupRewards
from grm_jax.judging.judge import Judge
from grm_jax.judging.options import Options
from grm_jax.judging.rewards import RewardOptions, score
from grm_jax.judging.sampler import EngineSampler
from grm_jax.judging.scalar import ScalarJudge
from grm_jax.judging.scalar_head import LENGTHS, padded_length
from grm_jax.models import cpu
from grm_jax.sampling import Engine, Request, plan
from grm_jax.sampling.buckets import FEW_PROMPT_BUCKETS, PROMPT_BUCKETS
from grm_jax.serving.cohorts import Cohorts
from grm_jax.serving.engine import Context, EngineThread
from grm_jax.serving.errors import ClientGone, Refusal, ShutDown
from grm_jax.serving.limits import Limits
from grm_jax.serving.metrics import Metrics
from grm_jax.serving.rows import NoRows
from grm_jax.sharding import use_mesh
from grm_jax.types import Comparison

T = TypeVar("T")
SEGMENT = 16  # decode steps between two looks at the queue
ROWS, SLOTS_ON_CPU = 4, 16  # of a batch, unless the command line sets them


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Most tokens of a prompt and of a sample."""

    max_prompt: int
    max_new_tokens: int


@dataclasses.dataclass
class Service:
    """A server's judge and its state; one per process.

    Attributes:
      judge: loaded; the routes use `judge_for`.
      options: of the routes whose callers send none: /get_reward, /compare, /verify.
      ready: whether every program is compiled.
      draining: whether the server stops.
      expected: whether expected scores are computed; their programs are compiled at the start.
      log_texts: whether the log has texts of requests.
    """

    judge: Judge
    engine: EngineThread
    lengths: Lengths
    limits: Limits
    metrics: Metrics
    expected: bool = False
    log_texts: bool = False
    options: RewardOptions = dataclasses.field(default_factory=RewardOptions)
    ready: bool = False
    draining: bool = False

    def __post_init__(self) -> None:
        self.workers = ThreadPoolExecutor(self.limits.queue, "worker")
        self.contexts: set[Context] = set()
        self.started = int(time.time())
        self.stop: Callable[[], object] = lambda: None  # set by `server.serve`; any thread
        self.cohorts = Cohorts(self._score_group, self.limits.cohort_timeout, self.limits.cohorts)
        self.metrics.watch(self)

    def problem(self) -> str | None:
        """Returns why requests cannot be answered now, or None."""
        if problem := self.engine.problem():
            return problem
        if self.draining:
            return "the server is shutting down: send the request to another one"
        return None if self.ready else "the server compiles its programs: try again"

    @contextlib.contextmanager
    def admitted(self, seconds: float | None, limited: bool = True) -> Iterator[Context]:
        """Counts a request among those that run or wait.

        Args:
          seconds: until its deadline, at most the server's.
          limited: refuse it if there are too many.

        Raises:
          Refusal: 429 if there are too many, 503 if the server cannot answer.
        """
        if problem := self.problem():
            raise Refusal(503, problem, headers={"retry-after": "5"})
        if limited and len(self.contexts) >= self.limits.queue:
            self.metrics.refused.inc()
            raise Refusal(
                429,
                f"{len(self.contexts)} requests run or wait, as many as this server takes: try "
                "again later, or raise --queue",
                headers={"retry-after": str(self._retry_after())},
            )
        context = Context(min(seconds or math.inf, self.limits.timeout))
        self.contexts.add(context)
        try:
            yield context
        finally:
            self.contexts.discard(context)

    def _retry_after(self) -> int:
        """Returns whole seconds, about the time of one request."""
        return max(1, min(60, round(self.metrics.recent_seconds)))

    async def run(self, http: HTTPRequest, context: Context, function: Callable[[], T]) -> T:
        """Returns function(), run in a worker thread; cancels it if the client hangs up.

        Raises ClientGone then, and whatever the function raises.
        """
        loop = asyncio.get_running_loop()
        work: asyncio.Future[Any] = loop.run_in_executor(self.workers, function)
        work.add_done_callback(_retrieved)
        gone: asyncio.Future[Any] = asyncio.ensure_future(disconnected(http))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                context.cancel(ClientGone("the client has closed the connection"))
            return await work
        except asyncio.CancelledError:
            context.cancel(ClientGone("the request was cancelled"))
            raise
        finally:
            gone.cancel()

    def scored(
        self, context: Context, groups: Sequence[Group], options: RewardOptions
    ) -> list[GroupRewards]:
        """Returns the rewards of groups; blocks, for a worker thread. Raises Refusal."""
        try:
            results = score(groups, self.judge_for(context), options)
        except ValueError as error:
            raise Refusal(400, str(error).replace("\n", " ")) from None
        for result in results:
            for reward in result.rewards:
                self.metrics.rewards.labels(reward.status).inc()
        return results

    async def _score_group(self, group: Group) -> GroupRewards:
        """Scores a group of `cohorts`; outside of the queue, as its calls are already waiting."""
        with self.admitted(None, limited=False) as context:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self.workers, self.scored, context, [group], self.options)
            work.add_done_callback(_retrieved)
            try:
                return (await asyncio.shield(work))[0]
            except asyncio.CancelledError:
                context.cancel(ClientGone("every call of the group was cancelled"))
                raise

    def judge_for(self, context: Context) -> Judge:
        """Returns the judge of one request; the engine computes its verdicts."""
        judge = self.engine.judge_for(self.judge, context)
        return judge if self.expected else dataclasses.replace(judge, expected=None)

    def drain(self) -> None:
        """Refuses new requests; those that run may finish, except groups that miss responses."""
        self.draining = True
        self.cohorts.close(ShutDown("the server is shutting down: send the whole group again"))

    def cancel_all(self) -> None:
        """Ends the requests that still run."""
        for context in list(self.contexts):
            context.cancel(
                ShutDown("the server was shut down before the request finished: send it again")
            )


def _retrieved(work: asyncio.Future[Any]) -> None:
    """Marks the error of abandoned work as seen, which asyncio would log with its texts."""
    if not work.cancelled():
        work.exception()


async def disconnected(http: HTTPRequest) -> None:
    """Returns once the client has closed its connection, or the answer is complete."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def build(
    judge: Judge,
    limits: Limits,
    lengths: Lengths,
    batch: tuple[int | None, int | None] = (None, None),
    expected: bool = False,
    log_texts: bool = False,
) -> Service:
    """Builds the service of a judge that was loaded from files; compiles nothing yet.

    Args:
      batch: prompt slots and rows per slot, fewer if memory is short; None for the defaults, 64 (on
        a CPU 16) and 4.

    Raises:
      ValueError: the lengths do not fit the model's context.
      MemoryError: the batch does not fit into memory.
    """
    if isinstance(judge, ScalarJudge):
        return _scalar_service(judge, limits, lengths, log_texts)
    sampler = judge.sampler
    if not isinstance(sampler, EngineSampler):
        raise ValueError(
            f"{judge.name} writes no critiques here: grm serve needs a judge's weights"
        )
    cfg = sampler.model.cfg
    if lengths.max_prompt >= cfg.max_length:
        raise ValueError(
            f"--max_prompt {lengths.max_prompt} leaves no room in the context of {cfg.name}, "
            f"{cfg.max_length}: lower it"
        )
    rows = batch[1] or ROWS
    longest = [Request([0] * lengths.max_prompt, rows, lengths.max_new_tokens)]
    with use_mesh(sampler.mesh):
        model = sampler.decoding_model
        on_cpu = cpu.on_cpu()
        slots = batch[0] or (SLOTS_ON_CPU if on_cpu else None)
        P, R = plan.fit(cfg, longest * plan.MAX_SLOTS, slots, rows)
        engine = Engine(model, P, R, segment=SEGMENT, few_shapes=True)
    prefix = template_prefix(judge, lengths.max_prompt)
    thread = EngineThread(engine, dataclasses.astuple(lengths), sampler.mesh, prefix)
    # A prompt within the context may still be too long for the caches.
    judge = dataclasses.replace(
        judge,
        context=min(judge.context or cfg.max_length, cfg.max_length),
        max_new_tokens=min(judge.max_new_tokens, lengths.max_new_tokens),
    )
    return Service(judge, thread, lengths, limits, Metrics(), expected, log_texts)


def template_prefix(judge: Judge, max_prompt: int) -> tuple[int, ...]:
    """Returns the tokens with which the judge's prompts for two responses begin.

    () if they are too few, if prompts of `max_prompt` tokens do not hold them, or if the template
    takes no two responses.
    """
    try:
        template = judge.template_for(Comparison("1. ?", ("+", "-")), Options())
        prefix = job.template_prefix(template, 2, judge.tokenizer)
    except ValueError:
        return ()
    return prefix if len(prefix) < max_prompt else ()


def _scalar_service(
    judge: ScalarJudge, limits: Limits, lengths: Lengths, log_texts: bool
) -> Service:
    """Builds the service of a scalar reward model. Raises ValueError for a wrong length."""
    longest = lengths.max_prompt
    if judge.context is not None and longest > judge.context:
        raise ValueError(
            f"--max_prompt {longest} is more than the context of {judge.name}, {judge.context}: "
            "lower it"
        )
    thread = EngineThread(NoRows(), dataclasses.astuple(lengths), judge.head.mesh)
    judge = dataclasses.replace(judge, max_tokens=longest)
    return Service(judge, thread, lengths, limits, Metrics(), log_texts=log_texts)


def warm_up(service: Service) -> None:
    """Compiles every program that requests within the lengths use; runs on the engine thread.

    Raises ValueError if the model's logits or rewards are not finite.
    """
    thread, judge, lengths = service.engine, service.judge, service.lengths
    engine = thread.engine
    if isinstance(judge, ScalarJudge):
        return judge.warm_up(lengths.max_prompt)
    token = judge.tokenizer.stop_ids[0]
    with use_mesh(thread.mesh):
        for length in prompt_lengths(lengths.max_prompt):
            engine.submit(Request([token] * length, engine.R + 1, 2))
            while engine.busy:
                for completion in engine.step():
                    if completion.error:
                        raise ValueError(f"the model cannot sample: {completion.error}")
    total = lengths.max_prompt + lengths.max_new_tokens
    if judge.meta_rm is not None:
        context = judge.meta_rm._model.cfg.max_length
        # Its prompt may have more tokens than the judge's, by those of its template at most.
        template = judge.meta_rm.encode((Comparison("q", ("a", "b")), (0, 1), ""))
        for size in program_sizes(total + len(template)):
            judge.meta_rm.score_tokens([[token] * min(size, context)], [0])
    if service.expected and judge.expected is not None:
        for size in program_sizes(max(total, ROW_TOKENS)):
            row = TokenTree()
            row.add([token] * size, 0)
            row.add_query(0, [token])
            judge.expected.log_probs(row)


def program_sizes(longest: int) -> list[int]:
    """Returns the padded lengths of sequences up to the longest."""
    return [size for size in LENGTHS if size <= padded_length(longest)]


def prompt_lengths(max_prompt: int) -> list[int]:
    """Returns one prompt length of each bucket up to the longest prompt."""
    buckets = sorted({*FEW_PROMPT_BUCKETS, *(b for b in PROMPT_BUCKETS if b > 256)})
    return [b for b in buckets if b < max_prompt] + [max_prompt]
