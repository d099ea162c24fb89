"""One comparison in progress: its orders and prompts, and the critiques of its completions."""

import contextlib
import dataclasses
import functools
import math
import os

from grm_jax.judging.meta import MetaRM, NotFinite
from grm_jax.judging.sampler import TextCodec, TextCompletion, text_of
from grm_jax.judging.votes import Order
from grm_jax.sampling import Completion, prefixes
from grm_jax.text import layout, parse, parse_principles, rendering
from grm_jax.types import FAILED, Comparison, Critique, Turn


@dataclasses.dataclass(frozen=True)
class Unjudged:
    """A comparison that could not be judged, and the reason.

    no_reply: an endpoint returned none of its critiques; a resumed run requests them again.
    """

    reason: str
    no_reply: bool = False


def check_judged(i: int, comparison: Comparison, result: object) -> None:
    """Raises ValueError with the reason why a comparison has no verdict."""
    if isinstance(result, Unjudged):
        name = f" ({comparison.id})" if comparison.id else ""
        raise ValueError(f"comparison {i}{name}: {result.reason}")


def too_long(length: int, max_new_tokens: int, context: int | None) -> Unjudged | None:
    """Returns the reason if a prompt of this length does not fit the model's context."""
    if context is None or length + max_new_tokens <= context:
        return None
    return Unjudged(
        f"the prompt of {length:,} tokens and {max_new_tokens:,} new ones do not fit "
        f"the model's context of {context:,}: shorten the responses, or lower "
        "max_new_tokens"
    )


@functools.lru_cache(maxsize=256)
def template_prefix(template: rendering.Template, n: int, codec: TextCodec) -> tuple[int, ...]:
    """Returns the tokens with which every prompt of a template for n responses begins.

    () if they are fewer than `prefixes.MIN_TOKENS`. They do not depend on the comparisons of a
    run, so that shards and resumed runs compute a prompt's samples in the same way.
    """
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    shown: list[tuple[str | list[Turn], str, str]]
    shown = [("1. ?", "+", "1. A"), ("Why so?", "No.", "Brevity"), (chat, "a\nb", "- B")]
    prompts = []
    for query, text, principles in shown:
        comparison = Comparison(query, [text] * n, reference=text)
        if "reference" not in template.needs:
            comparison = dataclasses.replace(comparison, reference=None)
        given = principles if "principles" in template.needs else None
        with contextlib.suppress(layout.MissingTurns):  # of a template for single turns
            messages = rendering.render(template, comparison, principles=given)
            prompts.append(codec.encode_chat(messages))
    prefix = os.path.commonprefix(prompts)[: min(map(len, prompts)) - 1]
    return tuple(prefix) if len(prefix) >= prefixes.MIN_TOKENS else ()


@dataclasses.dataclass
class Job:
    """One comparison in progress.

    orders: the response order of each sample.  prompts: token ids for each distinct order.
    completions: those that the sampler has returned, by sample.
    """

    comparison: Comparison
    template: rendering.Template
    orders: list[Order]
    prompts: dict[Order, list[int]]
    principles: str | None = None
    completions: dict[int, Completion] = dataclasses.field(default_factory=dict)

    def common_prefix(self, order: Order, codec: TextCodec) -> int:
        """Returns how many first tokens of a prompt are its template's, 0 for another text."""
        prefix = template_prefix(self.template, self.comparison.n, codec)
        return prefixes.num_used(self.prompts[order], prefix)

    @functools.cached_property
    def group_prefix(self) -> int:
        """How many first tokens the prompts of all orders have in common; 0 for a single order."""
        return prefixes.common_length(list(self.prompts.values())) if len(self.prompts) > 1 else 0

    def failure(self) -> Unjudged | None:
        """Returns why there is no verdict: the sampler failed, or no request succeeded."""
        completions = list(self.completions.values())
        for completion in completions:
            if completion.finish == "error":
                return Unjudged(completion.error or "the sampler failed without a reason")
        if any(completion.finish != FAILED for completion in completions):
            return None
        reason = completions[-1].error or "no reason"
        return Unjudged(f"none of {len(completions)} requests succeeded: {reason}", no_reply=True)

    def prompt_tokens(self) -> int:
        """Returns the tokens of the distinct prompts; of all requests as an endpoint counts them.

        An endpoint that counts none gives 0.
        """
        replies = [c for c in self.completions.values() if isinstance(c, TextCompletion)]
        if replies:
            return sum((c.reply and c.reply.prompt_tokens) or 0 for c in replies)
        return sum(map(len, self.prompts.values()))

    def critique(self, sample: int, codec: TextCodec) -> Critique:
        """Parses the completion of a sample; the scores are in prompt order."""
        completion, template = self.completions[sample], self.template
        if completion.finish == FAILED:
            none = tuple(range(self.comparison.n))
            return Critique("", order=none, status=FAILED, sample=sample, error=completion.error)
        reply = text_of(completion, codec)
        critique = parse(
            *(reply.text, self.comparison.n, template.low, template.high),
            *(template.output, reply.finish),
        )
        return dataclasses.replace(
            critique,
            principles=critique.principles or parse_principles(self.principles or ""),
            tokens=reply.num_tokens or 0,
            prompt_tokens=reply.prompt_tokens,
            sample=sample,
        )


def with_meta_scores(meta_rm: MetaRM, job: Job, critiques: list[Critique]) -> list[Critique]:
    """Scores the parsed critiques; the meta reward model sees the order that each critique saw.

    Raises NotFinite, TooLong.
    """
    parsed = [i for i, critique in enumerate(critiques) if critique.status == "ok"]
    texts = [(job.comparison, job.orders[i], critiques[i].text) for i in parsed]
    scores = dict(zip(parsed, map(float, meta_rm(texts))))
    if wrong := [score for score in scores.values() if not math.isfinite(score)]:
        raise NotFinite(
            f"the meta reward model scores a critique {wrong[0]}: check its weights, or load them "
            "in float32"
        )
    return [dataclasses.replace(c, meta_score=scores.get(i)) for i, c in enumerate(critiques)]
