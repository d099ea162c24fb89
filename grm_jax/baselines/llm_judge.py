"""An LLM-as-a-judge: an analysis, then the number of the best response.

Fine-tuned by the RFT stage. Its training set differs from SPCT's in the template ("llm_judge") and
in the samples, which are SPCT's own with the scores turned into a choice. No hinted samples.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from grm_jax.baselines.bench import BASELINES, RESUME, Baseline, Bench
from grm_jax.baselines.results import Measured
from grm_jax.evals.run import judge_with_model
from grm_jax.judging.judge import Judge
from grm_jax.text import rendering
from grm_jax.text.parse import find_box
from grm_jax.text.quotations import verdict_start
from grm_jax.text.sections import find_sections
from grm_jax.training import loop, rft, rft_data
from grm_jax.training.replies import CritiqueReply, CritiqueRequest, Sampler

_SCORES = re.compile(r"\\boxed\{([^{}]*)\}")
# The votes that are measured, with the suffix of the judge's name.
VOTES = {"majority": "", "expected": ", token probabilities"}


def measure(bench: Bench, folder: Path) -> list[Measured]:
    """Trains the judge and measures its votes, and the probabilities of the numbers."""
    judge = fine_tuned(bench, folder, "llm_judge", training_set)
    measured = []
    for vote, suffix in VOTES.items():
        options = dataclasses.replace(bench.options, vote=vote, expected=True)
        path = folder / f"{bench.benchmark.name}.{vote}.jsonl"
        judged, cost = judge_with_model(judge, bench.comparisons, path, options, RESUME)
        measured.append(bench.measured(judged, f"llm_judge{suffix}", options.k, cost))
    return measured


BASELINES.add("llm_judge", Baseline(measure, unused=("rl", "meta_rm")))


def training_set(bench: Bench, options: rft_data.RftOptions) -> rft_data.RftSet:
    """Builds the set from RFT's sampler, with its rejection."""
    comparisons = bench.training_comparisons(bench.config.rft.comparisons)
    sampler = choosing(rft.make_sampler(bench.config, bench.tokenizer, bench.mesh))
    return rft_data.build(comparisons, sampler, options)


def choosing(sampler: Sampler) -> Sampler:
    """Turns a sampler's scores into choices. Replies without one stay, and RFT rejects them."""

    def sample(requests: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        return [
            reply and dataclasses.replace(reply, text=as_choice(reply.text) or reply.text)
            for reply in sampler(requests)
        ]

    return sample


def as_choice(text: str) -> str | None:
    """Turns a critique with scores into its analysis and the number of the best response.

    Drops the principles, whether under a heading or as lines with weights. Returns None for a tie
    or without scores.
    """
    boxes = list(_SCORES.finditer(text))
    box = find_box(text, boxes[-1][1].count(",") + 1) if boxes else None
    if box is None or box.values is None or box.values.count(max(box.values)) > 1:
        return None
    scores = box.values
    analysis = find_sections(text[verdict_start(text) or 0 : box.start]).analysis
    return f"{analysis}\n\\boxed{{{scores.index(max(scores)) + 1}}}"


# ---------------------------------------------------------------- shared with pairwise


def fine_tuned(
    bench: Bench,
    folder: Path,
    role: str,
    build: Callable[[Bench, rft_data.RftOptions], rft_data.RftSet],
) -> Judge:
    """Fine-tunes a judge in `<folder>/train` by the RFT stage, or loads it.

    role: of its template in the experiment's family.  build: makes its training set.
    """
    config, stage = bench.config, folder / "train"
    template = rendering.role_template(config.template, role)
    if loop.is_done(stage):
        return bench.judge(loop.load_params(stage, bench.abstract), template)
    if not (stage / "data" / "ready.json").exists():
        options = rft_data.RftOptions(
            template, config.rft.samples, 0, config.rft.reject, seed=config.seed
        )
        rft.save_set(build(bench, options), config, bench.tokenizer, stage / "data")
    return bench.judge(rft.train(bench.run, bench.first_params, stage), template)
