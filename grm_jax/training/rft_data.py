"""The data of rejective fine-tuning: sample critiques, keep the right ones, mix with general instructions (SPCT, section 3.2).

Per comparison, N non-hinted samples (3 in the paper) and one hinted, whose prompt names the best response. A sample is
rejected unless it is right by the strict rule; a comparison whose N non-hinted samples are all right is too easy, and
loses those (a hinted sample is only rejected when wrong). The hint is never in the stored prompt.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from grm_jax.data.sft import Example, write_examples
from grm_jax.judging.orders import orders
from grm_jax.storage import as_path, read_lines
from grm_jax.text import parse, rendering
from grm_jax.types import Comparison, Critique

log = logging.getLogger(__name__)

HINTED, NON_HINTED = "hinted", "non_hinted"
_STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}


@dataclasses.dataclass(frozen=True)
class CritiqueRequest:
    """A critique to sample. `messages` is the prompt, with the hint in it if `hinted`; `sample` counts from 0."""

    comparison: Comparison
    order: tuple[int, ...]
    hinted: bool
    sample: int
    messages: list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class CritiqueReply:
    """What a sampler gave: a text, why it ended if known, and its own order where it did not follow the wanted one."""

    text: str
    finish: str | None = None
    order: tuple[int, ...] | None = None


# Replies in the order of what was wanted; None where there is none (the endpoint failed, the file had no more).
Sampler = Callable[[Sequence[CritiqueRequest]], Sequence[CritiqueReply | None]]


@dataclasses.dataclass(frozen=True)
class RftOptions:
    """How the set is built.

    Attributes:
      template: Family or name of the prompt template; one response alone gets the family's 0/1 template.
      samples: Non-hinted samples per comparison (N_RFT = 3 in the paper).
      hinted: Hinted samples per comparison (1 in the paper).
      reject: Whether wrong samples are rejected and easy comparisons dropped. False keeps whatever can be read (ablation).
      orders: "random", an own order for each sample as in the paper, or "balanced".
      seed: Of the orders.
      chunk: Comparisons handed to the sampler at once.
    """

    template: str = "grm"
    samples: int = 3
    hinted: int = 1
    reject: bool = True
    orders: str = "random"
    seed: int = 0
    chunk: int = 256


@dataclasses.dataclass(frozen=True)
class Trial:
    """One sample with its verdict: the raw material of the meta reward model.

    outcome: "kept", "wrong", "tie" (wrong because the best shares its score), "too_easy", or the parser's status.
    """

    comparison: Comparison
    order: tuple[int, ...]
    text: str
    hinted: bool
    right: bool
    outcome: str

    def row(self) -> dict:
        """JSON-ready."""
        comparison = dataclasses.asdict(self.comparison)
        return {**dataclasses.asdict(self), "comparison": comparison, "order": list(self.order)}


@dataclasses.dataclass
class RftSet:
    """What was built: examples to learn, every trial, and counts of each outcome."""

    examples: list[Example] = dataclasses.field(default_factory=list)
    trials: list[Trial] = dataclasses.field(default_factory=list)
    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def summary(self) -> dict[str, int]:
        """Counts by "hinted/OUTCOME", "non_hinted/OUTCOME" and "comparison/OUTCOME", sorted."""
        return dict(sorted(self.outcomes.items()))

    def save(self, folder: str | Path) -> None:
        """Writes examples.jsonl, trials.jsonl and outcomes.json."""
        folder = Path(folder)
        write_examples(folder / "examples.jsonl", self.examples)
        with (folder / "trials.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(
                json.dumps(trial.row(), ensure_ascii=False) + "\n" for trial in self.trials
            )
        (folder / "outcomes.json").write_text(
            json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8"
        )


def read_trials(path) -> list[Trial]:
    """The trials that `RftSet.save` wrote."""
    trials = []
    for line in read_lines(as_path(path)):
        row = json.loads(line)
        fields = row["comparison"]
        label = tuple(fields["label"]) if isinstance(fields["label"], list) else fields["label"]
        comparison = Comparison(**{**fields, "label": label})
        trials.append(Trial(**{**row, "comparison": comparison, "order": tuple(row["order"])}))
    return trials


def easy_ids(trials: Iterable[Trial]) -> set[str]:
    """Ids of the comparisons whose non-hinted samples are all right: what the paper (appendix C.1) leaves out of its RL set, where another
    model drew three samples of each."""
    right: dict[str, bool] = {}
    for trial in trials:
        if not trial.hinted:
            name = str(trial.comparison.id)
            right[name] = right.get(name, True) and trial.right
    return {name for name, all_right in right.items() if all_right}


# ---------------------------------------------------------------- the rule


def is_correct(comparison: Comparison, scores: Sequence[float] | None) -> bool:
    """The strict rule (SPCT, equation 10), for scores in the caller's order.

    Two or more responses: the best has a higher score than every other; a tie with it is wrong. One response: the score
    is the label. No scores are wrong. Raises ValueError for a comparison without a single best response.
    """
    if comparison.n == 1:
        return scores is not None and scores[0] == correct_score(comparison)
    best = best_index(comparison)
    return scores is not None and all(scores[best] > s for i, s in enumerate(scores) if i != best)


def best_index(comparison: Comparison) -> int:
    """Index of the one best response. Raises ValueError where the label names none, or several."""
    if comparison.best is None:
        raise ValueError(
            f"comparison {comparison.id!r} has label {comparison.label}: exactly one response must be best"
        )
    return comparison.best


def correct_score(comparison: Comparison) -> float:
    """The label of a response alone, 1.0 or 0.0. Raises ValueError without one."""
    if comparison.rewards is None:
        raise ValueError(
            f"comparison {comparison.id!r} has no label: a response alone needs (1.0,) or (0.0,)"
        )
    return comparison.rewards[0]


def read(
    comparison: Comparison, order: Sequence[int], reply: CritiqueReply, template: str
) -> Critique:
    """Parses a reply; its scores are put into the caller's order."""
    shape = rendering.load(template)
    critique = parse(reply.text, comparison.n, shape.low, shape.high, shape.output, reply.finish)
    if critique.scores is None:
        return dataclasses.replace(critique, order=tuple(order))
    scores = [0.0] * comparison.n
    for place, i in enumerate(order):
        scores[i] = critique.scores[place]
    return dataclasses.replace(critique, scores=tuple(scores), order=tuple(order))


