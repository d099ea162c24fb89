"""Plans how many prompts and rows run at once, from the mesh and the memory of a device."""

import math
import os
from collections.abc import Sequence

import jax
import numpy as np

from grm_jax import sharding
from grm_jax.models import weight_bytes
from grm_jax.models.config import TransformerConfig
from grm_jax.sampling import cache, prefixes
from grm_jax.sampling.buckets import prompt_bucket, ring_bucket
from grm_jax.sampling.request import Request, check

SHARE = 0.85  # of a device's memory; the rest is for activations, fragmentation and the runtime
LOGITS_COPIES = 4  # float32 [rows, vocabulary] arrays alive while a token is chosen
MAX_SLOTS = 64  # prompts at once, unless the caller sets prompt_slots
FULL_PROMPTS = 8  # rows for the samples of so many prompts; those of further prompts refill them
# Rows per batch shard of an accelerator: below it, a step takes as long as reading the weights
# does, however few rows there are (v5e: 197 TFLOP/s over 819 GB/s are 240 FLOPs per byte, and a
# bfloat16 weight is 2 bytes and 2 FLOPs a row).
BUSY_ROWS = 256
# A CPU pads the batch of a small model in less time than it compiles another shape. More rows than
# these do not raise the tokens per second.
SMALL_MODEL, FIXED_ROWS = 30_000_000, 64  # parameters, rows
# Share of finished rows at which a segment ends, so that waiting samples take their rows. A step of
# a small model on a CPU takes less time than an update by the host: fewer updates, more idle rows.
IDLE, SMALL_MODEL_IDLE = 0.05, 0.25
# (samples per prompt, on average; rows per prompt). Fewer rows than samples, so that finished rows
# are refilled; three sizes, so that inputs with other numbers of responses compile nothing new.
FIXED_ROWS_PER_PROMPT = ((12, 8), (1.75, 2), (0, 1))
GIB = 2.0**30


def state_bytes(
    cfg: TransformerConfig, P: int, R: int, S: int, T: int, Z: int = 0
) -> dict[str, int]:
    """Returns the bytes, over all devices, of prefixes, common and own, rings and logits."""
    token = cache.token_bytes(cfg)
    layers = cache.layer_windows(cfg)
    return {
        "common": sum(U * cache.prefix_length(Z, w) for U, w in layers) * token if Z else 0,
        "prefix": sum(U * cache.prefix_length(S, w) for U, w in layers) * P * token,
        "suffix": sum(U * cache.ring_length(T, w) for U, w in layers) * P * R * token,
        "logits": LOGITS_COPIES * 4 * P * R * (cfg.vocab_size + cfg.vocab_pad),
    }


