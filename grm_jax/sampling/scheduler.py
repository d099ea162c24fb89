"""Continuous batching on the host: assigns prompts to slots and samples to rows between segments.

A prompt of k samples occupies one prompt slot of R rows. When a row finishes, the prompt's next
sample takes it; when all its samples are done, the next prompt takes the slot. With P = 1, R = 2:

    segment      1   2   3   4   5
    row 0        s0  s0  s2  s2  s2      s0 finished after segment 2, s2 takes its row
    row 1        s1  s1  s1  s3  -       s3 was the prompt's last sample

With R well below k, rows stay busy until the prompt runs out of samples; with R = k, the prompt's
keys are read for the most rows at once.

Prompts run shortest first. The caches hold prompts of the longest bucket and rows of the longest
bucket so far. They grow while rows run, so that nothing waits for a bucket to drain, and the number
of compilations does not depend on the requests.

`Engine.run` samples a list. A server calls `submit` and `cancel` between two calls of `step`:

    key = engine.submit(request)
    while engine.busy:
        for completion in engine.step():
            ...                          # completion.request_index is the key
"""

import dataclasses
import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from grm_jax.models import Transformer
from grm_jax.sampling import cache, plan, prefixes, programs, weights
from grm_jax.sampling.buckets import FEW_FIRST_RING, prefill_batch, prompt_bucket, ring_bucket
from grm_jax.sampling.request import Completion, Request, check
from grm_jax.sampling.slots import (
    Listener,
    Sample,
    Slot,
    Slots,
    Stats,
    failed,
    find_prefill_groups,
    min_running,
    needed_ring,
    packed,
    padded,
    per_prompt,
)
from grm_jax.sharding import batch_shards

SEGMENT = 32  # decode steps per segment, unless it ends early
FINISH = {cache.STOP: "stop", cache.LENGTH: "length", cache.NONFINITE: "error"}
MAX_CLOCK = 1 << 30  # an int32 of the state; a server decodes for months
Watch = Callable[[int, int], object]  # (prompts, tokens) since the last call


