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
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from grm_jax.models import Transformer
from grm_jax.models.config import TransformerConfig
from grm_jax.sampling import cache, programs, weights
from grm_jax.sampling.buckets import FEW_FIRST_RING, prefill_batch, prompt_bucket, ring_bucket
from grm_jax.sampling.request import MAX_STOP_TOKENS, Completion, Request, check
from grm_jax.sharding import batch_shards

SEGMENT = 32  # decode steps per segment, unless it ends early
FINISH = {cache.STOP: "stop", cache.LENGTH: "length", cache.NONFINITE: "error"}


@dataclasses.dataclass
class Stats:
    """Counts since the engine was built. The first token of a sample costs no step.

    Attributes:
      tokens: of all samples.
      steps: decode steps of the device.
      slot_steps: steps times rows.
      busy: slot_steps that produced a token.
      segments: decode segments.
      prompts: prefilled prompts.
    """

    tokens: int = 0
    steps: int = 0
    slot_steps: int = 0
    busy: int = 0
    segments: int = 0
    prompts: int = 0

    @property
    def utilisation(self) -> float:
        return self.busy / max(1, self.slot_steps)


@dataclasses.dataclass
class _Sample:
    index: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    logprobs_1: list[float] = dataclasses.field(default_factory=list)

    def completion(self, request_index: int, finish: str) -> Completion:
        error = None
        if finish == "error":
            error = (
                f"the logits of token {len(self.tokens)} are not finite: "
                "the weights or the prompt's activations have NaN or infinity"
            )
        return Completion(
            request_index,
            self.index,
            np.array(self.tokens, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.logprobs_1, np.float32),
            finish,
            error,
        )


@dataclasses.dataclass
class _Slot:
    """A prompt slot: its request and the sample in each of its rows (None: the row is free)."""

    request_index: int
    request: Request
    rows: list[_Sample | None]
    next_sample: int = 0

    @property
    def pending(self) -> bool:
        """Whether samples have not started."""
        return self.next_sample < self.request.k

    @property
    def running(self) -> int:
        return sum(sample is not None for sample in self.rows)


Slots = list[_Slot | None]