def outcome_of(comparison: Comparison, critique: Critique) -> str:
    """ "right", "tie", "wrong", or the status of a critique without scores."""
    if critique.scores is None:
        return critique.status
    if is_correct(comparison, critique.scores):
        return "right"
    if comparison.n > 1 and critique.scores[best_index(comparison)] == max(critique.scores):
        return "tie"
    return "wrong"


# ---------------------------------------------------------------- prompts


def training_template(family: str, comparison: Comparison) -> str:
    """The template that training uses: a response alone is scored 0 or 1 (SPCT, appendix G).

    The reference, if there is one, is not shown. `family` may also name one template, which is then used for all.
    """
    return rendering.single_binary(family) if comparison.n == 1 else family


def hint_of(comparison: Comparison, order: Sequence[int]) -> int | str:
    """The hint: the index of the best response or the right score; with its strength where the data has one."""
    if comparison.n == 1:
        return int(correct_score(comparison))
    strength = comparison.meta.get("strength")
    if strength is None:
        return best_index(comparison)
    phrase = _STRENGTHS.get(strength, f"better by {strength}")
    return f"the best response is Response {list(order).index(best_index(comparison)) + 1}; it is {phrase}."


def wanted_for(comparison: Comparison, options: RftOptions) -> list[CritiqueRequest]:
    """The samples to draw for a comparison, non-hinted ones first."""
    template = training_template(options.template, comparison)
    total = options.samples + options.hinted
    drawn = orders(comparison, total, options.orders, options.seed)
    wanted = []
    for sample, order in enumerate(drawn):
        hinted = sample >= options.samples
        hint = hint_of(comparison, order) if hinted else None
        wanted.append(
            CritiqueRequest(
                comparison,
                order,
                hinted,
                sample,
                rendering.render(template, comparison, order, hint=hint),
            )
        )
    return wanted


