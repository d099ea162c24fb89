"""The stage `eval`: the models of an experiment against inference-time scaling, on held-out comparisons."""

import dataclasses
import logging
import time

import jax
from flax import nnx

from grm_jax.judging import Judge
from grm_jax.judging.expected import ExpectedScores, model_log_probs
from grm_jax.judging.sampler import engine_sampler
from grm_jax.training import checkpoint, evaluate, loop, meta_rm, report, sources, steps
from grm_jax.training import state as states

log = logging.getLogger(__name__)


def held_out(config) -> list:
    """What is evaluated on: comparisons with a best response, none twice, without reference answers, which a template would show."""
    source = sources.judging(config, config.eval.split)
    count = min(config.eval.comparisons, source.size or config.eval.comparisons)
    found = [
        dataclasses.replace(c, reference=None) for c in source.take(0, count) if c.best is not None
    ]
    if len(found) < count:
        log.info(
            "evaluation: %d of %d comparisons have no one best response and are left out",
            count - len(found),
            count,
        )
    if not found:
        raise ValueError(
            f"none of the {count} comparisons to evaluate on has one best response: look at config.data.held_out"
        )
    return found


def run(config, mesh, tokenizer, graphdef, abstract, folders) -> None:
    start, section = time.time(), config.eval
    cfg = steps.model_config(config)
    items = held_out(config)
    log.info("evaluation on %d comparisons of split %s", len(items), section.split)

    def judge_of(params, is_last):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        return Judge(
            tokenizer,
            engine_sampler(model, mesh, section.prompt_slots or None),
            config.template,
            meta if is_last else None,
            ExpectedScores(model_log_probs(model, mesh), tokenizer) if is_last else None,
            cfg.max_length,
        )

    meta = meta_params = None
    if loop.is_done(folders["meta_rm"]):
        _, scalar = states.abstract_model(steps.model_config(config, scalar_head=True), mesh)
        meta_params = loop.load_params(folders["meta_rm"], scalar)
        meta = meta_rm.scorer(config, mesh, meta_params, tokenizer, section.meta_batch)

    cells, facts = evaluate.floors(items), {}
    rows = {"base": lambda: sources.first_params(config, cfg, mesh)}
    rows |= {
        s: lambda s=s: loop.load_params(folders[s], abstract)
        for s in ("rft", "rl")
        if loop.is_done(folders[s])
    }
    last = list(rows)[-1]
    for name, params_of in rows.items():
        samples = section.base_samples if name == "base" else section.samples
        params, is_last = params_of(), name == last
        judge = judge_of(params, is_last)
        weights = [
            checkpoint.fingerprint(p)
            for p in (params, meta_params if is_last else None)
            if p is not None
        ]
        folder = folders["eval"] / "judged" / "-".join([name, *weights])
        found, verdicts = evaluate.table(name, judge, items, section, samples, folder)
        cells += found
        if jax.process_index() == 0:
            print(report.text_table(found), flush=True)
        if judge.meta_rm is not None and (quality := evaluate.meta_quality(items, verdicts)):
            facts["meta_rm"] = quality
    facts["differences"] = _differences(cells, evaluate.prompts_of(items))
    facts["seconds"] = {
        s: loop.read_result(f)["seconds"] for s, f in folders.items() if loop.is_done(f)
    }
    facts["seconds"]["eval"] = round(time.time() - start, 1)
    if jax.process_index() == 0:
        page = report.write(
            folders["eval"],
            config.name,
            cells,
            folders["rl"],
            facts,
            config.to_json_best_effort(indent=2),
        )
        print(
            f"\n{report.text_table(cells)}\n\n{_sentences(facts['differences'])}\n\nreport: {page}",
            flush=True,
        )
    loop.write_result(
        folders["eval"],
        {"stage": "eval", "cells": [c.row() for c in cells], "items": len(items), **facts},
    )


def _differences(cells, prompts) -> dict:
    """The comparisons that the paper's claims rest on, paired by item: mean and 95% interval, in accuracy."""
    by_name = {(c.model, c.method, c.k): c for c in cells}
    last = cells[-1].model
    pairs = {
        "RL greedy - RFT greedy": (("rl", "Greedy", 1), ("rft", "Greedy", 1)),
        "RL Voting@1 - RFT Voting@1": (("rl", "Voting", 1), ("rft", "Voting", 1)),
        "RL Voting@8 - RFT Voting@8": (("rl", "Voting", 8), ("rft", "Voting", 8)),
        "Voting@8 - Voting@1": ((last, "Voting", 8), (last, "Voting", 1)),
        "MetaRM@8 - Voting@8": ((last, "MetaRM", 8), (last, "Voting", 8)),
    }
    found = {}
    for name, (a, b) in pairs.items():
        if a in by_name and b in by_name:
            mean, low, high = evaluate.difference(
                by_name[a].credits, by_name[b].credits, prompts=prompts
            )
            found[name] = {"mean": mean, "low": low, "high": high}
    return found


def _sentences(differences) -> str:
    return "\n".join(
        f"{name}: {100 * d['mean']:+.1f} points (95% interval {100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
        for name, d in differences.items()
    )
