"""Packed batches for supervised fine-tuning: several examples per batch row, with segment ids.

The plan (which examples share a row) depends on lengths and seed only, so every process computes
the same one. Batch `step` is a pure function of the plan: to resume, with any number of processes,
call `batch(step)`. `training.state.put_batch` places each process's share of it.

A row of length 12 with examples of 5 and 4 tokens (prompts of 3 and 2):
    tokens       a b c d e f g h i 0 0 0
    positions    0 1 2 3 4 0 1 2 3 0 0 0
    segment_ids  1 1 1 1 1 2 2 2 2 0 0 0
    weights      0 0 0 1 1 0 0 1 1 0 0 0
Axes: B rows of a batch, L positions.
"""

import dataclasses
import functools
import logging

import numpy as np

from grm_jax.data.sft import Encoded

log = logging.getLogger(__name__)

_OPEN_ROWS = 64  # rows that still take examples: more would fill better and plan slower


def plan_rows(lengths: np.ndarray, seq_len: int, seed: int) -> list[list[int]]:
    """Assigns examples to rows of `seq_len` tokens by best fit, in an order drawn from the seed.

    Returns:
      Example indices of each row, without the examples that are longer than a row.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = []
    room: list[int] = []  # free tokens of each open row
    for i in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[i])
        if length > seq_len:
            continue
        fitting = [slot for slot, left in enumerate(room) if left >= length]
        if fitting:
            slot = min(fitting, key=room.__getitem__)
        else:
            if len(open_rows) == _OPEN_ROWS:
                fullest = room.index(min(room))
                del open_rows[fullest], room[fullest]
            slot = len(open_rows)
            open_rows.append([])
            room.append(seq_len)
            rows.append(open_rows[slot])
        open_rows[slot].append(i)
        room[slot] -= length
    return rows


@dataclasses.dataclass(frozen=True)
class PackedBatches:
    """An endless stream of packed batches with random access by step.

    Attributes:
      data: the encoded examples.
      batch_size: rows of a batch.
      seq_len: tokens of a row. Longer examples are dropped and logged: a truncated critique would
        teach the model to stop early.
      seed: of the packing and of the order of the rows, which changes in each epoch.
      rows: example indices of each row of an epoch, in which each example occurs once.
    """

    data: Encoded
    batch_size: int
    seq_len: int
    seed: int = 0
    rows: list[list[int]] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = plan_rows(self.data.lengths, self.seq_len, self.seed)
        if not rows:
            raise ValueError(
                f"none of {len(self.data)} examples fits seq_len {self.seq_len}: raise seq_len"
            )
        if too_long := len(self.data) - sum(map(len, rows)):
            counts = too_long, len(self.data), self.seq_len
            log.warning("%d of %d examples are longer than %d tokens", *counts)
        object.__setattr__(self, "rows", rows)

    @property
    def fill(self) -> float:
        """Share of the positions that have tokens."""
        used = sum(int(self.data.lengths[i]) for row in self.rows for i in row)
        return used / (len(self.rows) * self.seq_len)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the arrays of batch number `step`, all (B, L).

        tokens, positions, segment_ids: int32.  weights: float32.
        """
        shape = (self.batch_size, self.seq_len)
        batch = {
            "tokens": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "segment_ids": np.zeros(shape, np.int32),
            "weights": np.zeros(shape, np.float32),
        }
        for r in range(self.batch_size):
            place, start = step * self.batch_size + r, 0
            examples = self.rows[shuffled_index(place, len(self.rows), self.seed)]
            for segment, i in enumerate(examples, 1):
                tokens, prompt = self.data[i]
                span = slice(start, start + len(tokens))
                batch["tokens"][r, span] = tokens
                batch["positions"][r, span] = np.arange(len(tokens))
                batch["segment_ids"][r, span] = segment
                batch["weights"][r, start + prompt : span.stop] = 1.0
                start = span.stop
        return batch


def shuffled_index(place: int, count: int, seed: int) -> int:
    """Returns the item at a place of an endless stream; each epoch permutes all `count` items."""
    epoch, position = divmod(place, count)
    return int(_permutation(count, seed, epoch)[position])


# A batch may span two epochs, and a process may read several streams.
@functools.lru_cache(maxsize=16)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
