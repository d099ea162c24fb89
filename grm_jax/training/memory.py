"""Chooses the rematerialisation and the micro-batch size of an update that fit device memory.

    config.model_overrides.remat = "auto"    the least recomputation that fits
    config.STAGE.micro_rows = -1             the most sequences at once that fit with it

Each stage chooses for its own update, before it starts. An estimate from shapes picks the candidate
to compile; the compiler's peak memory decides. Results do not depend on the choice, except for the
order in which the gradients of micro-batches are added.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.sampling.plan import device_memory
from grm_jax.sharding import batch_shards
from grm_jax.training import grpo, machines, meta_rm, rft
from grm_jax.training.programs import AUTO, Program, model_config

log = logging.getLogger(__name__)
GIB = 2.0**30
HEADROOM = 0.1  # share of the memory that stays free at the peak
MOST_COMPILED = 3  # candidates; one more if none of them fits
# From the least recomputation. Not "none", which also saves elementwise results, nor "dots", which
# saves as much as "products" but also recomputes attention.
POLICIES = ("products", "mlp", "outputs", "full")


@dataclasses.dataclass(frozen=True, order=True)
class Candidate:
    """A choice for an update.

    Attributes:
      remat: a policy of `TransformerConfig.remat`.
      micro_rows: sequences that each data-parallel shard processes at once; 0 if the config sets
        `micro_batches` instead.
    """

    remat: str
    micro_rows: int


def choose(
    config: ConfigDict,
    stage: str,
    mesh: Mesh,
    memory: int | None = None,
    measure: Callable[[ConfigDict], float] | None = None,
    report: Callable[[str], None] = log.info,
    taken: int = 0,
) -> ConfigDict:
    """Returns the config with values for a stage's `remat="auto"` and `micro_rows=-1`.

    Deterministic, and the same on all hosts: a function of the config, the mesh, the memory and the
    compiler.

    Args:
      config: an experiment.
      stage: "rft", "rl" or "meta_rm".
      mesh: of the update; its devices may be compile-only.
      memory: bytes of a device. Default `plan.device_memory`: on a CPU, half of the machine's
        memory divided by the emulated devices.
      measure: config with a candidate's values -> peak bytes per device of its update, infinite if
        it cannot fit. The default compiles the update, which needs the mesh in context; the
        compilation cache stores it.
      report: receives one line about the choice.
      taken: bytes per device that other models occupy, such as a judge.
    """
    if not is_open(config, stage):
        return config
    memory = device_memory()[0] if memory is None else memory
    compiled = lambda config: compiled_peak(*build_update(config, stage, mesh))
    candidates = open_candidates(config, stage, mesh)
    limit = (1 - HEADROOM) * memory - taken
    estimates = estimate_peaks(config, stage, mesh, candidates)
    peaks = search(estimates, lambda c: (measure or compiled)(_with(config, stage, c)), limit)
    best = next((c for c in candidates if peaks.get(c, math.inf) <= limit), candidates[-1])
    peak = peaks[best]
    beside = f" beside {taken / GIB:.1f} of other models" if taken else ""
    shown = f"peak {peak / GIB:.1f}{beside} of {memory / GIB:.1f} GiB per device"
    if peak > limit:
        shown += f": less than {HEADROOM:.0%} free, and nothing needs less"
    report(
        f"{stage}: remat={best.remat}, micro_rows={best.micro_rows}, {shown}; "
        f"compiled {len(peaks)} of {len(candidates)} choices"
    )
    return _with(config, stage, best)


def is_open(config: ConfigDict, stage: str) -> bool:
    """Returns whether the stage has `remat="auto"` or `micro_rows=-1`."""
    remat = config.get("model_overrides", {}).get("remat")
    return remat == AUTO or config[stage].get("micro_rows", 0) < 0


def open_candidates(config: ConfigDict, stage: str, mesh: Mesh) -> list[Candidate]:
    """Returns a stage's candidates: by least recomputation, then by most sequences at once."""
    section = config[stage]
    cfg_remat = config.get("model_overrides", {}).get("remat")
    policies = POLICIES if cfg_remat == AUTO else (model_config(config).remat,)
    rows = [section.get("micro_rows", 0)]
    if rows[0] < 0:
        most = max(1, batch_size(config, stage) // batch_shards(mesh))
        rows = machines.divisors(most)[::-1]
    return [Candidate(remat, n) for remat in policies for n in rows]


def estimate_peaks(
    config: ConfigDict, stage: str, mesh: Mesh, candidates: Sequence[Candidate]
) -> dict[Candidate, float]:
    """Estimates the peak bytes per device of a stage's update from shapes alone."""
    cfg, tensor = model_config(config), mesh.shape["tensor"]
    program, resident = build_update(config, stage, mesh)
    fixed = resident + machines.argument_bytes(program.args)
    trained = machines.argument_bytes(program.args[0]["params"])  # as large as its gradients
    fixed += trained * jnp.dtype(cfg.dtype).itemsize // 4  # the copy in the compute dtype
    tokens = _tokens(config, stage)
    unit = cfg.replace(num_layers=len(cfg.pattern))
    working = machines.saved_bytes(unit, tokens, "none", tensor)  # one unit's backward pass
    working += 12 * min(cfg.logits_chunk, tokens) * cfg.vocab_size / tensor
    shards, batch = batch_shards(mesh), batch_size(config, stage)

    def peak(candidate: Candidate) -> float:
        rows = candidate.micro_rows or batch // shards // config[stage].micro_batches
        gradients = trained * (1 if rows * shards >= batch else 2)  # the sum, and the next ones
        saved = machines.saved_bytes(cfg, tokens, candidate.remat, tensor)
        return fixed + gradients + rows * (saved + working)

    return {candidate: peak(candidate) for candidate in candidates}


def search(
    estimates: dict[Candidate, float], measure: Callable[[Candidate], float], limit: float
) -> dict[Candidate, float]:
    """Measures few candidates until one of them is the best that fits; returns their peaks.

    Args:
      estimates: candidate -> estimated peak bytes, the best candidate first, the last the one that
        needs least memory.
      measure: candidate -> peak bytes, infinite if it does not fit.
      limit: largest peak that fits, in bytes.
    """
    candidates, peaks, offset = list(estimates), dict[Candidate, float](), 0.0
    while len(peaks) < MOST_COMPILED:
        expected = {c: peaks.get(c, estimates[c] + offset) for c in candidates}
        best = next((c for c in candidates if expected[c] <= limit), candidates[-1])
        if best in peaks:
            break
        peaks[best] = measure(best)
        # The candidates share the estimate's error, so one peak corrects the other estimates. An
        # infinite peak counts as 20% above the limit, and never lowers the correction.
        error = min(peaks[best], 1.2 * limit) - estimates[best]
        offset = max(offset, error) if math.isinf(peaks[best]) else error
    if min(peaks.values()) > limit and candidates[-1] not in peaks:
        peaks[candidates[-1]] = measure(candidates[-1])
    return peaks


def compiled_peak(program: Program, resident: int) -> float:
    """Compiles a program under the mesh in context; returns its peak bytes per device.

    `resident` bytes are added. Infinite if the compiler runs out of memory, 0 for a backend that
    reports no memory.
    """
    try:
        stats = program.lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return math.inf
    return stats.peak_memory_in_bytes + resident if stats else 0.0


def build_update(config: ConfigDict, stage: str, mesh: Mesh) -> tuple[Program, int]:
    """Returns (a stage's update, bytes per device of arrays that stay beside it: the reference)."""
    if stage == "rft":
        return rft.build_sft_update(config, mesh), 0
    if stage == "meta_rm":
        return meta_rm.build_meta_rm_update(config, mesh), 0
    reference = grpo.build_logps(config, mesh, dtype=config.rl.get("reference_dtype"))
    return grpo.build_grpo_update(config, mesh), machines.argument_bytes(reference.args[:1])


def batch_size(config: ConfigDict, stage: str) -> int:
    """Returns the sequences of a stage's batch. In `rl`, a prompt with its group is one."""
    if stage == "rft":
        return int(config.batch_size)
    return int(config.rl.prompts if stage == "rl" else config.meta_rm.batch_size)


def _tokens(config: ConfigDict, stage: str) -> int:
    """Returns the tokens of a sequence of a stage's batch."""
    if stage == "rl":
        return int(config.rl.prompt_len + config.rl.group_size * config.rl.max_new_tokens)
    return int(config.seq_len if stage == "rft" else config.meta_rm.seq_len)


def _with(config: ConfigDict, stage: str, candidate: Candidate) -> ConfigDict:
    """Returns a copy of the config with a candidate's values."""
    chosen = config.copy_and_resolve_references()
    with chosen.ignore_type(), chosen.unlocked():
        chosen.model_overrides = {**chosen.get("model_overrides", {}), "remat": candidate.remat}
        chosen[stage].micro_rows = candidate.micro_rows
    return chosen
