"""The data of rejective fine-tuning: sample critiques, reject, mix with general instructions.

SPCT, section 3.2. For each comparison, N non-hinted samples (3 in the paper) and one hinted, whose
prompt names the best response. A sample is rejected unless it is correct by the strict rule. If all
N non-hinted samples of a comparison are correct, it is too easy, and those N are rejected too (a
hinted sample is rejected only if it is wrong). The stored prompt never has the hint.
"""

import collections
import dataclasses
import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from grm_jax import strict_json
from grm_jax.data.comparisons import from_json
from grm_jax.data.sft import Example
from grm_jax.judging.orders import response_orders
from grm_jax.storage import PathLike, as_path, open_atomic, read_lines, write_atomic
from grm_jax.text import parse, rendering
from grm_jax.training.errors import TrainingError
from grm_jax.training.metrics import Progress
from grm_jax.training.replies import CritiqueReply, CritiqueRequest, Sampler, on_reply
from grm_jax.types import Comparison, Critique

log = logging.getLogger(__name__)

PARSED = ("kept", "wrong", "tie", "too_easy")  # outcomes of critiques with scores
HINTED, NON_HINTED = "hinted", "non_hinted"
PILOT = 8  # comparisons
_STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}


class TooFewParsed(ValueError):
    """Almost no critique of the first comparisons can be parsed."""


@dataclasses.dataclass(frozen=True)
class RftOptions:
    """Options of `build`.

    Attributes:
      template: family of prompt templates, or one template; a single response gets the family's
        0/1 template.
      samples: non-hinted samples per comparison (N_RFT = 3 in the paper).
      hinted: hinted samples per comparison (1 in the paper).
      reject: whether wrong samples and easy comparisons are rejected; False keeps all parsed ones.
      orders: "random", an order of its own for each sample as in the paper, or "balanced".
      seed: of the orders.
      chunk: comparisons per call of the sampler.
      min_parsed: share of the critiques of the first `PILOT` comparisons that must be parsed; 0
        does not sample these apart.
    """

    template: str = "grm"
    samples: int = 3
    hinted: int = 1
    reject: bool = True
    orders: str = "random"
    seed: int = 0
    chunk: int = 256
    min_parsed: float = 0.0


@dataclasses.dataclass(frozen=True)
class Trial:
    """One sample with its outcome. Trials are the data of the meta reward model.

    outcome: "kept", "wrong", "tie" (wrong: the best shares its score), "too_easy", or the parser's
    status.
    """

    comparison: Comparison
    order: tuple[int, ...]
    text: str
    hinted: bool
    right: bool
    outcome: str

    @property
    def kind(self) -> str:
        """ "hinted" or "non_hinted"."""
        return HINTED if self.hinted else NON_HINTED


@dataclasses.dataclass
class RftSet:
    """What `build` returns: examples to learn, every trial, and counts of the outcomes."""

    examples: list[Example] = dataclasses.field(default_factory=list)
    trials: list[Trial] = dataclasses.field(default_factory=list)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def summary(self) -> dict[str, int]:
        """Counts by "hinted/OUTCOME", "non_hinted/OUTCOME" and "comparison/OUTCOME", sorted."""
        return dict(sorted(self.outcomes.items()))

    def sentence(self) -> str:
        """Returns "9 comparisons, 2 of them too easy; 36 critiques: 20 kept, 16 wrong"."""
        counts = collections.Counter(trial.outcome for trial in self.trials)
        outcomes = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.most_common())
        easy = self.outcomes["comparison/too_easy"]
        comparisons = sum(n for key, n in self.outcomes.items() if key.startswith("comparison/"))
        return (
            f"{comparisons:,} comparisons{f', {easy:,} of them too easy' if easy else ''}; "
            f"{len(self.trials):,} critiques: {outcomes}"
        )

    def save(self, folder: PathLike) -> None:
        """Writes examples.jsonl, trials.jsonl and outcomes.json, each atomically."""
        folder = as_path(folder)
        items: Sequence[Example] | Sequence[Trial]
        for name, items in (("examples", self.examples), ("trials", self.trials)):
            rows = (strict_json.dumps(dataclasses.asdict(one)) for one in items)
            with open_atomic(folder / f"{name}.jsonl") as out:
                out.writelines(f"{row}\n".encode() for row in rows)
        write_atomic(folder / "outcomes.json", strict_json.dumps(self.summary(), indent=2) + "\n")


# ---------------------------------------------------------------- building (section 3.2)


