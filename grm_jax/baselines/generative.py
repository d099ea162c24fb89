"""Judges that name the best response instead of scoring each: an LLM-as-a-judge with an analysis, and a bare pairwise one.

Both are fine-tuned by the RFT stage of `grm_jax.training` on sets built here; what differs from SPCT's set is the template
("llm_judge", "pairwise") and what the samples say. There is no hinted sampling in these baselines.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from grm_jax.storage import as_path
from grm_jax.text import rendering
from grm_jax.text.sections import find_sections
from grm_jax.training import loop, rft, rft_data, sources
from grm_jax.training.rft_data import CritiqueReply, CritiqueRequest, Sampler, best_index
from grm_jax.types import Comparison

_SCORES = re.compile(r"\\boxed\{([^{}]*)\}")


def template_of(config, name: str) -> str:
    """The baseline's template in the experiment's family."""
    return rendering.role_template(config.template, name)


def as_choice(text: str) -> str | None:
    """A critique with scores turned into one that names the best response by its number; None on a tie or without scores.

    What precedes the analysis (the principles, under a heading or as lines with weights) is left out: this baseline writes none.
    """
    boxes = list(_SCORES.finditer(text))
    if not boxes:
        return None
    try:
        scores = [float(part) for part in boxes[-1][1].split(",")]
    except ValueError:
        return None
    if scores.count(max(scores)) > 1:
        return None
    analysis = find_sections(text[: boxes[-1].start()]).analysis
    return f"{analysis}\n\\boxed{{{scores.index(max(scores)) + 1}}}"


def choosing(sampler: Sampler) -> Sampler:
    """A sampler whose replies name the best response. Replies that cannot be turned stay as they are, and are rejected."""

    def sample(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        replies = sampler(wanted)
        return [
            r if r is None else dataclasses.replace(r, text=as_choice(r.text) or r.text)
            for r in replies
        ]

    return sample


def labelled(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
    """The right number and nothing else: what a pairwise judge without a critique learns."""
    return [
        CritiqueReply(f"\\boxed{{{one.order.index(best_index(one.comparison)) + 1}}}", "stop")
        for one in wanted
    ]


def pairs_of(comparison: Comparison) -> list[Comparison]:
    """(best, other) pairs of a comparison of several responses; a pair is itself."""
    best = best_index(comparison)
    return [
        dataclasses.replace(
            comparison,
            responses=(comparison.responses[best], other),
            label=0,
            id=f"{comparison.id}-{i}",
            meta={},
        )
        for i, other in enumerate(comparison.responses)
        if i != best
    ]


def build(config, name: str, tokenizer, mesh) -> rft_data.RftSet:
    """The training set of "llm_judge" or "pairwise" from the comparisons that SPCT trains on; single responses are left out."""
    comparisons = [
        c
        for c in sources.judging(config).take(0, config.rft.comparisons)
        if c.n > 1 and c.best is not None
    ]
    options = rft_data.RftOptions(
        template_of(config, name), config.rft.samples, 0, config.rft.reject, seed=config.seed
    )
    if name == "llm_judge":
        return rft_data.build(
            comparisons, choosing(rft.make_sampler(config, tokenizer, mesh)), options
        )
    # A label is never too easy, and one sample of it says all: each pair once, in an order of its own.
    options = dataclasses.replace(options, samples=1, reject=False)
    return rft_data.build([pair for c in comparisons for pair in pairs_of(c)], labelled, options)


def train(run: loop.Run, name: str, start, folder):
    """Fine-tunes the baseline as the RFT stage does; returns the trained parameters.

    start: () -> the first float32 parameters.
    """
    data = as_path(folder) / "data"
    if not (data / "ready.json").exists():
        rft.save_set(
            build(run.config, name, run.tokenizer, run.mesh), run.config, run.tokenizer, data
        )
    return rft.train(run, start, folder)