class Engine:
    """Runs requests through P prompt slots of R rows; keeps compiled programs between runs."""

    def __init__(
        self,
        model: Transformer,
        prompt_slots: int,
        rows: int,
        segment: int = SEGMENT,
        idle: float = plan.IDLE,
        few_shapes: bool = False,
        share_prefixes: bool = True,
        watch: Watch | None = None,
    ) -> None:
        """Builds an engine under the mesh in context.

        Args:
          segment: most decode steps between two updates by the host.
          idle: share of finished rows at which a segment ends early while samples wait.
          few_shapes: compiles fewer programs: prefills one prompt at a time, in fewer buckets.
          share_prefixes: prefills the tokens with which prompts begin once for all (`prefixes.py`).
          watch: called after each prefill and each segment, for a progress bar.
        """
        model = weights.for_decoding(model)
        self.cfg = model.cfg
        self.graphdef, self.params = nnx.split(model)
        self.P, self.R, self.segment, self.idle = prompt_slots, rows, segment, idle
        self.few_shapes, self.share_prefixes = few_shapes, share_prefixes
        self.watch: Watch = watch or (lambda prompts, tokens: None)
        self.target = programs.current_target(model.cfg)
        # The first decode segment, in a thread, while the prefill compiles and runs. The CPU's
        # compiler keeps two cores busy by itself.
        self.compile_ahead = self.target.platform != "cpu"
        self.stats = Stats()
        self._keys = itertools.count()
        self._waiting: deque[Slot] = deque()
        self._slots: Slots = [None] * self.P
        self._state: cache.State | None = None
        self._reserved: tuple[int, int] | None = None
        self._common: tuple[int, ...] = ()  # tokens of the common prefix
        # Arrays of common prefixes, by tokens; that of the last run is last.
        self._kept: dict[tuple[int, ...], Any] = {}
        self._cancelled: list[int] = []  # slots whose rows still run on the device

    def run(self, requests: Sequence[Request]) -> Generator[Completion]:
        """Yields every sample of every request as it finishes; the order is not fixed.

        A request that cannot run yields its error k times. A sample does not depend on the other
        requests, nor on P, R or the segment. Call it under the mesh that the engine was built
        under, and while no other requests run.
        """
        if self.busy:
            raise RuntimeError("the engine runs other requests: use submit and step")
        valid: list[int] = []
        for i, request in enumerate(requests):
            if error := check(request, self.cfg):
                yield from failed(i, request, error)
            else:
                valid.append(i)
        groups = [(self._common, valid)]
        if self.share_prefixes and not self._reserved:
            chosen = prefixes.group_requests([requests[i] for i in valid], tuple(self._kept))
            groups = [(common, [valid[i] for i in part]) for common, part in chosen]
        for self._common, part in groups:
            yield from self._run_group([self._slot(i, requests[i]) for i in part])

    def _run_group(self, slots: list[Slot]) -> Iterator[Completion]:
        """Runs requests that share a common prefix, and others that have none; as `run`."""
        # A small model prefills two prompts in less time than another program compiles.
        small = self.few_shapes and self.cfg.num_params <= plan.SMALL_MODEL
        if self.share_prefixes and not small:
            find_prefill_groups(
                slots, self.P, functools.partial(prompt_bucket, few=self.few_shapes)
            )
        # In order of the prefill's length, later requests first, those of a group side by side.
        last = {id(slot.prefill_group or slot): slot.request_index for slot in slots}

        def place(slot: Slot) -> tuple[int, ...]:
            last_of_group = last[id(slot.prefill_group or slot)]
            return *self._prefill_shape(slot), -last_of_group, -slot.request_index

        slots.sort(key=place)
        index = {self._enqueue(slot): slot.request_index for slot in slots}
        try:
            started = self._start_step()
            while started is not None:
                finished = self._finish_step(*started)
                # The device decodes on while the caller handles the samples that have finished.
                started = self._start_step()
                for completion in finished:
                    i = index[completion.request_index]
                    yield dataclasses.replace(completion, request_index=i)
        finally:  # the caller may stop early
            for key in index:
                self.cancel(key)

    @property
    def busy(self) -> bool:
        """Whether requests run or wait."""
        return bool(self._waiting) or any(self._slots)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a prompt slot."""
        return len(self._waiting)

    @property
    def running_rows(self) -> int:
        return sum(slot.running for slot in self._slots if slot)

    def reserve(
        self, max_prompt: int, max_new_tokens: int, common_prefix: Sequence[int] = ()
    ) -> None:
        """Fixes the caches' lengths: requests within them compile no decode segment again.

        The caches are then kept while no request runs. Call it before the first request.

        Args:
          common_prefix: tokens with which most prompts begin. They are prefilled once; prompts that
            begin with other tokens run as well.
        """
        self._common = tuple(common_prefix) if self.share_prefixes else ()
        ring = min(max_new_tokens, self.cfg.max_length)
        self._reserved = prompt_bucket(max_prompt, self.few_shapes), self._ring_bucket(ring)

    def submit(self, request: Request, listener: Listener | None = None) -> int:
        """Queues a request, first come first served; returns its key.

        The key is the `request_index` of its completions. Raises ValueError if it cannot run.

        Args:
          listener: called by `step` with new tokens, before the completions are returned.
        """
        if error := check(request, self.cfg):
            raise ValueError(error)
        return self._enqueue(self._slot(0, request, listener))

    def _slot(self, index: int, request: Request, listener: Listener | None = None) -> Slot:
        common = prefixes.num_used(request.prompt, self._common)
        return Slot(index, request, [], listener=listener, common=common)

    def _enqueue(self, slot: Slot) -> int:
        """Appends a request to the waiting ones; returns its key."""
        key = next(self._keys)
        self._waiting.append(dataclasses.replace(slot, request_index=key))
        return key

    def cancel(self, key: int) -> None:
        """Drops a request and frees its prompt slot and rows; no effect once it has finished."""
        groups = {slot.prefill_group for slot in self._waiting if slot.request_index == key}
        self._waiting = deque(slot for slot in self._waiting if slot.request_index != key)
        for waiting in self._waiting:
            if waiting.prefill_group in groups:
                waiting.prefill_group = None
        for p, slot in enumerate(self._slots):
            if slot is not None and slot.request_index == key:
                self._slots[p] = None
                self._cancelled.append(p)
        self._drop_unused_state()

    def step(self) -> list[Completion]:
        """Runs one admission or one decode segment; returns the samples that finished.

        Call it under the mesh that the engine was built under.
        """
        started = self._start_step()
        return self._finish_step(*started) if started else []

    def _start_step(self) -> tuple[cache.Emitted, bool] | None:
        """Starts one admission or one decode segment on the device, and does not wait for it.

        Returns:
          (emitted, first) for `_finish_step`; first: of an admission. None if no requests run.
        """
        if not self.busy:
            return None
        state = self._start() if self._state is None else self._state
        if self._cancelled:
            state = programs.end_rows(state, self._cancelled)
            self._cancelled.clear()
        state = self._fill_slots(state)
        state, emitted = self._fill_rows(state)
        first = emitted is not None  # rows that finish with their first token are refilled at once
        if emitted is None:
            ring = self._ring_bucket(needed_ring(self._slots, self.segment, self.cfg))
            state = self._resize(state, self.shape.S, ring)
            running = min_running(self._slots, self._waiting, self.idle)
            state, emitted = self._programs.segment(self.params, state, self.segment, running)
            self.stats.segments += 1
        self._state = state
        return emitted, first

    def _finish_step(self, emitted: cache.Emitted, first: bool) -> list[Completion]:
        """Waits for the device; returns the samples that finished."""
        assert self._state is not None
        tokens = self.stats.tokens
        finished = list(self._collect(self._state, emitted, first))
        self.watch(0, self.stats.tokens - tokens)
        self._limit_clock()
        self._drop_unused_state()
        return finished

    def _start(self) -> cache.State:
        """Returns an empty state for the waiting requests."""
        common = self._prefill_common()
        longest = max(slot.request.token_limit(self.cfg) for slot in self._waiting)
        first = min(FEW_FIRST_RING if self.few_shapes else self.segment, longest)
        entering = itertools.islice(self._waiting, self.P)
        shape = max(map(self._prompt_bucket, entering)), self._ring_bucket(first)
        self._set_shape(*(self._reserved or shape))
        self._maybe_nonfinite = np.zeros((self.P, self.R), bool)  # rows whose ring may be
        self._steps = 0  # the state's clock is at most this and the length of a ring
        state = programs.empty_on(self._programs, self.params, self.target)
        if common and self.target.mesh is None:  # committed as the rest of the state is
            common = jax.device_put(common, state.last_PxD.sharding)
        state = dataclasses.replace(state, common=common)
        if self.compile_ahead:
            self._programs.segment.compile_ahead(self.target.mesh, self.params, state)
        return state

    def _prefill_common(self) -> Any:
        """Returns the common prefix's arrays, [] without one; computes them unless it has them.

        One with non-finite values is not used: it would reach the prompts that do not use it.
        """
        if self._common in self._kept:
            return self._kept.pop(self._common)
        if self._common:
            Z = prompt_bucket(len(self._common), self.few_shapes)
            tokens = padded([self._common], Z)
            prefill = programs.prefill_program(self.graphdef)
            prefix, _ = prefill(self.params, tokens, np.array([len(self._common)], np.int32))
            shape = programs.Shape(self.P, self.R, 1, 1, Z)
            arrays, finite = programs.common_of(prefix, self.target, shape)
            self.stats.prefill_tokens += Z
            if finite:
                return arrays
            self._common = ()
            for slot in self._waiting:
                slot.common, slot.prefill_group = 0, None
        return []

    def _drop_unused_state(self) -> None:
        """Frees the caches, but for the common prefix, which the next run may use."""
        if self._reserved or self.busy or self._state is None:
            return
        common = self._state.common
        if common and not any(array.is_deleted() for array in jax.tree.leaves(common)):
            self._kept[self._common] = common
            for oldest in list(self._kept)[: -prefixes.KEPT]:
                del self._kept[oldest]
        self._state, self._common = None, ()
        self._cancelled.clear()

    def _limit_clock(self) -> None:
        """Reduces the clock by a multiple of every ring's length before it overflows."""
        if self._state is not None and self._steps > MAX_CLOCK:
            rings = (keys.shape[4] for keys, _ in self._state.suffix)
            self._steps = int(jax.device_get(self._state.clock)) % math.lcm(*rings)
            clock = jax.device_put(np.int32(self._steps), self._state.clock.sharding)
            self._state = dataclasses.replace(self._state, clock=clock)

    def _set_shape(self, S: int, T: int) -> None:
        Z = prompt_bucket(len(self._common), self.few_shapes) if self._common else 0
        self.shape = programs.Shape(self.P, self.R, S, T, Z)
        # Not at every call: the lookup hashes the whole structure of the model.
        self._prefill = programs.prefill_program(self.graphdef)
        if Z:
            self._prefill = programs.prefill_after_common_program(self.graphdef)
        self._programs = programs.build(self.graphdef, self.target, self.shape, self.segment)

    def _prompt_bucket(self, slot: Slot) -> int:
        return prompt_bucket(len(slot.own), self.few_shapes)

    def _prefill_shape(self, slot: Slot) -> tuple[int, int]:
        """Returns (bucket of the row, prompts of the row) of a waiting request's prefill."""
        if slot.prefill_group is None:
            return self._prompt_bucket(slot), 1
        return prompt_bucket(slot.prefill_group.length, self.few_shapes), slot.prefill_group.size

    def _ring_bucket(self, length: int) -> int:
        return ring_bucket(length, self.few_shapes)

    def _resize(self, state: cache.State, S: int, T: int) -> cache.State:
        """Extends the caches to S and T. They never shrink: one of many rows is always long."""
        old = self.shape
        if S > old.S or T > old.T:
            self._set_shape(max(S, old.S), max(T, old.T))
            state = programs.resize(state, self.target, old, self.shape)
        return state

    def _fill_slots(self, state: cache.State) -> cache.State:
        """Prefills waiting prompts of one bucket at a time into free slots."""
        free = [p for p, slot in enumerate(self._slots) if slot is None]
        shards = batch_shards(self.target.mesh)
        while free and self._waiting:
            first = itertools.islice(self._waiting, len(free))
            (S, size), same = next(itertools.groupby(first, self._prefill_shape))
            if size > len(free):
                break  # until the whole group can enter
            B = 1 if self.few_shapes else prefill_batch(S, len(list(same)) // size, shards)
            taken, free = free[: B * size], free[B * size :]
            entering = [self._waiting.popleft() for _ in taken]
            arrays = per_prompt(entering, self.cfg)
            state = self._resize(state, max(map(self._prompt_bucket, entering)), self.shape.T)
            prefix, last = self._prefill_rows(state, entering, S, size, arrays["common_length_P"])
            state = self._programs.insert(state, prefix, last, np.array(taken, np.int32), arrays)
            for p, slot in zip(taken, entering):
                slot.rows = [None] * self.R
                self._slots[p] = slot
            self.stats.prompts += len(entering)
            self.stats.prompt_tokens += sum(len(slot.request.prompt) for slot in entering)
            self.stats.prefill_tokens += B * S
            self.watch(len(entering), 0)
        return state

    def _prefill_rows(
        self, state: cache.State, slots: Sequence[Slot], S: int, size: int, used: np.ndarray
    ) -> Any:
        """Prefills prompts in rows of S tokens, `size` in each; returns (prefix, last).

        used: tokens of the common prefix per prompt.
        """
        if size == 1:
            lengths = np.array([len(slot.own) for slot in slots], np.int32)
            tokens = padded([slot.own for slot in slots], S)
            if not self.shape.Z:
                return self._prefill(self.params, tokens, lengths)
            return self._prefill(self.params, state.common, tokens, lengths, used)
        prefill = programs.prefill_groups_program(self.graphdef, self.shape.S)
        common = (state.common, used[::size]) if self.shape.Z else ()
        return prefill(self.params, *packed(slots, S), *common)

    def _fill_rows(self, state: cache.State) -> tuple[cache.State, cache.Emitted | None]:
        """Starts pending samples in free rows; returns their first tokens, or None without any."""
        new = np.zeros((self.P, self.R), bool)
        indices = np.zeros((self.P, self.R), np.int32)
        for p, slot in enumerate(self._slots):
            if slot is None:
                continue
            for r, sample in enumerate(slot.rows):
                if sample is None and slot.pending:
                    slot.rows[r] = Sample(slot.next_sample)
                    new[p, r], indices[p, r] = True, slot.next_sample
                    slot.next_sample += 1
        if not new.any():
            return state, None
        if (new & self._maybe_nonfinite).any():
            state = programs.clear_nonfinite(state, self.target, self.shape)
            self._maybe_nonfinite &= ~new  # an idle row computes NaN again
        return self._programs.admit(self.params, state, new, indices)

    def _collect(
        self, state: cache.State, emitted: cache.Emitted, first: bool
    ) -> Iterator[Completion]:
        """Appends emitted tokens to their samples; yields finished samples, frees rows and slots.

        first: the tokens come from an admission, which is no decode step.
        """
        length, finish, out = jax.device_get((state.length_PxR, state.finish_PxR, emitted))
        if not first:
            self.stats.steps += int(out.steps)
            self.stats.row_steps += int(out.steps) * self.P * self.R
            self._steps += int(out.steps)
        for p, slot in enumerate(self._slots):
            if slot is None:
                continue
            for r, sample in enumerate(slot.rows):
                if sample is None:
                    continue
                n = int(length[p, r]) - len(sample.tokens)
                arrays = (out.token_CxPxR, out.logprob_CxPxR, out.logprob_1_CxPxR)
                new: list[list[Any]] = [array[:n, p, r].tolist() for array in arrays]
                sample.tokens += new[0]
                sample.logprobs += new[1]
                sample.logprobs_1 += new[2]
                if slot.listener and n:
                    slot.listener(sample.index, *new)
                self.stats.tokens += n
                self.stats.busy += 0 if first else n
                if finish[p, r] != cache.RUNNING:
                    slot.rows[r] = None
                    self._maybe_nonfinite[p, r] |= finish[p, r] == cache.NONFINITE
                    yield sample.completion(slot.request_index, FINISH[int(finish[p, r])])
            if not slot.pending and not slot.running:
                self._slots[p] = None