def build(comparisons: Iterable[Comparison], sampler: Sampler, options: RftOptions) -> RftSet:
    """Samples critiques of comparisons and keeps what rejection leaves.

    With no samples of either kind the set is empty and the sampler is not called.
    Raises ValueError for a label without exactly one best response, or for a missing reply,
    TooFewParsed after the first comparisons.
    """
    result, comparisons = RftSet(), list(comparisons)
    if not options.samples + options.hinted:
        return result
    for comparison in comparisons:
        check_label(comparison)  # before anything is sampled
    total = len(comparisons) * (options.samples + options.hinted)
    log.info("sampling %d critiques of %d comparisons", total, len(comparisons))
    with Progress("critiques", total) as progress:
        done = 0
        for number, chunk in enumerate(_chunks(comparisons, options)):
            groups = [requests_for(comparison, options) for comparison in chunk]
            requests = [request for group in groups for request in group]
            numbers = itertools.count(done + 1)
            with on_reply(lambda *_, numbers=numbers: progress.update(next(numbers))):
                replies = list(sampler(requests))
            if len(replies) != len(requests):
                raise ValueError(
                    f"the sampler returned {len(replies)} replies to {len(requests)} requests: "
                    "return one for each, None if it failed"
                )
            remaining = iter(replies)
            for group in groups:
                _add_comparison(result, group, [next(remaining) for _ in group], options)
            done += len(requests)
            progress.update(done)
            if options.min_parsed and not number:
                _check_parsed(result, options.min_parsed)
    log.info("%s", result.sentence())
    return result


def _chunks(
    comparisons: Sequence[Comparison], options: RftOptions
) -> Iterator[Sequence[Comparison]]:
    pilot = PILOT if options.min_parsed else 0
    if pilot:
        yield comparisons[:pilot]
    for start in range(pilot, len(comparisons), options.chunk):
        yield comparisons[start : start + options.chunk]


def _check_parsed(result: RftSet, least: float) -> None:
    """Raises TooFewParsed if the share of parsed critiques is below `least`."""
    trials = result.trials
    parsed = sum(trial.outcome in PARSED for trial in trials)
    if parsed >= least * len(trials):
        return
    failures = collections.Counter(t.outcome for t in trials if t.outcome not in PARSED)
    example = next(t.text for t in trials if t.outcome not in PARSED)
    log.warning("a critique that cannot be parsed: %.600s", example)
    counts = ", ".join(f"{count} {status}" for status, count in failures.most_common())
    raise TooFewParsed(f"{parsed} of {len(trials)} critiques can be parsed ({counts})")


def _add_comparison(
    result: RftSet,
    requests: Sequence[CritiqueRequest],
    replies: Sequence[CritiqueReply | None],
    options: RftOptions,
) -> None:
    """Adds the samples of one comparison: their outcomes, and the examples that are kept."""
    comparison = requests[0].comparison
    template = training_template(options.template, comparison)
    trials = []
    for request, reply in zip(requests, replies):
        if reply is None:
            result.outcomes[f"{HINTED if request.hinted else NON_HINTED}/failed"] += 1
        else:
            order = tuple(request.order if reply.order is None else reply.order)
            outcome = outcome_of(comparison, parse_reply(comparison, order, reply, template))
            is_right = outcome == "right"
            trials.append(Trial(comparison, order, reply.text, request.hinted, is_right, outcome))

    # Too easy: all N non-hinted samples came, and all are correct.
    plain = [trial.right for trial in trials if not trial.hinted]
    too_easy = options.reject and 0 < options.samples == len(plain) and all(plain)

    def final_outcome(trial: Trial) -> str:
        if trial.right:
            return "too_easy" if too_easy and not trial.hinted else "kept"
        return "kept" if trial.outcome in PARSED and not options.reject else trial.outcome

    trials = [dataclasses.replace(trial, outcome=final_outcome(trial)) for trial in trials]
    kept = [trial for trial in trials if trial.outcome == "kept"]
    result.trials += trials
    result.outcomes.update(f"{trial.kind}/{trial.outcome}" for trial in trials)
    of_comparison = "too_easy" if too_easy else "kept" if kept else "never_right"
    result.outcomes[f"comparison/{of_comparison}"] += 1
    for trial in kept:
        # Rendered again: without the hint, and in the order of this text.
        messages = tuple(rendering.render(template, comparison, trial.order))
        result.examples.append(Example(messages, trial.text, trial.kind, comparison.id))


def mix(examples: Sequence[Example], general: Sequence[Example], seed: int = 0) -> list[Example]:
    """Returns judging and general examples (the paper: 186K and 1,070K) in one random order."""
    mixed = [*examples, *general]
    random.Random(seed).shuffle(mixed)
    return mixed


# ---------------------------------------------------------------- prompts