def device_memory() -> tuple[int, int]:
    """Returns (bytes that one device may use, bytes in use on the fullest host).

    Emulated CPU devices share half of the machine's memory. All hosts of a pod must call it
    together, and get the same answer.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and stats.get("bytes_limit"):
        in_use = int(stats.get("bytes_in_use", 0))
        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import process_allgather

            in_use = int(process_allgather(np.float64(in_use)).max())
        return int(stats["bytes_limit"]), in_use
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // jax.device_count(), 0


def fit(
    cfg: TransformerConfig,
    requests: Sequence[Request],
    prompt_slots: int | None = None,
    rows: int | None = None,
    memory: int | None = None,
    taken: int | None = None,
    platform: str | None = None,
    share_prefixes: bool = False,
) -> tuple[int, int]:
    """Returns (prompt slots, rows per prompt): what the requests can use and memory holds.

    Slots are a power of two, or `prompt_slots`, so that a longer list compiles nothing new.
    Requests that cannot run (`request.check`) do not count.

    Args:
      prompt_slots, rows: upper bounds in place of the defaults.
      memory: bytes per device; default `device_memory`.
      taken: bytes per device of other arrays, such as the training state during rollouts; default
        what is in use, less the weights.
      platform: default `sharding.platform`.
      share_prefixes: whether the engine will run this list with common prefixes (`prefixes.py`).

    Raises:
      MemoryError: not even one row fits; with the memory breakdown.
    """
    runnable = [r for r in requests if not check(r, cfg)]
    if not runnable:
        return 1, 1
    shards = sharding.batch_shards(sharding.current_mesh())
    P = min(prompt_slots or MAX_SLOTS, _power_of_two(len(runnable)))
    # Few prompts run all their samples at once. Long lists run more prompts with fewer rows each:
    # rows finish at different times and are refilled from the prompt's other samples, whereas a
    # prompt whose samples all run at once keeps its slot until the longest of them finishes.
    target = FULL_PROMPTS * sum(r.k for r in runnable) / len(runnable)
    if (platform or sharding.platform()) != "cpu":
        target = max(target, BUSY_ROWS * shards)
    R = min(max(r.k for r in runnable), rows or _power_of_two(math.ceil(target / P)))
    return _shrink(cfg, runnable, (P, R), share_prefixes, memory, taken)


def fixed(
    cfg: TransformerConfig, requests: Sequence[Request], share_prefixes: bool = False
) -> tuple[int, int]:
    """Returns (prompt slots, rows per prompt) that do not depend on the number of requests.

    For models of at most SMALL_MODEL parameters on a CPU. Raises MemoryError as `fit`.

    Args:
      share_prefixes: see `fit`.
    """
    runnable = [r for r in requests if not check(r, cfg)]
    if not runnable:
        return 1, 1
    samples = sum(r.k for r in runnable) / len(runnable)
    R = next(rows for least, rows in FIXED_ROWS_PER_PROMPT if samples >= least)
    return _shrink(cfg, runnable, (FIXED_ROWS // R, R), share_prefixes)


def _shrink(
    cfg: TransformerConfig,
    runnable: Sequence[Request],
    batch: tuple[int, int],
    share_prefixes: bool,
    memory: int | None = None,
    taken: int | None = None,
) -> tuple[int, int]:
    """Returns the largest (prompt slots, rows), at most `batch`, that memory holds; see `fit`."""
    P, R = batch
    mesh = sharding.current_mesh()
    shards, tensor = sharding.batch_shards(mesh), 1 if mesh is None else mesh.shape["tensor"]
    groups = (
        prefixes.group_requests(runnable) if share_prefixes else [((), list(range(len(runnable))))]
    )
    rests = [
        len(runnable[i].prompt) - prefixes.num_used(runnable[i].prompt, common)
        for common, part in groups
        for i in part
    ]
    S, longest = prompt_bucket(max(rests)), max(len(common) for common, _ in groups)
    Z = prompt_bucket(longest) if longest else 0
    T = ring_bucket(max(r.token_limit(cfg) for r in runnable))
    weights = weight_bytes(cfg) // tensor
    limit, in_use = device_memory() if memory is None else (memory, 0)
    taken = max(0, in_use - weights) if taken is None else taken
    available = int(SHARE * limit) - weights - taken

    def per_device(P: int, R: int) -> int:
        sizes = state_bytes(cfg, P, R, S, T, Z)
        prefix_shards = shards if P % shards == 0 else 1
        row_shards = shards if P % shards == 0 or R % shards == 0 else 1
        # While rings grow, one old ring exists beside the new ones.
        rings = sizes["suffix"] + sizes["suffix"] // (2 * len(cache.layer_windows(cfg)))
        prefix = sizes["prefix"] // (prefix_shards * tensor)
        shared = prefixes.KEPT * sizes["common"] // tensor  # with the one of the previous group
        return shared + prefix + (rings + sizes["logits"]) // (row_shards * tensor)

    while per_device(P, R) > available and P > 1:
        P = (P + 1) // 2
    while per_device(P, R) > available and R > 1:
        R = (R + 1) // 2
    if per_device(P, R) > available:
        other = f" and {taken / GIB:.2f} GiB of other arrays" if taken else ""
        raise MemoryError(
            f"one row of prompt {S + Z} and {T} new tokens needs {per_device(P, R) / GIB:.2f} GiB "
            f"per device beside {weights / GIB:.2f} GiB of weights{other}; {SHARE:.0%} of "
            f"{limit / GIB:.2f} GiB is available: use more devices on `tensor`, a shorter prompt "
            "or fewer new tokens"
        )
    return P, R


def _power_of_two(n: int) -> int:
    return 1 << (max(1, n) - 1).bit_length()
