"""The stage `eval`: the run's models on held-out comparisons, greedy and over k samples.

Each model (base, rft, rl) judges every comparison once greedily and `eval.samples` times. The last
one also votes with the meta reward model and with expected scores. Judging, metrics, tables and
plots are those of `grm_jax.evals`.
"""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from grm_jax.data.splits import overlap_key
from grm_jax.evals import content_blind, findings, report
from grm_jax.evals.bootstrap import STAGE_DRAWS, Resampler, prompt_key
from grm_jax.evals.cells import Cell, cell, grid
from grm_jax.evals.classification import quality
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.run import fingerprint, judge_into_store
from grm_jax.evals.tables import text_table
from grm_jax.judging.expected import ExpectedScores, model_log_probs
from grm_jax.judging.judge import Judge
from grm_jax.judging.options import Options
from grm_jax.judging.sampler import EngineSampler
from grm_jax.models import abstract_model
from grm_jax.training import (
    checkpoint,
    finished,
    loop,
    meta_rm,
    next_steps,
    rft,
    rft_data,
    sources,
    state as states,
)
from grm_jax.training.errors import TrainingError
from grm_jax.training.metrics import Progress, read_jsonl
from grm_jax.training.programs import model_config
from grm_jax.types import Comparison

log = logging.getLogger(__name__)

# The panels of training.png.
PANELS = {
    "reward": "reward",
    "kl": "KL to the RFT model (nats per token)",
    "entropy": "entropy (nats per token)",
    "length": "critique length (tokens)",
    "group_zero": "groups without advantage",
    "gap_max": "sampler - trainer gap, largest",
}


def held_out(config: Any, workdir: Any = None) -> list[Comparison]:
    """Returns the comparisons of the evaluation.

    Each has one best response and occurs once. Reference answers are removed, because a template
    would show them. Raises TrainingError if no comparison is left.
    """
    source = sources.judging(config, config.eval.split, workdir=workdir)
    count = min(config.eval.comparisons, source.size or config.eval.comparisons)
    labelled = [
        dataclasses.replace(c, reference=None) for c in source.take(0, count) if c.best is not None
    ]
    if not labelled:
        raise TrainingError(
            f"none of the {count} comparisons of the evaluation has one best response: check "
            "config.data.held_out"
        )
    if dropped := count - len(labelled):
        counts = dropped, count
        log.info("evaluation: dropped %d of %d comparisons without one best response", *counts)
    return labelled


def run(shared: loop.Run, folders: Mapping[str, Any]) -> None:
    """Evaluates the models of the finished stages; writes report, table and credits.

    What is judged is stored by model weights and options, so a stopped stage resumes.

    Args:
      shared: config, mesh and tokenizer of the run.
      folders: the folder of each stage.
    """
    start, config, section = time.time(), shared.config, shared.config.eval
    comparisons = held_out(config, folders["eval"].parent)
    trained = rft.trained_queries(folders["eval"].parent / "rft", config.data.get("held_out", ""))
    if seen := sum(overlap_key(c.turns) in trained for c in comparisons):
        log.warning(
            "%d of the %d comparisons of the evaluation have a query of the RFT set, which was "
            "built for another config.data.held_out: train again in another workdir",
            *(seen, len(comparisons)),
        )
    resampler = Resampler([prompt_key(c) for c in comparisons], draws=STAGE_DRAWS)
    log.info("evaluation on %d comparisons of split %s", len(comparisons), section.split)
    cells, facts = content_blind_cells(comparisons, resampler), {}
    for name, judge in judges(shared, folders):
        own_cells, judged = evaluate_model(name, judge, comparisons, section, folders["eval"])
        cells += own_cells
        if judge.meta_rm is not None and (measured := meta_quality(judged)):
            facts["meta_rm"] = measured
    facts["differences"] = findings.differences(cells, resampler)
    facts["seconds"] = {
        stage: loop.read_result(folder)["seconds"]
        for stage, folder in folders.items()
        if loop.is_done(folder)
    }
    facts["seconds"]["eval"] = round(time.time() - start, 1)
    if jax.process_index() == 0:
        write_report(config, cells, facts, folders)
    result = {
        "stage": "eval",
        "cells": [c.as_json() for c in cells],
        "items": len(comparisons),
        "findings": findings.sentences(cells, facts["differences"]),
        loop.WEIGHTS: finished.judge_weights(folders),
    }
    loop.write_result(folders["eval"], result | facts)


def judges(shared: loop.Run, folders: Mapping[str, Any]) -> Iterator[tuple[str, Judge]]:
    """Yields the judges of the base model and of each finished stage, by name.

    The last one has the meta RM, if that is trained, and expected scores.
    """
    config, mesh, tokenizer = shared.config, shared.mesh, shared.tokenizer
    section, cfg = config.eval, model_config(config)
    graphdef, abstract = abstract_model(cfg, mesh)
    meta = meta_params = None
    if loop.is_done(folders["meta_rm"]):
        _, scalar = abstract_model(model_config(config, scalar_head=True), mesh)
        meta_params = loop.load_params(folders["meta_rm"], states.split(scalar)[0])
        meta_params = states.join(meta_params, shared.frozen)
        meta = meta_rm.scorer(config, mesh, meta_params, tokenizer, section.meta_batch)
    loaders = {"base": lambda: sources.first_params(config, cfg, mesh)}
    loaders |= {
        stage: lambda stage=stage: loop.load_params(folders[stage], states.split(abstract)[0])
        for stage in ("rft", "rl")
        if loop.is_done(folders[stage])
    }
    last = list(loaders)[-1]
    for name, load in loaders.items():
        params = states.join(load(), shared.frozen)
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        sampler = EngineSampler(model, mesh, section.prompt_slots or None)
        weights = [params, meta_params] if meta and name == last else [params]
        judge = Judge(
            tokenizer,
            sampler,
            config.template,
            meta if name == last else None,
            ExpectedScores(model_log_probs(model, mesh), tokenizer) if name == last else None,
            cfg.max_length,
            name="-".join([name, *map(checkpoint.fingerprint, weights)]),
        )
        yield name, judge


