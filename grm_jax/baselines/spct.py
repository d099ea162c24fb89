"""The SPCT run itself, measured like the baselines after each of its stages."""

import dataclasses
import logging
from pathlib import Path

from grm_jax.baselines.bench import BASELINES, RESUME, Baseline, Bench
from grm_jax.baselines.results import Measured
from grm_jax.evals.run import judge_with_model
from grm_jax.evals.scaling import revote

log = logging.getLogger(__name__)


def measure(bench: Bench, folder: Path) -> list[Measured]:
    """Measures one critique, k votes, expected scores, and k votes guided by the meta RM."""
    measured = []
    for stage in ("rft", "rl"):
        if not bench.has_stage(stage):
            log.warning("spct %s is skipped: %s has no such finished stage", stage, bench.spct)
            continue
        meta = bench.meta_rm() if stage == "rl" else None
        judge = bench.judge(bench.stage_params(stage), bench.config.template, meta)
        options, k = dataclasses.replace(bench.options, expected=True), bench.options.k
        path = folder / f"{bench.benchmark.name}.{stage}.jsonl"
        judged, cost = judge_with_model(judge, bench.comparisons, path, options, RESUME)
        variants = {
            (f"spct {stage}", 1): ("sum", 1),
            (f"spct {stage}", k): ("sum", k),
            (f"spct {stage}, expected scores", k): ("expected", k),
        }
        for (name, votes), (rule, first) in variants.items():
            voted = [revote(j, rule, first, 0) for j in judged]
            measured.append(bench.measured(voted, name, votes, cost if votes == k else {}))
        if meta is not None:
            measured.append(bench.measured(judged, f"spct {stage}, meta RM", k, cost))
    return measured


BASELINES.add("spct", Baseline(measure))