# ---------------------------------------------------------------- building


def build(comparisons: Iterable[Comparison], sampler: Sampler, options: RftOptions) -> RftSet:
    """Samples critiques of comparisons, and keeps what rejection leaves.

    With no samples of either kind the set is empty and nothing is asked.
    Raises ValueError for a comparison without a label of exactly one best response, or a sampler that loses replies.
    """
    out, part = RftSet(), []
    if not options.samples + options.hinted:
        return out
    comparisons = list(comparisons)
    for comparison in comparisons:
        is_correct(comparison, None)  # a bad label is found before anything is sampled
    for comparison in tqdm(
        comparisons, "sampling critiques", mininterval=1, disable=jax.process_index() != 0
    ):
        part.append(comparison)
        if len(part) == options.chunk:
            _build_chunk(part, sampler, options, out)
            part = []
    if part:
        _build_chunk(part, sampler, options, out)
    log.info("RFT samples: %s", json.dumps(out.summary()))
    return out


def _build_chunk(
    comparisons: Sequence[Comparison], sampler: Sampler, options: RftOptions, out: RftSet
) -> None:
    wanted = [wanted_for(comparison, options) for comparison in comparisons]
    flat = [one for group in wanted for one in group]
    replies = list(sampler(flat))
    if len(replies) != len(flat):
        raise ValueError(
            f"the sampler gave {len(replies)} replies to {len(flat)} requests: give one each, None if it failed"
        )
    start = 0
    for group in wanted:
        _judge_group(group, replies[start : start + len(group)], options, out)
        start += len(group)


def _judge_group(
    group: Sequence[CritiqueRequest],
    replies: Sequence[CritiqueReply | None],
    options: RftOptions,
    out: RftSet,
) -> None:
    """All samples of one comparison: their outcomes, then what is kept of them."""
    comparison = group[0].comparison
    template = training_template(options.template, comparison)
    trials = []
    for one, reply in zip(group, replies):
        if reply is None:
            out.outcomes[f"{_kind(one.hinted)}/failed"] += 1
            continue
        order = one.order if reply.order is None else reply.order
        outcome = outcome_of(comparison, read(comparison, order, reply, template))
        trials.append(
            Trial(comparison, tuple(order), reply.text, one.hinted, outcome == "right", outcome)
        )
    plain = [trial for trial in trials if not trial.hinted]
    too_easy = (
        options.reject and 0 < options.samples == len(plain) and all(trial.right for trial in plain)
    )
    kept = 0
    for trial in trials:
        outcome = _final_outcome(trial, too_easy, options.reject)
        out.outcomes[f"{_kind(trial.hinted)}/{outcome}"] += 1
        out.trials.append(dataclasses.replace(trial, outcome=outcome))
        if outcome == "kept":
            kept += 1
            # The prompt is rendered anew: without the hint, and in the order that this text is about.
            messages = rendering.render(template, comparison, trial.order)
            out.examples.append(
                Example(tuple(messages), trial.text, _kind(trial.hinted), comparison.id)
            )
    out.outcomes[
        "comparison/" + ("too_easy" if too_easy else "kept" if kept else "never_right")
    ] += 1


def _kind(hinted: bool) -> str:
    return HINTED if hinted else NON_HINTED


def _final_outcome(trial: Trial, too_easy: bool, reject: bool) -> str:
    if trial.right:
        return "too_easy" if too_easy and not trial.hinted else "kept"
    return "kept" if not reject and trial.outcome in ("wrong", "tie") else trial.outcome


def mix(examples: Sequence[Example], general: Sequence[Example], seed: int = 0) -> list[Example]:
    """Judging and general examples in one random order (the paper: 186K and 1,070K). Empty lists are allowed."""
    mixed = [*examples, *general]
    random.Random(seed).shuffle(mixed)
    return mixed