def content_blind_cells(comparisons: Sequence[Comparison], resampler: Resampler) -> list[Cell]:
    """The baselines at the top of the table: chance, the first response, the longest response."""
    judged = {"chance": [JudgedComparison(c, (0.0,) * c.n) for c in comparisons]}
    for name in ("first", "longest"):
        label = content_blind.CONTENT_BLIND[name].label
        judged[label] = [content_blind.judge(name, c) for c in comparisons]
    return [cell(label, "Rule", 1, rows, resampler) for label, rows in judged.items()]


def evaluate_model(
    name: str, judge: Judge, comparisons: Sequence[Comparison], section: Any, folder: Any
) -> tuple[list[Cell], list[JudgedComparison]]:
    """Judges with one model and measures its cells.

    Args:
      judge: cells "MetaRM@k" need its meta RM, "Expected@k" need `section.expected`.
      section: `eval` of a config. A k above the number of samples is skipped.
      folder: stores the rows by model and options, and as NAME.jsonl those with samples.

    Returns:
      The cells, and the judged comparisons: with all samples, or greedily if there are none.
    """
    samples = section.base_samples if name == "base" else section.samples
    store = folder / "judged" / judge.name
    resampler = Resampler([prompt_key(c) for c in comparisons], draws=STAGE_DRAWS)
    common = {"seed": section.seed, "max_new_tokens": section.max_new_tokens}
    meta, judge.meta_rm = judge.meta_rm, None
    options = Options(k=1, temperature=0.0, orders="random", **common)
    judged = judge_all(judge, comparisons, options, store)
    judge.meta_rm = meta
    cells = [cell(name, "Greedy", 1, judged, resampler)]
    if not samples:
        return cells, judged
    expected = bool(section.expected and judge.expected)
    options = Options(k=samples, temperature=section.temperature, expected=expected, **common)
    judged = judge_all(judge, comparisons, options, store, folder / f"{name}.jsonl")
    methods = ["Voting", *["Expected"] * expected, *["MetaRM"] * (meta is not None)]
    cells += [
        cell(name, method, k, judged, resampler)
        for method in methods
        for k in section.ks
        if k <= samples and (k > 1 or method != "MetaRM")
    ]
    return cells, judged


def judge_all(
    judge: Judge,
    comparisons: Sequence[Comparison],
    options: Options,
    folder: Any,
    output: Any = None,
) -> list[JudgedComparison]:
    """Judges the comparisons, or resumes from `folder`. One that fails counts as unparsed.

    output: JSONL to write with the rows of `grm judge`.  Raises TrainingError if all of them fail.
    """
    identity = json.dumps([vars(options), fingerprint(comparisons)])
    store = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
    critiques = "greedy" if options.temperature == 0 else f"{options.k} critiques"
    title = f"{judge.name.split('-')[0]}, {critiques}, comparison"
    with Progress(title, len(comparisons)) as progress:
        judged = judge_into_store(
            judge, comparisons, options, store, progress=progress.update, output=output
        )
    failed = [j for j in judged if j.error]
    for j in failed:
        log.warning("%s was not judged and counts as unparsed: %s", j.comparison.id, j.error)
    if len(failed) == len(judged):
        raise TrainingError(
            f"none of {len(failed)} comparisons was judged; the last failed with: "
            f"{failed[-1].error}"
        )
    return judged


def meta_quality(judged: Sequence[JudgedComparison]) -> dict | None:
    """AUC and calibration of the meta scores on the parsed critiques; None without any."""
    scored = [
        (critique.meta_score, rft_data.is_correct(j.comparison, critique.scores), j.comparison.id)
        for j in judged
        for critique in j.critiques
        if critique.meta_score is not None
    ]
    if not scored:
        return None
    scores, labels, ids = zip(*scored)
    return quality(np.array(scores, np.float64), np.array(labels, np.float64), ids)


def write_report(config: Any, cells: Sequence[Cell], facts: Mapping, folders: Mapping) -> None:
    """Writes the report, with the training curves of RL and examples of the last model."""
    rows = folders["eval"] / f"{cells[-1].model}.jsonl"
    content = report.Report(
        config.name,
        findings.sentences(cells, facts["differences"]),
        cells,
        facts,
        config.to_json_best_effort(indent=2),
        read_jsonl(rows),
        read_jsonl(folders["rl"] / "metrics.jsonl"),
        PANELS,
    )
    report.write(folders["eval"], content)


def closing_text(config: Any, folders: Mapping[str, Any]) -> str:
    """Returns the last lines of a run: table, findings, path of the page, and next commands."""
    result = loop.read_result(folders["eval"])
    headings, rows = grid([Cell(**fields) for fields in result["cells"]])
    lines = [
        "",
        "accuracy in percent, ± half of the 95% interval; k critiques vote",
        text_table(headings, rows),
        "",
    ]
    if sentences := result.get("findings"):
        lines += [*sentences, ""]
    lines.append(f"Report: {folders['eval'] / 'report.html'}")
    workdir, is_world = folders["eval"].parent, config.data.judging == "world"
    if config.data.judging == sources.FILE:
        return "\n".join(lines)  # `own_report` has the commands
    if commands := next_steps.write_commands(workdir, is_world):
        lines += ["", "Try next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)
