"""How many rows fit: planned from the mesh and the memory of a chip, instead of found by crashing."""

import math
import os
from collections.abc import Sequence

import jax
import numpy as np

from grm_jax.models.config import TransformerConfig
from grm_jax.sampling import cache
from grm_jax.sampling.buckets import prompt_bucket, ring_bucket
from grm_jax.sampling.request import Request, check

SHARE = 0.85  # of a chip's memory; the rest is for activations, fragmentation and the runtime
LOGITS_COPIES = 4  # float32 [rows, vocabulary] arrays alive while a token is chosen


def state_bytes(cfg: TransformerConfig, P: int, R: int, S: int, T: int) -> dict[str, int]:
    """Bytes over all devices of one sampler state: its prefixes, its rings, and the logits of a step."""
    token = 2 * cfg.num_kv_heads * cfg.head_dim * jax.numpy.dtype(cfg.dtype).itemsize
    layers = cache.layer_windows(cfg)
    return {
        "prefix": sum(U * cache.prefix_length(S, w) for U, w in layers) * P * token,
        "suffix": sum(U * cache.ring_length(T, w) for U, w in layers) * P * R * token,
        "logits": LOGITS_COPIES * 4 * P * R * (cfg.vocab_size + cfg.vocab_pad),
    }


def device_memory() -> tuple[int, int]:
    """(bytes that one device may use, bytes in use on the fullest host): as its runtime reports, or half of the machine's memory for (all)
    emulated devices on a CPU. All hosts of a pod must ask together, and all get the same answer."""
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
) -> tuple[int, int]:
    """(prompt slots, rows per prompt) for these requests: at most what they can use, at most what memory holds beside the weights.

    memory: bytes per device; by default what `device_memory` says. taken: bytes per device that something else occupies meanwhile, as the
    training state does during rollouts; by default what is in use now, less the weights. Slots are a power of two, so that a longer list
    compiles nothing new. platform: what it is planned for, by default what JAX runs on.
    prompt_slots and rows are taken as given, as far as memory allows. Requests that cannot run (`request.check`) are left out.
    Raises MemoryError with the bill if not even one row fits.
    """
    good = [r for r in requests if not check(r, cfg)]
    if not good:
        return 1, 1
    P = _up(min(prompt_slots or MOST_SLOTS, len(good)))
    # Few prompts run all their samples at once. Long lists take more prompts with fewer rows each, which finish at different times and are
    # refilled from the prompt's other samples: a prompt whose rows all run at once keeps its slot until the longest of them ends.
    mean_k = sum(r.k for r in good) / len(good)
    mesh = jax.sharding.get_abstract_mesh()
    shape = {"data": 1, "fsdp": 1, "tensor": 1} if mesh.empty else mesh.shape
    wanted = FULL_PROMPTS * mean_k
    if (platform or jax.default_backend()) != "cpu":
        wanted = max(wanted, BUSY_ROWS * shape["data"] * shape["fsdp"])
    R = min(max(r.k for r in good), _up(math.ceil(wanted / P))) if rows is None else rows
    S = prompt_bucket(max(len(r.prompt) for r in good))
    T = ring_bucket(max(r.token_limit(cfg) for r in good))
    weights = cfg.num_params * jax.numpy.dtype(cfg.dtype).itemsize // shape["tensor"]
    limit, in_use = device_memory() if memory is None else (memory, 0)
    taken = max(0, in_use - weights) if taken is None else taken
    room = int(SHARE * limit) - weights - taken

    def per_device(P, R):
        split = shape["data"] * shape["fsdp"]
        parts = state_bytes(cfg, P, R, S, T)
        rows_split = split if P % split == 0 or R % split == 0 else 1
        prefix_split = split if P % split == 0 else 1
        tensor = shape["tensor"]
        grown = parts["suffix"] + parts["suffix"] // (
            2 * len(cache.layer_windows(cfg))
        )  # one old ring beside the longer ones
        return parts["prefix"] // (prefix_split * tensor) + (grown + parts["logits"]) // (
            rows_split * tensor
        )

    while per_device(P, R) > room and P > 1:
        P //= 2
    while per_device(P, R) > room and R > 1:
        R = (R + 1) // 2
    if per_device(P, R) > room:
        gib = 2.0**30
        raise MemoryError(
            f"one row of prompt {S} and {T} new tokens needs {per_device(P, R) / gib:.2f} GiB per device beside {weights / gib:.2f} GiB of weights"
            f"{f' and {taken / gib:.2f} GiB of other arrays' if taken else ''}, and {SHARE:.0%} of {limit / gib:.2f} GiB is there: "
            "use more devices on `tensor`, a shorter prompt or fewer new tokens"
        )
    return P, R


FULL_PROMPTS = (
    8  # at least as many rows as the samples of that many prompts, few enough to refill often
)
# On an accelerator at least that many on each part of the mesh: below, a step takes as long as reading the weights does, however few rows there
# are (v5e: 197 TFLOP/s over 819 GB/s are 240 FLOPs per byte, and a bfloat16 weight is 2 bytes and 2 FLOPs a row).
BUSY_ROWS = 256
MOST_SLOTS = 64  # prompts at once, unless the caller says otherwise


def _up(n: int) -> int:
    return 1 << (max(1, n) - 1).bit_length()
