"""The judge: comparisons in, verdicts out.

Life of a comparison, from `Judge.stream` downwards: response orders -> template -> prompt tokens ->
one request per distinct order -> completions, in any order -> parsed critiques -> scores in the
caller's order -> meta scores -> vote -> `Verdict`.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

from jax.sharding import Mesh

from grm_jax.devices import choose_platform, use_compilation_cache
from grm_jax.judging import votes
from grm_jax.judging.expected import ExpectedScores
from grm_jax.judging.frames import Comparisons, comparisons_from
from grm_jax.judging.job import Job, Unjudged as Unjudged, check_judged, too_long, with_meta_scores
from grm_jax.judging.meta import MetaRM, NotFinite, TooLong
from grm_jax.judging.options import CHUNK, POSITIVE, Keywords, Options
from grm_jax.judging.orders import item_of, response_orders
from grm_jax.judging.principles import PrinciplesCache, sample_principles, samples_principles
from grm_jax.judging.sampler import EngineSampler, Sampler, TextCodec
from grm_jax.registry import check_keywords
from grm_jax.sampling import Request
from grm_jax.text import rendering
from grm_jax.types import Comparison, Critique, Ranking, Turn, Verdict

KEPT_JOBS = 4 * CHUNK  # prompts that `judge(...)` keeps between its check and the sampling
# The roles of a family that a judge chooses from (`rendering.choose`, and --principles first).
ROLES = ("judge", "single", "reference", "given_principles", "principles", "critique")


@dataclasses.dataclass(eq=False)
class Judge:
    """A generative reward model with its tokenizer and template.

    Attributes:
      tokenizer: the model's own, or `by_endpoint.ChatMessages`.
      sampler: `EngineSampler(model)`, or any function from requests to completions.
      template: a family ("grm", "compact": the role that fits each comparison is chosen), the name
        of a template, or a Jinja file; "grm" if None.
      meta_rm: scores critiques; only the best of them vote.
      expected: computes expected scores.
      context: most tokens of prompt and critique together; None for no limit.
      name: the model's name in output rows, "name@fingerprint".
      max_new_tokens: longest critique if a call does not set it.
      settings: how the model was loaded, as far as verdicts depend on it; part of the identity of a
        run (`identity.run_identity`).
      single: template for comparisons with one response, unless principles are given or a reference
        is shown; None for the one that `template` chooses.
      principles_cache: of principles="first"; copies by `dataclasses.replace` share it.
    """

    is_scalar: ClassVar[bool] = False  # whether it gives rewards without critiques
    tokenizer: TextCodec
    sampler: Sampler
    template: str | Path | None = None
    meta_rm: MetaRM | None = None
    expected: ExpectedScores | None = None
    context: int | None = None
    name: str = "model"
    max_new_tokens: int = 1024
    single: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    principles_cache: PrinciplesCache = dataclasses.field(default_factory=PrinciplesCache)

    def __post_init__(self) -> None:
        self.family = str(self.template or "grm")
        for name in (self.family, self.single):
            if name and name not in rendering.FAMILIES:
                rendering.load(name)  # raises for a wrong name or a broken file

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

        The folder of a scalar reward model (a sequence classifier with one label) becomes a
        `scalar.ScalarJudge`.

        Args:
          path: a folder or file, or a name on the Hugging Face Hub, ORG/MODEL[@REVISION].
          meta_rm: a meta reward model, a path of the same kind.
          mesh: None for one device.
          template: see `Judge`; by default the one in the folder's judge.json, else "grm".
          options: the fields of `loading.LoadOptions`, such as dtype, quantize and lora.

        Raises:
          FileNotFoundError, ValueError: the message names the missing or wrong file.
        """
        from grm_jax.judging.loading import LoadOptions, judge_arguments
        from grm_jax.judging.scalar_options import is_scalar

        for name in options:
            if name in _names(Options):
                raise TypeError(f"Judge.load() takes no argument {name!r}: pass it to judge(...)")
        names = ("meta_rm", "mesh", "template", *_names(LoadOptions))
        check_keywords("Judge.load()", options, names)
        if is_scalar(path, options.get("lora")):
            # Imported by name: ScalarJudge is a subclass.
            scalar = importlib.import_module("grm_jax.judging.scalar")
            return cast(Judge, scalar.load(path, meta_rm, mesh, template, LoadOptions(**options)))
        choose_platform()
        use_compilation_cache()
        return cls(**judge_arguments(path, meta_rm, mesh, template, LoadOptions(**options)))

    @classmethod
    def endpoint(cls, url: str, model: str, **options: Any) -> Judge:
        """Returns a judge whose critiques an OpenAI-compatible server writes.

        No weights are loaded and nothing is sent yet. The server applies its chat template.

        Args:
          url: base address such as http://localhost:8000/v1.
          model: name of the model on the server.
          options: the other arguments of `by_endpoint.judge_arguments`, such as template, and the
            settings of `grm_jax.endpoint.Server`, such as parallel.

        Raises:
          ValueError: an address or setting that cannot be used.
        """
        from grm_jax.judging import by_endpoint

        check_keywords("Judge.endpoint()", options, by_endpoint.KEYWORDS)
        return cls(**by_endpoint.judge_arguments(url, model, **options))

    def __call__(
        self,
        comparisons: Comparisons,
        k: int = 8,
        temperature: float = 0.5,
        seed: int = 0,
        **options: Unpack[Keywords],
    ) -> list[Verdict]:
        """Judges comparisons and returns their verdicts in the same order.

        Args:
          comparisons: one or several: Comparison objects, records (dicts in a layout of
            docs/data.md), a pandas DataFrame, or a split of a `datasets` data set.
          options: the other fields of `Options`.

        Raises:
          ValueError: the first comparison that cannot be judged, before anything is sampled if its
            prompt is the reason. `stream` judges the others all the same.
          TypeError: an unknown option, or comparisons of another type.
        """
        inputs = comparisons_from(comparisons)
        keywords = {"k": k, "temperature": temperature, "seed": seed, **options}
        settings = self._options("judge()", keywords)
        self._check_options(settings)
        each = [settings] * len(inputs)
        jobs = self._jobs(inputs, each, CHUNK)
        if not samples_principles(settings):
            first: deque[Any] = deque()  # those of more comparisons would fill the memory
            for i, job in enumerate(jobs):
                check_judged(i, inputs[i], job)
                if i < KEPT_JOBS:
                    first.append(job)
            kept = (first.popleft() for _ in range(len(first)))  # frees the samples of judged ones
            jobs = itertools.chain(kept, self._jobs(inputs[KEPT_JOBS:], each[KEPT_JOBS:], CHUNK))
        verdicts: dict[int, Verdict] = {}
        for i, result in self._stream(jobs, each, CHUNK):
            check_judged(i, inputs[i], result)
            if isinstance(result, Verdict):
                verdicts[i] = result
        return [verdicts[i] for i in range(len(inputs))]

    def rank(
        self,
        query: str | list[Turn],
        responses: Sequence[str],
        k: int = 8,
        temperature: float = 0.5,
        seed: int = 0,
        **options: Unpack[Keywords],
    ) -> Ranking:
        """Judges the responses to one query and returns them best first.

        Args:
          query, responses: as in `Comparison`.
          options: the other fields of `Options`.

        Raises:
          ValueError: no critique has scores, or as `__call__`.
          TypeError: as `__call__`.
        """
        comparison = Comparison(query, responses)
        (verdict,) = self([comparison], k, temperature, seed, **options)
        if verdict.unparsed + verdict.failed == len(verdict.critiques):
            statuses = Counter(critique.status for critique in verdict.critiques)
            counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
            raise ValueError(
                f"no critique has scores to rank by ({counts}): raise max_new_tokens if critiques "
                "are truncated, or use a model trained to judge; judge(...) returns the texts"
            )
        return Ranking.of(comparison.responses, verdict)

    def __repr__(self) -> str:
        fields = [repr(self.name), f"template={str(self.template or 'grm')!r}"]
        fields += [f"meta_rm={self.meta_rm.name!r}"] if self.meta_rm is not None else []
        fields += [f"context={self.context}", f"max_new_tokens={self.max_new_tokens}"]
        return f"Judge({', '.join(fields)})"

    def stream(
        self,
        comparisons: Sequence[Comparison],
        options: Options | Sequence[Options] | None = None,
        chunk: int = CHUNK,
        **keywords: Any,
    ) -> Iterator[tuple[int, Verdict | Unjudged]]:
        """Yields (index, verdict or Unjudged) of each comparison as soon as it is judged.

        Args:
          options: the settings, or one per comparison; `keywords` are not allowed then.
          chunk: comparisons per call of the sampler.
          keywords: the fields of `Options`, with the defaults of `__call__`.
        """
        if options is None:
            options = self._options("judge.stream()", keywords)
        else:
            check_keywords("judge.stream(options=...)", keywords, ("chunk",))
        for distinct in dict.fromkeys([options] if isinstance(options, Options) else options):
            self._check_options(distinct)
        each = [options] * len(comparisons) if isinstance(options, Options) else list(options)
        if len(each) != len(comparisons):
            raise ValueError(
                f"{len(each)} options for {len(comparisons)} comparisons: pass one for all, or one "
                "per comparison"
            )
        chunk = POSITIVE.check("chunk = ", chunk)
        yield from self._stream(self._jobs(comparisons, each, chunk), each, chunk)

    def _stream(
        self, jobs: Iterator[Any], options: Sequence[Options], chunk: int
    ) -> Iterator[tuple[int, Verdict | Unjudged]]:
        """Judges jobs in chunks, and takes those of the next chunk while the device decodes."""
        start, current = 0, list(itertools.islice(jobs, chunk))
        while current:
            stop = start + len(current)
            # Principles are sampled by the same engine, which is busy until the chunk is judged.
            is_ahead = not any(map(samples_principles, options[stop : stop + chunk]))
            following: list[Any] = []
            for i, result in self._stream_chunk(current, options[start:stop]):
                yield start + i, result
                following += itertools.islice(jobs, int(is_ahead))
            following += itertools.islice(jobs, chunk - len(following))
            start, current = stop, following

    def _check_options(self, options: Options) -> None:
        """Raises ValueError for options that this judge has no models for."""
        if options.expected and self.expected is None:
            raise ValueError(
                "expected scores need the model's probabilities: this judge was built without them"
            )
        if options.k_meta is not None and self.meta_rm is None:
            raise ValueError(
                f"k_meta = {options.k_meta} needs a meta reward model: load the judge with meta_rm"
            )

    def _options(self, function: str, given: Mapping[str, Any]) -> Options:
        """Returns the options of a call. Raises TypeError for an unknown one."""
        check_keywords(function, given, _names(Options))
        return Options(**{"max_new_tokens": self.max_new_tokens, **given})

    def _jobs(
        self, comparisons: Sequence[Comparison], options: Sequence[Options], chunk: int
    ) -> Iterator[Any]:
        """Prepares one comparison at a time, after sampling the principles of its chunk."""
        for start in range(0, len(comparisons), chunk):
            part = slice(start, start + chunk)
            principles = self._principles(comparisons[part], options[part])
            for inputs in zip(comparisons[part], options[part], principles, strict=True):
                yield self._prepare(*inputs)

    def _stream_chunk(
        self, jobs: Sequence[Any], options: Sequence[Options]
    ) -> Iterator[tuple[int, Verdict | Unjudged]]:
        """Samples the critiques of all jobs at once; yields each verdict when it is complete."""
        requests, owners = [], []
        own_engine = isinstance(self.sampler, EngineSampler)
        for i, job in enumerate(jobs):
            if isinstance(job, Unjudged):
                yield i, job
                continue
            for order, count in Counter(job.orders).items():
                request = self._request(job.prompts[order], count, options[i])
                if own_engine:
                    common = job.common_prefix(order, self.tokenizer)
                    prefixes = {"common_prefix": common, "group_prefix": job.group_prefix}
                    request = dataclasses.replace(request, **prefixes)
                requests.append(dataclasses.replace(request, group=i))
                # Sample s of this request is the s-th sample of the comparison with this order.
                samples = [s for s, other in enumerate(job.orders) if other == order]
                owners.append((i, job, samples))
        for completion in self.sampler(requests):
            i, job, samples = owners[completion.request_index]
            job.completions[samples[completion.sample_index]] = completion
            if len(job.completions) == len(job.orders):
                yield i, self._finish(job, options[i])

    def template_for(self, comparison: Comparison, options: Options) -> rendering.Template:
        """Returns the template under which a comparison is judged."""
        if (
            options.principles == "first"
            and options.given_principles is None
            and self.family in rendering.FAMILIES
        ):
            return rendering.load(f"{self.family}/critique")
        name = rendering.choose(self.family, comparison, options.given_principles)
        if self.single and comparison.n == 1 and name in (self.family, f"{self.family}/single"):
            name = self.single
        return rendering.load(name)

    def templates(self) -> list[rendering.Template]:
        """Returns every template under which a comparison may be judged, whatever the options."""
        names = [self.family, rendering.role_template(self.family, "principles")]
        if self.family in rendering.FAMILIES:
            names = [f"{self.family}/{role}" for role in ROLES]
        return [rendering.load(name) for name in (*names, *filter(None, [self.single]))]

    def _prepare(
        self, comparison: Comparison, options: Options, principles: str | Unjudged | None
    ) -> Job | Unjudged:
        """Chooses the orders and renders a prompt for each."""
        if isinstance(principles, Unjudged):
            return principles
        try:
            template = self.template_for(comparison, options)
            orders = response_orders(comparison, options.k, options.orders, options.seed)
            prompts = {}
            for order in dict.fromkeys(orders):
                messages = rendering.render(template, comparison, order, principles=principles)
                prompts[order] = self.tokenizer.encode_chat(messages)
        except ValueError as error:
            return Unjudged(str(error))
        longest = max(map(len, prompts.values()))
        refused = too_long(longest, options.max_new_tokens, self.context)
        return refused or Job(comparison, template, orders, prompts, principles)

    def _request(self, prompt: Sequence[int], k: int, options: Options) -> Request:
        return Request(
            prompt=prompt,
            k=k,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            stop=self.tokenizer.stop_ids,
            seed=options.seed,
            item=item_of(prompt),
        )

    def _finish(self, job: Job, options: Options) -> Verdict | Unjudged:
        """Parses, scores and votes after all samples of a comparison have finished."""
        if (failure := job.failure()) is not None:
            return failure
        critiques = self._critiques(job, options)
        n, id, guided = job.comparison.n, job.comparison.id, self.meta_rm is not None
        try:
            if self.meta_rm is not None:
                critiques = with_meta_scores(self.meta_rm, job, critiques)
            verdict = votes.verdict(critiques, n, id, options.vote, guided, options.k_meta)
        except (NotFinite, TooLong, votes.NoVote) as error:  # of this comparison alone
            return Unjudged(str(error))
        return dataclasses.replace(
            verdict, principles=job.principles, prompt_tokens=job.prompt_tokens()
        )

    def _critiques(self, job: Job, options: Options) -> list[Critique]:
        """Returns the critiques of all samples, their scores in the caller's order."""
        parsed = [job.critique(sample, self.tokenizer) for sample in range(len(job.orders))]
        expected: Sequence[tuple[float, ...] | None] = [None] * len(parsed)
        if options.expected and self.expected is not None:
            tokens = [list(map(int, job.completions[i].tokens)) for i in range(len(parsed))]
            prompts = [job.prompts[order] for order in job.orders]
            samples = list(zip(prompts, tokens, parsed, strict=True))
            expected = self.expected(samples, job.template)
        return [
            dataclasses.replace(
                critique, expected_scores=scores, seed=options.seed
            ).in_caller_order(order)
            for critique, scores, order in zip(parsed, expected, job.orders, strict=True)
        ]

    def _principles(
        self, comparisons: Sequence[Comparison], options: Sequence[Options]
    ) -> list[str | Unjudged | None]:
        """Returns the principles of each prompt: given, or sampled once per query; else None."""
        template = rendering.role_template(self.family, "principles")
        texts: list[str | Unjudged | None] = [one.given_principles for one in options]
        owners: dict[Request, list[int]] = {}
        for i, comparison in enumerate(comparisons):
            if not samples_principles(options[i]):
                continue
            try:
                ids = tuple(self.tokenizer.encode_chat(rendering.render(template, comparison)))
            except ValueError as error:
                texts[i] = Unjudged(str(error))
                continue
            texts[i] = too_long(len(ids), options[i].max_new_tokens, self.context)
            if texts[i] is None:
                owners.setdefault(self._request(ids, 1, options[i]), []).append(i)
        results = sample_principles(
            list(owners), self.sampler, self.tokenizer, self.principles_cache
        )
        for request, members in owners.items():
            for i in members:
                texts[i] = results[request]
        return texts


def _names(options: type) -> list[str]:
    return [field.name for field in dataclasses.fields(options)]
