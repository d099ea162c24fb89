"""Requests in the prompt slots of an engine: samples in rows, counts, and per-prompt arrays."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from grm_jax.models.config import TransformerConfig
from grm_jax.sampling.buckets import PREFILL_TOKENS
from grm_jax.sampling.request import MAX_STOP_TOKENS, Completion, Request

# Called with (sample index, tokens, logprobs, logprobs_1) of the tokens that a step has added.
Listener = Callable[[int, list[int], list[float], list[float]], None]


@dataclasses.dataclass
class Stats:
    """Counts since the engine was built. The first token of a sample costs no step.

    Attributes:
      tokens: of all samples.
      steps: decode steps of the device.
      row_steps: steps times rows.
      busy: row_steps that produced a token.
      segments: decode segments.
      prompts: prefilled prompts.
      prompt_tokens: of these prompts.
      prefill_tokens: that prefills computed, padding included; a common prefix counts each time it
        is computed.
    """

    tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    busy: int = 0
    segments: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    prefill_tokens: int = 0

    @property
    def utilisation(self) -> float:
        return self.busy / max(1, self.row_steps)


@dataclasses.dataclass
class Sample:
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


@dataclasses.dataclass(frozen=True, eq=False)
class PrefillGroup:
    """Requests whose prompts are prefilled in one row (`prefill.prefill_groups`).

    Attributes:
      shared: tokens after the common prefix with which the prompts begin.
      size: number of requests.
      length: tokens of the row.
    """

    shared: int
    size: int
    length: int


@dataclasses.dataclass
class Slot:
    """A request and the sample in each row of its prompt slot (None: the row is free).

    rows: empty while the request waits for a slot.
    common: tokens of the common prefix that the prompt uses; see `prefixes.num_used`.
    prefill_group: None if the prompt is prefilled alone.
    """

    request_index: int
    request: Request
    rows: list[Sample | None]
    next_sample: int = 0
    listener: Listener | None = None
    common: int = 0
    prefill_group: PrefillGroup | None = None

    @property
    def own(self) -> Sequence[int]:
        """The prompt's tokens after the common prefix."""
        return self.request.prompt[self.common :]

    @property
    def pending(self) -> bool:
        """Whether samples have not started."""
        return self.next_sample < self.request.k

    @property
    def running(self) -> int:
        return sum(sample is not None for sample in self.rows)


Slots = list[Slot | None]


def find_prefill_groups(slots: Sequence[Slot], largest: int, bucket: Callable[[int], int]) -> None:
    """Sets `prefill_group` of requests whose prefill in one row is shorter than one by one.

    These are requests of one `Request.group` that share tokens after the common prefix.

    Args:
      largest: most requests of a prefill group.
      bucket: from a length to the one that is computed.
    """
    groups: dict[tuple[int, int, tuple[int, ...]], list[Slot]] = {}
    for slot in slots:
        if slot.request.group_prefix > slot.common:
            begin = tuple(slot.request.prompt[: slot.request.group_prefix])
            key = slot.request.group, slot.common, begin
            groups.setdefault(key, []).append(slot)
    for (_, common, begin), members in groups.items():
        size, own, shared = len(members), [len(slot.own) for slot in members], len(begin) - common
        length = sum(own) - (size - 1) * shared
        # A row needs no more memory than the prompts by themselves: `plan.fit` does not count it.
        is_small = length <= max(PREFILL_TOKENS, bucket(max(own)))
        if 1 < size <= largest and is_small and bucket(length) < sum(map(bucket, own)):
            group = PrefillGroup(shared, size, length)
            for slot in members:
                slot.prefill_group = group


def packed(slots: Sequence[Slot], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens_BxS, lengths_BxF) of groups for `prefill.prefill_groups`; S = length.

    slots: whole groups of one size, the members side by side.
    """
    group = slots[0].prefill_group
    assert group is not None
    rows, lengths = [], []
    for i in range(0, len(slots), group.size):
        members = slots[i : i + group.size]
        assert members[0].prefill_group is not None
        shared = members[0].prefill_group.shared
        parts = [members[0].own[:shared], *(slot.own[shared:] for slot in members)]
        rows.append([token for part in parts for token in part])
        lengths.append([len(part) for part in parts])
    return padded(rows, length), np.array(lengths, np.int32)


def failed(index: int, request: Request, error: str) -> Iterator[Completion]:
    empty = np.zeros(0, np.float32)
    for sample in range(max(1, request.k)):
        yield Completion(index, sample, empty.astype(np.int32), empty, empty, "error", error)


def per_prompt(slots: Sequence[Slot], cfg: TransformerConfig) -> dict[str, Any]:
    """Returns the state's `_P` and `_PxE` fields of the slots' requests."""
    batch = [slot.request for slot in slots]
    stops = np.full((len(batch), MAX_STOP_TOKENS), -1, np.int32)
    for row, request in zip(stops, batch):
        row[: len(request.stop)] = request.stop
    return {
        "prompt_length_P": np.array([len(r.prompt) for r in batch], np.int32),
        "common_length_P": np.array([slot.common for slot in slots], np.int32),
        "temperature_P": np.array([r.temperature for r in batch], np.float32),
        "top_p_P": np.array([r.top_p for r in batch], np.float32),
        "top_k_P": np.array([r.top_k for r in batch], np.int32),
        "limit_P": np.array([r.token_limit(cfg) for r in batch], np.int32),
        "item_P": np.array([r.item for r in batch], np.int32),
        "seed_P": np.array([r.seed for r in batch], np.int32),
        "stop_PxE": stops,
    }


def needed_ring(slots: Slots, segment: int, cfg: TransformerConfig) -> int:
    """Returns the tokens that the longest row will have fed after `segment` more steps.

    The last token of a row is never fed.
    """
    return max(
        min(len(sample.tokens) + segment, slot.request.token_limit(cfg)) - 1
        for slot in slots
        if slot
        for sample in slot.rows
        if sample is not None
    )


def min_running(slots: Slots, waiting: Sequence[Any], idle: float) -> int:
    """Returns the number of running rows below which waiting work can start.

    idle: see `Engine`.
    """
    running = [slot.running for slot in slots if slot]
    if any(slot.pending for slot in slots if slot):
        return max(1, int(np.ceil(sum(running) * (1 - idle))))
    # Only prompts wait. The first slot to become free is free when all of its rows are done.
    return sum(running) - min(running) + 1 if waiting else 1


def padded(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Returns sequences left-padded to (len(sequences), length), int32."""
    tokens = np.zeros((len(sequences), length), np.int32)
    for row, sequence in zip(tokens, sequences):
        row[length - len(sequence) :] = sequence
    return tokens