def requests_for(comparison: Comparison, options: RftOptions) -> list[CritiqueRequest]:
    """Returns the samples to draw for a comparison, the non-hinted ones first."""
    template = training_template(options.template, comparison)
    total = options.samples + options.hinted
    requests = []
    orders = response_orders(comparison, total, options.orders, options.seed)
    for sample, order in enumerate(orders):
        hinted = sample >= options.samples
        hint = hint_of(comparison, order) if hinted else None
        messages = rendering.render(template, comparison, order, hint=hint)
        requests.append(CritiqueRequest(comparison, order, hinted, sample, messages))
    return requests


def training_template(family: str, comparison: Comparison) -> str:
    """Returns the template for training: a single response is scored 0 or 1 (SPCT, appendix G).

    The reference, if there is one, is not shown. `family` may also be one template, used for all.
    """
    return rendering.single_binary(family) if comparison.n == 1 else family


def hint_of(comparison: Comparison, order: Sequence[int]) -> int | str:
    """Returns the hint: index of the best response, or the correct score of a single response.

    Where the data has a strength of the preference, a sentence with the best position and strength.
    """
    if comparison.n == 1:
        return int(correct_score(comparison))
    strength = comparison.meta.get("strength")
    if isinstance(strength, bool) or not isinstance(strength, int):
        return best_index(comparison)  # none, or a field of the user's own
    phrase = _STRENGTHS.get(strength, f"better by {strength}")
    position = list(order).index(best_index(comparison)) + 1
    return f"the best response is Response {position}; it is {phrase}."


# ---------------------------------------------------------------- the rule


def is_correct(comparison: Comparison, scores: Sequence[float] | None) -> bool:
    """Applies the strict rule (SPCT, equation 10) to scores in the caller's order.

    Two or more responses: the best has a higher score than every other; a tie with it is wrong. A
    single response: the score equals the label. None is wrong. Raises ValueError for a comparison
    without a single best response.
    """
    if comparison.n == 1:
        correct = correct_score(comparison)
        return scores is not None and scores[0] == correct
    best = best_index(comparison)
    return scores is not None and all(scores[best] > s for i, s in enumerate(scores) if i != best)


def check_label(comparison: Comparison) -> None:
    """Raises TrainingError for a label that `is_correct` cannot apply."""
    correct_score(comparison) if comparison.n == 1 else best_index(comparison)


def best_index(comparison: Comparison) -> int:
    """Returns the index of the best response. Raises TrainingError if the label has not one."""
    if comparison.best is None:
        raise TrainingError(
            f"comparison {comparison.id!r} has label {comparison.label}: exactly one response must "
            "be best"
        )
    return comparison.best


def correct_score(comparison: Comparison) -> float:
    """Returns the label of a single response, 1.0 or 0.0. Raises TrainingError without one."""
    if comparison.rewards is None:
        raise TrainingError(
            f"comparison {comparison.id!r} has no label: a single response needs (1.0,) or (0.0,)"
        )
    return comparison.rewards[0]


def parse_reply(
    comparison: Comparison, order: Sequence[int], reply: CritiqueReply, template: str
) -> Critique:
    """Parses a reply; the scores are in the caller's order."""
    shape = rendering.load(template)
    critique = parse(reply.text, comparison.n, shape.low, shape.high, shape.output, reply.finish)
    return critique.in_caller_order(tuple(order))


def outcome_of(comparison: Comparison, critique: Critique) -> str:
    """Returns "right", "tie", "wrong", or the status of a critique without scores."""
    if critique.scores is None:
        return critique.status
    if is_correct(comparison, critique.scores):
        return "right"
    if comparison.n > 1 and critique.scores[best_index(comparison)] == max(critique.scores):
        return "tie"
    return "wrong"


# ---------------------------------------------------------------- stored trials


def read_trials(path: Any) -> list[Trial]:
    """Returns the trials of a file that `RftSet.save` wrote; "fate" is the outcome's old name."""
    trials = []
    for line in read_lines(as_path(path)):
        row = strict_json.loads(line)
        row["outcome"] = row.pop("fate", None) or row["outcome"]
        row |= {"comparison": from_json(row["comparison"]), "order": tuple(row["order"])}
        trials.append(Trial(**row))
    return trials


def easy_ids(trials: Iterable[Trial]) -> set[str]:
    """Returns the ids of the comparisons whose non-hinted samples are all correct.

    The paper (appendix C.1) drops them from its RL set, where another model drew three samples.
    """
    plain = [(str(trial.comparison.id), trial.right) for trial in trials if not trial.hinted]
    return {id for id, _ in plain} - {id for id, is_right in plain if not is_right}