class Engine:
    """Runs requests through P prompt slots of R rows; keeps compiled programs between runs."""

    def __init__(
        self,
        model: Transformer,
        prompt_slots: int,
        rows: int,
        segment: int = SEGMENT,
        idle: float = 0.05,
        few_shapes: bool = False,
    ) -> None:
        """Builds an engine under the mesh in context.

        Args:
          segment: most decode steps between two updates by the host.
          idle: share of finished rows at which a segment ends early while samples wait.
          few_shapes: compiles fewer programs: prefills one prompt at a time, in fewer buckets.
        """
        model = weights.for_decoding(model)
        self.cfg = model.cfg
        self.graphdef, self.params = nnx.split(model)
        self.P, self.R, self.segment, self.idle = prompt_slots, rows, segment, idle
        self.few_shapes = few_shapes
        self.target = programs.current_target(model.cfg)
        self.stats = Stats()

    def run(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yields every sample of every request as it finishes; the order is not fixed.

        A request that cannot run yields its error k times. A sample does not depend on the other
        requests, nor on P, R or the segment. Call it under the mesh that the engine was built
        under.
        """
        waiting: list[int] = []
        for i, request in enumerate(requests):
            if error := check(request, self.cfg):
                yield from _failed(i, request, error)
            else:
                waiting.append(i)
        if not waiting:
            return
        # Shortest prompts last: they are taken from the end.
        waiting.sort(key=lambda i: -self._prompt_bucket(requests[i]))
        longest = max(requests[i].token_limit(self.cfg) for i in waiting)
        first = min(FEW_FIRST_RING if self.few_shapes else self.segment, longest)
        self._set_shape(self._prompt_bucket(requests[waiting[-1]]), self._ring_bucket(first))
        state = self._empty()
        slots: Slots = [None] * self.P
        poisoned = np.zeros((self.P, self.R), bool)  # rows whose ring may have non-finite values
        while True:
            state = self._fill_slots(state, requests, waiting, slots)
            state, emitted = self._fill_rows(state, slots, poisoned)
            if emitted is not None:
                yield from self._collect(state, emitted, slots, poisoned, first=True)
                continue  # rows that finished with their first token are refilled at once
            if not any(slot.running for slot in slots if slot):
                return
            state = self._resize(state, self.shape.S, self._ring_bucket(self._needed_ring(slots)))
            state, emitted = self._programs.segment(
                self.params, state, self.segment, self._min_running(slots, waiting)
            )
            self.stats.segments += 1
            yield from self._collect(state, emitted, slots, poisoned)

    def _set_shape(self, S: int, T: int) -> None:
        self.shape = programs.Shape(self.P, self.R, S, T)
        # Not at every call: the lookup hashes the whole structure of the model.
        self._prefill = programs.prefill_program(self.graphdef)
        self._programs = programs.build(self.graphdef, self.target, self.shape, self.segment)

    def _empty(self) -> cache.State:
        """Returns the empty state on the weights' device.

        Committed, as the programs' results are: a program compiles again for other arguments.
        """
        state, weights = self._programs.empty(), jax.tree.leaves(self.params)[0]
        one_device = isinstance(weights, jax.Array) and len(weights.devices()) == 1
        if self.target.mesh is not None or self.target.platform == "tpu" or not one_device:
            return state
        sharding = weights.sharding
        if isinstance(sharding, NamedSharding):  # a mesh of this device
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        return jax.device_put(state, sharding)

    def _prompt_bucket(self, request: Request) -> int:
        return prompt_bucket(len(request.prompt), self.few_shapes)

    def _ring_bucket(self, length: int) -> int:
        return ring_bucket(length, self.few_shapes)

    def _resize(self, state: cache.State, S: int, T: int) -> cache.State:
        """Extends the caches to S and T. They never shrink: one of many rows is always long."""
        old = self.shape
        if S > old.S or T > old.T:
            self._set_shape(max(S, old.S), max(T, old.T))
            state = programs.resize(state, self.target, old, self.shape)
        return state

    def _min_running(self, slots: Slots, waiting: list[int]) -> int:
        """Returns the number of running rows below which waiting work can start."""
        running = [slot.running for slot in slots if slot]
        if any(slot.pending for slot in slots if slot):
            return max(1, int(np.ceil(sum(running) * (1 - self.idle))))
        # Only prompts wait. The first slot to become free is free when all of its rows are done.
        return sum(running) - min(running) + 1 if waiting else 1

    def _fill_slots(
        self, state: cache.State, requests: Sequence[Request], waiting: list[int], slots: Slots
    ) -> cache.State:
        """Prefills waiting prompts of one bucket at a time into free slots."""
        free = [p for p, slot in enumerate(slots) if slot is None]
        while free and waiting:
            S = self._prompt_bucket(requests[waiting[-1]])
            same = sum(self._prompt_bucket(requests[i]) == S for i in waiting[-len(free) :])
            B = 1 if self.few_shapes else prefill_batch(S, same, batch_shards(self.target.mesh))
            taken, free = free[:B], free[B:]
            ids = [waiting.pop() for _ in range(B)]
            batch = [requests[i] for i in ids]
            tokens = np.zeros((B, S), np.int32)
            for padded, request in zip(tokens, batch):
                padded[S - len(request.prompt) :] = request.prompt
            lengths = np.array([len(request.prompt) for request in batch], np.int32)
            state = self._resize(state, S, self.shape.T)
            prefix, last = self._prefill(self.params, tokens, lengths)
            per_prompt = _per_prompt(batch, lengths, self.cfg)
            state = self._programs.insert(
                state, prefix, last, np.array(taken, np.int32), per_prompt
            )
            for p, i, request in zip(taken, ids, batch):
                slots[p] = _Slot(i, request, [None] * self.R)
            self.stats.prompts += B
        return state

    def _fill_rows(
        self, state: cache.State, slots: Slots, poisoned: np.ndarray
    ) -> tuple[cache.State, cache.Emitted | None]:
        """Starts pending samples in free rows; returns their first tokens, or None without any."""
        new = np.zeros((self.P, self.R), bool)
        indices = np.zeros((self.P, self.R), np.int32)
        for p, slot in enumerate(slots):
            if slot is None:
                continue
            for r, sample in enumerate(slot.rows):
                if sample is None and slot.pending:
                    slot.rows[r] = _Sample(slot.next_sample)
                    new[p, r], indices[p, r] = True, slot.next_sample
                    slot.next_sample += 1
        if not new.any():
            return state, None
        if (new & poisoned).any():
            state = programs.clear_nonfinite(state, self.target, self.shape)
            poisoned &= ~new  # an idle row computes NaN again
        return self._programs.admit(self.params, state, new, indices)

    def _needed_ring(self, slots: Slots) -> int:
        """Returns the tokens that the longest row will have fed after the next segment.

        The last token of a row is never fed.
        """
        return max(
            min(len(sample.tokens) + self.segment, slot.request.token_limit(self.cfg)) - 1
            for slot in slots
            if slot
            for sample in slot.rows
            if sample is not None
        )

    def _collect(
        self,
        state: cache.State,
        emitted: cache.Emitted,
        slots: Slots,
        poisoned: np.ndarray,
        first: bool = False,
    ) -> Iterator[Completion]:
        """Appends emitted tokens to their samples; yields finished samples, frees rows and slots.

        first: the tokens come from an admission, which is no decode step.
        """
        length, finish, out = jax.device_get((state.length_PxR, state.finish_PxR, emitted))
        if not first:
            self.stats.steps += int(out.steps)
            self.stats.slot_steps += int(out.steps) * self.P * self.R
        for p, slot in enumerate(slots):
            if slot is None:
                continue
            for r, sample in enumerate(slot.rows):
                if sample is None:
                    continue
                n = int(length[p, r]) - len(sample.tokens)
                sample.tokens.extend(out.token_CxPxR[:n, p, r].tolist())
                sample.logprobs.extend(out.logprob_CxPxR[:n, p, r].tolist())
                sample.logprobs_1.extend(out.logprob_1_CxPxR[:n, p, r].tolist())
                self.stats.tokens += n
                self.stats.busy += 0 if first else n
                if finish[p, r] != cache.RUNNING:
                    slot.rows[r] = None
                    poisoned[p, r] |= finish[p, r] == cache.NONFINITE
                    yield sample.completion(slot.request_index, FINISH[int(finish[p, r])])
            if not slot.pending and not slot.running:
                slots[p] = None


def _failed(index: int, request: Request, error: str) -> Iterator[Completion]:
    empty = np.zeros(0, np.float32)
    for sample in range(max(1, request.k)):
        yield Completion(index, sample, empty.astype(np.int32), empty, empty, "error", error)


def _per_prompt(
    batch: Sequence[Request], lengths: np.ndarray, cfg: TransformerConfig
) -> dict[str, Any]:
    stops = np.full((len(batch), MAX_STOP_TOKENS), -1, np.int32)
    for padded, request in zip(stops, batch):
        padded[: len(request.stop)] = request.stop
    return {
        "prompt_length_P": lengths,
        "temperature_P": np.array([r.temperature for r in batch], np.float32),
        "top_p_P": np.array([r.top_p for r in batch], np.float32),
        "top_k_P": np.array([r.top_k for r in batch], np.int32),
        "limit_P": np.array([r.token_limit(cfg) for r in batch], np.int32),
        "item_P": np.array([r.item for r in batch], np.int32),
        "seed_P": np.array([r.seed for r in batch], np.int32),
        "stop_PxE": stops,
    }
