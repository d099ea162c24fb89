"""Continuous batching on the host: prompts wait for slots, samples wait for rows, and finished rows are replaced between device segments.

A prompt of k samples occupies one prompt slot with R rows; when a row ends, the prompt's next sample takes it, and when all its samples are
done the next prompt takes the slot. With R well below k a slot's rows stay busy until its prompt runs out of samples; with R = k the prompt's
keys are read for the most rows at once.

Prompts run shortest first. The caches hold prompts of the longest length so far and rows of the longest so far, both rounded up to declared
buckets; they grow while rows run, so nothing waits for a bucket to drain, and the number of compilations does not depend on the requests.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from grm_jax.models.transformer import Transformer
from grm_jax.sampling import cache, programs, weights
from grm_jax.sampling.buckets import prefill_batch, prompt_bucket, ring_bucket
from grm_jax.sampling.request import MAX_STOP_TOKENS, Completion, Request, check

SEGMENT = 32  # decode steps between two looks of the host
FINISH = {cache.STOP: "stop", cache.LENGTH: "length", cache.NONFINITE: "error"}


@dataclasses.dataclass
class Stats:
    """Of an engine since it was built. steps: decode steps of the device; slot_steps: steps x rows; busy: those that made a token of a live row.

    A row's first token comes with its prompt and costs no step.
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


