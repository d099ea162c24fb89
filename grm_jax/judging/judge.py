"""The judge: comparisons in, verdicts out.

The way of a comparison, all in this file: response orders are chosen, each distinct order becomes a prompt and a request for
its samples, rows come back in any order, and when a comparison has all of its rows they are parsed, put back into the caller's
order and voted on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grm_jax.judging import orders as ordering
from grm_jax.judging import votes
from grm_jax.judging.meta import TooLong
from grm_jax.judging.options import Options
from grm_jax.judging.sampler import Sampler
from grm_jax.sampling import Completion, Request
from grm_jax.text import parse, parse_principles, rendering
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Comparison, Critique, Principle, Verdict

LONGEST_PRINCIPLES = 4000  # characters of a principles text that could not be read as a list


@dataclasses.dataclass(frozen=True)
class Unjudged:
    """A comparison that could not be judged, and why."""

    reason: str


@dataclasses.dataclass
class _Job:
    """One comparison on its way: its template, its orders by sample, and the rows that have come back."""

    comparison: Comparison
    template: rendering.Template
    orders: list[tuple[int, ...]]
    prompts: dict[tuple[int, ...], list[int]]  # order -> token ids
    principles: str | None = None
    rows: dict[int, Completion] = dataclasses.field(default_factory=dict)  # sample -> row


class Judge:
    """A generative reward model with its tokenizer and template.

    sampler: `engine_sampler(model)`, or a function in tests.  template: a family ("grm",
    "compact": the member that fits each comparison is chosen), a template's name, or a file.  meta_rm: scores critiques
    (`MetaRM`).  expected: computes expected scores (`ExpectedScores`).  context: longest prompt plus critique in tokens.
    name: what output rows call the model, "name@fingerprint".  max_new_tokens: longest critique where a call does not say.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampler: Sampler,
        template: str | None = None,
        meta_rm=None,
        expected: Callable | None = None,
        context: int | None = None,
        name: str = "model",
        max_new_tokens: int = 1024,
    ):
        self.max_new_tokens = max_new_tokens
        self.tokenizer, self.sampler, self.family = tokenizer, sampler, str(template or "grm")
        self.meta_rm, self.expected, self.context, self.name = meta_rm, expected, context, name
        rendering.load(
            self.family
        )  # A wrong name or a broken file fails here, not in the first call.
        self._principles: dict[tuple, str] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        meta_rm: str | Path | None = None,
        mesh: Mesh | None = None,
        template: str | Path | None = None,
        **options: Any,
    ) -> Judge:
        """Loads a judge from a model folder or checkpoint with its tokenizer.

        Args:
          meta_rm: a meta reward model, a path of the same kind.
          mesh: None for one device.
          template: see `Judge`; by default the one in the folder's judge.json, else "grm".
          options: the fields of `loading.LoadOptions`, such as dtype.

        Raises:
          FileNotFoundError, ValueError: the message names the missing or wrong file.
        """
        from grm_jax.judging.loading import LoadOptions, judge_arguments

        return cls(**judge_arguments(path, meta_rm, mesh, template, LoadOptions(**options)))

    def __call__(
        self,
        comparisons: Sequence[Comparison],
        k: int = 8,
        temperature: float = 0.5,
        seed: int = 0,
        **options,
    ):
        """Verdicts of comparisons, in their order. options: the other fields of `Options`.

        Raises ValueError naming the first comparison that cannot be judged, before anything is sampled where its prompt is
        the reason. Use `stream` to have the others judged all the same.
        """
        comparisons = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
        options = {"max_new_tokens": self.max_new_tokens, **options}
        settings = Options(k=k, temperature=temperature, seed=seed, **options)
        if settings.principles != "first":
            for i, comparison in enumerate(comparisons):
                _raise(
                    i, comparison, self._prepare(comparison, settings, settings.given_principles)
                )
        verdicts: dict[int, Verdict] = {}
        for i, result in self.stream(comparisons, settings):
            _raise(i, comparisons[i], result)
            if isinstance(result, Verdict):
                verdicts[i] = result
        return [verdicts[i] for i in range(len(comparisons))]

    def stream(
        self, comparisons: Sequence[Comparison], options: Options, chunk: int = 256
    ) -> Iterator[tuple[int, Verdict | Unjudged]]:
        """(index, verdict or Unjudged) of each comparison as it is finished. chunk: how many are handed to the sampler at once."""
        if options.expected and self.expected is None:
            raise ValueError(
                "expected scores need the model's probabilities: this judge was built without them"
            )
        for start in range(0, len(comparisons), chunk):
            part = comparisons[start : start + chunk]
            for i, result in self._judge_chunk(part, options):
                yield start + i, result

    def _judge_chunk(self, comparisons: Sequence[Comparison], options: Options):
        given: list[str | None] = [options.given_principles] * len(comparisons)
        if options.principles == "first" and options.given_principles is None:
            given = self._write_principles(comparisons, options)
        jobs: dict[int, _Job] = {}
        for i, comparison in enumerate(comparisons):
            job = self._prepare(comparison, options, given[i])
            if isinstance(job, Unjudged):
                yield i, job
            else:
                jobs[i] = job
        requests, owners = [], []
        for i, job in jobs.items():
            for order, count in Counter(job.orders).items():
                requests.append(self._request(job.prompts[order], count, options))
                # The s-th row of an order belongs to the s-th sample that was to see this order.
                owners.append((i, [s for s, seen in enumerate(job.orders) if seen == order]))
        for row in self.sampler(requests):
            i, samples = owners[row.request_index]
            job = jobs[i]
            job.rows[samples[row.sample_index]] = row
            if len(job.rows) == len(job.orders):
                yield i, self._finish(job, options)

    def _request(self, prompt: list[int], k: int, options: Options) -> Request:
        return Request(
            prompt=prompt,
            k=k,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            stop=self.tokenizer.stop_ids,
            seed=options.seed,
            item=ordering.item_of(prompt),
        )

    def template_for(self, comparison: Comparison, options: Options) -> rendering.Template:
        """The template that a comparison is judged under."""
        if (
            options.principles == "first"
            and options.given_principles is None
            and self.family in rendering.FAMILIES
        ):
            return rendering.load(f"{self.family}/critique")
        return rendering.load(rendering.choose(self.family, comparison, options.given_principles))

    def _prepare(
        self, comparison: Comparison, options: Options, principles: str | None
    ) -> _Job | Unjudged:
        try:
            template = self.template_for(comparison, options)
            seen = ordering.orders(comparison, options.k, options.orders, options.seed)
            prompts = {}
            for order in dict.fromkeys(seen):
                messages = rendering.render(template, comparison, order, principles=principles)
                prompts[order] = self.tokenizer.encode_chat(messages)
        except ValueError as error:
            return Unjudged(str(error))
        if reason := self._too_long(prompts, options):
            return Unjudged(reason)
        return _Job(comparison, template, seen, prompts, principles)

    def _too_long(self, prompts: dict, options: Options) -> str | None:
        longest = max(map(len, prompts.values()))
        if self.context is None or longest + options.max_new_tokens <= self.context:
            return None
        return (
            f"the prompt of {longest:,} tokens and {options.max_new_tokens:,} new ones do not fit the model's context "
            f"of {self.context:,}: shorten the responses, or lower max_new_tokens"
        )

    def _finish(self, job: _Job, options: Options) -> Verdict | Unjudged:
        failed = next((row for row in job.rows.values() if row.finish == "error"), None)
        if failed is not None:
            return Unjudged(failed.error or "the sampler failed without saying why")
        critiques = [self._read(job, sample, options) for sample in range(len(job.orders))]
        n, id = job.comparison.n, job.comparison.id
        try:
            if self.meta_rm is not None:
                critiques = self._meta_scored(job, critiques)
            return votes.verdict(
                critiques, n, id, options.vote, self.meta_rm is not None, options.k_meta
            )
        except (TooLong, votes.NoVote) as error:  # this comparison's fault: the others go on
            return Unjudged(str(error))

    def _read(self, job: _Job, sample: int, options: Options) -> Critique:
        """The critique of one row, its scores in the caller's order."""
        row, order, template = job.rows[sample], job.orders[sample], job.template
        ids = [int(i) for i in row.tokens]
        text = self.tokenizer.decode(ids)
        critique = parse(
            text, job.comparison.n, template.low, template.high, template.output, row.finish
        )
        principles: tuple[Principle, ...] = critique.principles
        if not principles and job.principles:
            principles = parse_principles(job.principles)
        expected = None
        if options.expected and critique.status == "ok" and self.expected is not None:
            expected = self.expected(job.prompts[order], ids, text, critique, template)
        tokens = sum(i not in self.tokenizer.stop_ids for i in ids)
        critique = dataclasses.replace(
            critique,
            principles=principles,
            expected_scores=expected,
            tokens=tokens,
            sample=sample,
            seed=options.seed,
        )
        return critique.in_caller_order(order)

    def _meta_scored(self, job: _Job, critiques: list[Critique]) -> list[Critique]:
        """The critiques with the meta reward model's logits; it sees the order that each critique saw."""
        readable = [i for i, critique in enumerate(critiques) if critique.status == "ok"]
        scores = self.meta_rm(
            [(job.comparison, job.orders[i], critiques[i].text) for i in readable]
        )
        for i, score in zip(readable, scores):
            critiques[i] = dataclasses.replace(critiques[i], meta_score=float(score))
        return critiques

    def _write_principles(
        self, comparisons: Sequence[Comparison], options: Options
    ) -> list[str | None]:
        """Principles for each comparison, written once per query (None where the prompt does not fit) and remembered."""
        name = rendering.role_template(self.family, "principles")
        keys, todo = [], {}
        for comparison in comparisons:
            try:
                prompt = self.tokenizer.encode_chat(rendering.render(name, comparison))
            except ValueError:
                keys.append(None)  # `_prepare` meets the same fault and says what it is
                continue
            key = (
                tuple(prompt),
                options.seed,
                options.temperature,
                options.top_p,
                options.top_k,
                options.max_new_tokens,
            )
            keys.append(key)
            if key not in self._principles and self._too_long({0: prompt}, options) is None:
                todo[key] = self._request(prompt, 1, options)
        waiting = list(todo)
        for row in self.sampler([todo[key] for key in waiting]):
            if row.finish != "error":
                text = self.tokenizer.decode(row.tokens)
                read = parse_principles(text)
                self._principles[waiting[row.request_index]] = (
                    rendering.principles_text(read) if read else text.strip()[:LONGEST_PRINCIPLES]
                )
        return [self._principles.get(key) for key in keys]


def _raise(i: int, comparison: Comparison, result) -> None:
    if isinstance(result, Unjudged):
        name = f" ({comparison.id})" if comparison.id else ""
        raise ValueError(f"comparison {i}{name}: {result.reason}")
