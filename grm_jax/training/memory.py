"""Chooses what an update recomputes, and its micro-batches, by the memory of a device.

    config.model_overrides.remat = "auto"    the least recomputation that fits
    config.STAGE.micro_rows = -1             the most sequences at once that fit with it

Each stage chooses for its own update, before it starts. Candidates are ordered by an estimate from
shapes; the compiler's own figure decides. Results do not depend on the choice, except that other
micro-batches add gradients up in another order.
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
HEADROOM = 0.1  # of the memory, free at the peak
MOST_COMPILED = 3
# Not "none", which saves what is elementwise, nor "dots", which saves as much as "products" does.
POLICIES = ("products", "mlp", "outputs", "full")


@dataclasses.dataclass(frozen=True, order=True)
class Candidate:
    """A policy of `TransformerConfig.remat`, and the sequences at once on each shard."""

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
    """Returns the config with the open `remat` and `micro_rows` of a stage set.

    Deterministic, and the same on all hosts: a function of the config, the mesh and the compiler.

    Args:
      config: an experiment.
      stage: "rft", "rl" or "meta_rm".
      mesh: of the update; its devices may be compile-only.
      memory: bytes of a device; default `plan.device_memory`, half of the machine's over all
        emulated devices on a CPU.
      measure: config with a candidate -> bytes per device at the peak of its update, infinite if
        it cannot fit. Default compiles it, with the compilation cache; call it under the mesh.
      report: gets one line about the choice.
      taken: bytes of a device that other models hold, such as a judge's.
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
    """Whether the stage's `remat` or `micro_rows` has to be chosen."""
    remat = config.get("model_overrides", {}).get("remat")
    return remat == AUTO or config[stage].get("micro_rows", 0) < 0


def open_candidates(config: ConfigDict, stage: str, mesh: Mesh) -> list[Candidate]:
    """Returns the choices of a stage: the least recomputation first, then the most sequences."""
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
    """Estimates, from shapes alone, the bytes per device of a stage's update at its peak."""
    cfg, tensor = model_config(config), mesh.shape["tensor"]
    program, resident = build_update(config, stage, mesh)
    fixed = resident + machines.argument_bytes(program.args)
    trained = machines.argument_bytes(program.args[0]["params"])  # as large as its gradients
    fixed += trained * jnp.dtype(cfg.dtype).itemsize // 4
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
    """Measures few candidates until the best one that fits is known; returns their peaks.

    Args:
      estimates: candidate -> estimated peak, the best candidate first; the last needs least.
      measure: candidate -> peak; infinite if it does not fit.
      limit: largest peak that fits.
    """
    candidates, peaks, offset = list(estimates), dict[Candidate, float](), 0.0
    while len(peaks) < MOST_COMPILED:
        expected = {c: peaks.get(c, estimates[c] + offset) for c in candidates}
        best = next((c for c in candidates if expected[c] <= limit), candidates[-1])
        if best in peaks:
            break
        peaks[best] = measure(best)
        # The estimate's error is of what all candidates share; where the compiler gives no figure,
        # it is at least what was missing.
        error = min(peaks[best], 1.2 * limit) - estimates[best]
        offset = max(offset, error) if math.isinf(peaks[best]) else error
    if min(peaks.values()) > limit and candidates[-1] not in peaks:
        peaks[candidates[-1]] = measure(candidates[-1])
    return peaks


def compiled_peak(program: Program, resident: int) -> float:
    """Compiles a program under the mesh in context; returns its peak.

    Infinite if it cannot fit, 0 for a backend without figures.
    """
    try:
        stats = program.lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return math.inf
    return stats.peak_memory_in_bytes + resident if stats else 0.0


def build_update(config: ConfigDict, stage: str, mesh: Mesh) -> tuple[Program, int]:
    """Returns a stage's update and the bytes per device of arrays that stay beside it."""
    if stage == "rft":
        return rft.build_sft_update(config, mesh), 0
    if stage == "meta_rm":
        return meta_rm.build_meta_rm_update(config, mesh), 0
    reference = grpo.build_logps(config, mesh, dtype=config.rl.get("reference_dtype"))
    return grpo.build_grpo_update(config, mesh), machines.argument_bytes(reference.args[:1])


def batch_size(config: ConfigDict, stage: str) -> int:
    """Returns the sequences of a stage's batch; the prompts of `rl`, whose groups share them."""
    if stage == "rft":
        return int(config.batch_size)
    return int(config.rl.prompts if stage == "rl" else config.meta_rm.batch_size)


def _tokens(config: ConfigDict, stage: str) -> int:
    """Returns the tokens of a sequence of a stage's batch."""
    if stage == "rl":
        return int(config.rl.prompt_len + config.rl.group_size * config.rl.max_new_tokens)
    return int(config.seq_len if stage == "rft" else config.meta_rm.seq_len)


def _with(config: ConfigDict, stage: str, candidate: Candidate) -> ConfigDict:
    chosen = config.copy_and_resolve_references()
    with chosen.ignore_type(), chosen.unlocked():
        chosen.model_overrides = {**chosen.get("model_overrides", {}), "remat": candidate.remat}
        chosen[stage].micro_rows = candidate.micro_rows
    return chosen