class Engine:
    """Runs requests through P prompt slots of R rows each. Build it once per model; compiled programs are kept."""

    def __init__(
        self,
        model: Transformer,
        prompt_slots: int,
        rows: int,
        segment: int = SEGMENT,
        idle: float = 0.05,
    ):
        """segment: most decode steps between two looks of the host. idle: share of finished rows at which a segment ends early, while work waits."""
        model = weights.for_decoding(model)
        self.cfg = model.cfg
        self.graphdef, self.params = nnx.split(model)
        self.P, self.R, self.segment, self.idle = prompt_slots, rows, segment, idle
        mesh = jax.sharding.get_mesh()
        self.mesh = None if mesh.empty or mesh.size == 1 else mesh
        self.shards = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.platform = jax.default_backend()
        self.stats = Stats()

    def run(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yields every sample of every request as it finishes, in no fixed order; a request that cannot run yields its error, k times.

        What a row says does not depend on the order of the requests, nor on P, R or the segment. Call it under the mesh that the engine was built under.
        """
        waiting: list[int] = []
        for i, request in enumerate(requests):
            if error := check(request, self.cfg):
                yield from _failed(i, request, error)
            else:
                waiting.append(i)
        if not waiting:
            return
        waiting.sort(key=lambda i: -prompt_bucket(len(requests[i].prompt)))  # taken from the end
        longest = max(
            min(r.max_new_tokens, self.cfg.max_length - len(r.prompt))
            for r in (requests[i] for i in waiting)
        )
        self._take_shape(
            prompt_bucket(len(requests[waiting[-1]].prompt)),
            ring_bucket(min(self.segment, longest)),
        )
        state = self._programs.empty()
        slots: list[_Slot | None] = [None] * self.P
        poisoned = np.zeros(
            (self.P, self.R), bool
        )  # rows whose ring may hold numbers that are not finite
        while True:
            state = self._fill_slots(state, requests, waiting, slots)
            state, emitted = self._fill_rows(state, slots, poisoned)
            if emitted is not None:
                yield from self._collect(state, emitted, slots, poisoned, first=True)
                continue  # rows that ended with their first token make room at once
            if not any(row is not None for slot in slots if slot for row in slot.rows):
                return
            state = self._resize(state, self.shape.S, ring_bucket(self._needed_ring(slots)))
            state, emitted = self._programs.segment(
                self.params, state, self.segment, self._fewest(slots, waiting)
            )
            self.stats.segments += 1
            yield from self._collect(state, emitted, slots, poisoned)

    def _take_shape(self, S: int, T: int) -> None:
        self.shape = programs.Shape(self.P, self.R, S, T)
        self._programs = programs.build(
            self.graphdef, self.cfg, self.shape, self.segment, self.mesh, self.platform
        )

    def _resize(self, state, S: int, T: int):
        """Caches never shrink during a run: among many rows there is always a long one."""
        old = self.shape
        if S > old.S or T > old.T:
            self._take_shape(max(S, old.S), max(T, old.T))
            state = programs.resize(state, self.cfg, old, self.shape, self.mesh, self.platform)
        return state

    def _fewest(self, slots, waiting: list[int]) -> int:
        """Running rows below which the host must look again, because something that waits could start."""
        running = [sum(row is not None for row in slot.rows) for slot in slots if slot]
        if any(slot.next < slot.request.k for slot in slots if slot):
            return max(1, int(np.ceil(sum(running) * (1 - self.idle))))
        # Only prompts wait, and the first slot to be free is not free before all of its rows are done.
        return sum(running) - min(running) + 1 if waiting else 1

    def _fill_slots(self, state, requests, waiting: list[int], slots):
        free = [p for p, slot in enumerate(slots) if slot is None]
        while free and waiting:
            S = prompt_bucket(len(requests[waiting[-1]].prompt))
            alike = sum(prompt_bucket(len(requests[i].prompt)) == S for i in waiting[-len(free) :])
            B = prefill_batch(S, alike, self.shards)
            taken, free = free[:B], free[B:]
            ids = [waiting.pop() for _ in range(B)]
            batch = [requests[i] for i in ids]
            tokens = np.zeros((B, S), np.int32)
            for row, request in zip(tokens, batch):
                row[S - len(request.prompt) :] = request.prompt
            lengths = np.array([len(r.prompt) for r in batch], np.int32)
            state = self._resize(state, S, self.shape.T)
            prefix, last = programs.prefill_program(self.graphdef)(self.params, tokens, lengths)
            per_prompt = _per_prompt(batch, lengths, self.cfg)
            state = self._programs.insert(
                state, prefix, last, np.array(taken, np.int32), per_prompt
            )
            for p, i, request in zip(taken, ids, batch):
                slots[p] = _Slot(i, request, [None] * self.R)
            self.stats.prompts += B
        return state

    def _fill_rows(self, state, slots, poisoned):
        new = np.zeros((self.P, self.R), bool)
        sample = np.zeros((self.P, self.R), np.int32)
        for p, slot in enumerate(slots):
            for r in range(self.R) if slot else ():
                if slot.rows[r] is None and slot.next < slot.request.k:
                    slot.rows[r] = _Partial(slot.next)
                    new[p, r], sample[p, r] = True, slot.next
                    slot.next += 1
        if not new.any():
            return state, None
        if (new & poisoned).any():
            state = programs.scrub(state, self.cfg, self.shape, self.mesh, self.platform)
            poisoned &= ~new  # a row that stands idle goes on computing with what it has
        return self._programs.admit(self.params, state, new, sample)

    def _needed_ring(self, slots) -> int:
        """Tokens that the longest live row will have fed after the next segment (its last token is never fed)."""
        live = [
            (len(row.tokens), slot.limit(self.cfg))
            for slot in slots
            if slot
            for row in slot.rows
            if row is not None
        ]
        return max(min(n + self.segment, limit) - 1 for n, limit in live)

    def _collect(
        self, state, emitted, slots, poisoned, first: bool = False
    ) -> Iterator[Completion]:
        length, finish, steps, token, logp, logp_1 = jax.device_get(
            (
                state.length_PxR,
                state.finish_PxR,
                emitted.steps,
                emitted.token_CxPxR,
                emitted.logp_CxPxR,
                emitted.logp_1_CxPxR,
            )
        )
        if not first:
            self.stats.steps += int(steps)
            self.stats.slot_steps += int(steps) * self.P * self.R
        for p, slot in enumerate(slots):
            for r, row in enumerate(slot.rows if slot else ()):
                if row is None:
                    continue
                n = int(length[p, r]) - len(row.tokens)
                row.tokens.extend(token[:n, p, r].tolist())
                row.logprobs.extend(logp[:n, p, r].tolist())
                row.logprobs_1.extend(logp_1[:n, p, r].tolist())
                self.stats.tokens += n
                self.stats.busy += 0 if first else n
                if finish[p, r] != cache.RUNNING:
                    slot.rows[r] = None
                    poisoned[p, r] |= finish[p, r] == cache.NONFINITE
                    yield row.finished(slot.index, FINISH[int(finish[p, r])])
            if slot and slot.next >= slot.request.k and not any(slot.rows):
                slots[p] = None


@dataclasses.dataclass
class _Partial:
    sample: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    logprobs_1: list[float] = dataclasses.field(default_factory=list)

    def finished(self, request: int, finish: str) -> Completion:
        error = None
        if finish == "error":
            error = f"the logits of token {len(self.tokens)} are not finite: the weights or the prompt's activations hold NaN or infinity"
        arrays = (
            np.array(self.tokens, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.logprobs_1, np.float32),
        )
        return Completion(request, self.sample, *arrays, finish, error)


@dataclasses.dataclass
class _Slot:
    index: int
    request: Request
    rows: list[_Partial | None]
    next: int = 0  # the next sample to start

    def limit(self, cfg) -> int:
        return min(self.request.max_new_tokens, cfg.max_length - len(self.request.prompt))


def _failed(index: int, request: Request, error: str) -> Iterator[Completion]:
    none = np.zeros(0, np.float32)
    for sample in range(max(1, request.k)):
        yield Completion(index, sample, none.astype(np.int32), none, none, "error", error)


def _per_prompt(batch: Sequence[Request], lengths, cfg) -> dict[str, np.ndarray]:
    stops = np.full((len(batch), MAX_STOP_TOKENS), -1, np.int32)
    for row, request in zip(stops, batch):
        row[: len(request.stop)] = request.stop
    limits = [min(r.max_new_tokens, cfg.max_length - len(r.prompt)) for r in batch]
    return {
        "prompt_length_P": lengths,
        "temperature_P": np.array([r.temperature for r in batch], np.float32),
        "top_p_P": np.array([r.top_p for r in batch], np.float32),
        "top_k_P": np.array([r.top_k for r in batch], np.int32),
        "limit_P": np.array(limits, np.int32),
        "item_P": np.array([r.item for r in batch], np.int32),
        "seed_P": np.array([r.seed for r in batch], np.int32),
        "stop_PxE": stops,
    }
