"""Published scalar reward models as judges: a reward for each response, without critiques.

The folder of a sequence classifier with one label, such as Skywork-Reward, is scored as
transformers scores it: the conversation with the response, in the folder's chat template, through
the model; the reward is the scalar head at the last token that is not padding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

from jax.sharding import Mesh

from grm_jax.devices import choose_platform, use_compilation_cache
from grm_jax.judging import votes
from grm_jax.judging.frames import Comparisons, comparisons_from
from grm_jax.judging.job import Unjudged, check_judged
from grm_jax.judging.judge import Judge
from grm_jax.judging.loading import LoadOptions, scalar_arguments
from grm_jax.judging.options import Keywords, Options
from grm_jax.judging.sampler import Sampler
from grm_jax.judging.scalar_head import LENGTHS, ScalarHead, encode_response, padded_length
from grm_jax.judging.scalar_options import check_options, check_unused
from grm_jax.sampling import Completion, Request
from grm_jax.sharding import batch_shards
from grm_jax.text import rendering
from grm_jax.text.sandbox import Rejected
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Comparison, Ranking, Turn, Verdict

# Texts and tokens per forward pass and shard of the batch: enough for a TPU to be compute-bound.
BATCH, BATCH_TOKENS = 8, 16_384


def _no_sampler(requests: Sequence[Request]) -> Iterator[Completion]:
    raise ValueError("a scalar reward model writes no critiques: call it for rewards")


@dataclasses.dataclass(eq=False, repr=False)
class ScalarJudge(Judge):
    """A scalar reward model that is called as a `Judge`: its verdicts have rewards as scores.

    Verdicts have no critiques; `best` is the response with the highest reward, None on a tie. The
    attributes of `Judge` that concern prompts and votes have no meaning here.

    Attributes:
      head: the model.
      padding_id: `pad_token_id` of config.json; transformers takes the reward at the last token of
        another id. None: at the last token.
      max_batch: bounds the texts per forward pass; None for no other bound than `BATCH`.
      max_tokens: of a text, if a server takes fewer than the context; None for the context alone.
    """

    is_scalar: ClassVar[bool] = True
    tokenizer: Tokenizer
    sampler: Sampler = _no_sampler
    head: ScalarHead = dataclasses.field(kw_only=True)
    padding_id: int | None = dataclasses.field(kw_only=True, default=None)
    max_batch: int | None = dataclasses.field(kw_only=True, default=None)
    max_tokens: int | None = dataclasses.field(kw_only=True, default=None)

    def __call__(
        self,
        comparisons: Comparisons,
        k: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        **options: Unpack[Keywords],
    ) -> list[Verdict]:
        """Scores every response and returns a verdict per comparison, in the same order.

        Args:
          comparisons: as of `Judge`.
          k, temperature, seed, options: for calls that also serve a `Judge`; k must be 1, the
            temperature 0, and the others unset.

        Raises:
          ValueError: an option that has no effect, or the first comparison that cannot be scored.
        """
        inputs = comparisons_from(comparisons)
        keywords = {"k": k, "temperature": temperature, "seed": seed, **options}
        settings, verdicts = self._options("judge()", keywords), {}
        for i, result in self.stream(inputs, settings):
            check_judged(i, inputs[i], result)
            verdicts[i] = result
        return [v for _, v in sorted(verdicts.items()) if isinstance(v, Verdict)]

    def rank(
        self,
        query: str | list[Turn],
        responses: Sequence[str],
        k: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        **options: Unpack[Keywords],
    ) -> Ranking:
        """Scores the responses to one query and returns them best first; see `__call__`."""
        comparison = Comparison(query, responses)
        (verdict,) = self([comparison], k, temperature, seed, **options)
        return Ranking.of(comparison.responses, verdict)

    def __repr__(self) -> str:
        return f"ScalarJudge({self.name!r}, context={self.context})"

    def template_for(self, comparison: Comparison, options: Options) -> rendering.Template:
        """Raises ValueError: a scalar reward model has a chat template and no other."""
        raise ValueError(f"{self.name} is a scalar reward model, which has no prompt template")

    def templates(self) -> list[rendering.Template]:
        """Returns no template; the tokenizer has the chat template."""
        return []

    def encode(self, comparison: Comparison) -> list[list[int]]:
        """Returns the token ids of each response after its conversation, up to the scored token.

        A system text is put before the first user turn's if the chat template rejects its role.
        Raises ValueError for turns that the chat template rejects.
        """
        try:
            texts = [encode_response(self.tokenizer, comparison, r) for r in comparison.responses]
        except Rejected:
            if (merged := _system_in_user_turn(comparison)) is None:
                raise
            texts = [encode_response(self.tokenizer, merged, r) for r in merged.responses]
        return [self._without_padding(ids) for ids in texts]

    def _without_padding(self, ids: list[int]) -> list[int]:
        """Drops padding at the end, as if a template ends with the padding token (pad = eos)."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.padding_id:
            end -= 1
        return ids[:end]

    def _options(self, function: str, given: Mapping[str, Any]) -> Options:
        checked = super()._options(function, given)
        check_unused(self.name, given)
        return checked

    def _check_options(self, options: Options) -> None:
        check_options(self.name, options)

    def _jobs(
        self, comparisons: Sequence[Comparison], options: Sequence[Options], chunk: int
    ) -> Iterator[Any]:
        return ((comparison, self._encode_or_reason(comparison)) for comparison in comparisons)

    def _stream_chunk(
        self, jobs: Sequence[Any], options: Sequence[Options]
    ) -> Iterator[tuple[int, Verdict | Unjudged]]:
        places: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # (comparison, response) by text
        counts = [0] * len(jobs)
        for i, (_, encoded) in enumerate(jobs):
            if isinstance(encoded, Unjudged):
                yield i, encoded
                continue
            counts[i] = sum(map(len, encoded))
            for response, ids in enumerate(encoded):
                places.setdefault(tuple(ids), []).append((i, response))
        rewards: list[dict[int, float]] = [{} for _ in jobs]
        for text, reward in self._stream_rewards(list(places)):
            for i, response in places[text]:
                rewards[i][response] = reward
                comparison, _ = jobs[i]
                if len(rewards[i]) == comparison.n:
                    yield i, self._verdict(comparison, rewards[i], counts[i])

    def _encode_or_reason(self, comparison: Comparison) -> list[list[int]] | Unjudged:
        try:
            encoded = self.encode(comparison)
        except ValueError as error:
            return Unjudged(str(error))
        for number, ids in enumerate(encoded, start=1):
            start = f"response {number} with its conversation has {len(ids):,} tokens"
            if self.context is not None and len(ids) > self.context:
                return Unjudged(f"{start}; the model's context is {self.context:,}: shorten them")
            if self.max_tokens is not None and len(ids) > self.max_tokens:
                return Unjudged(
                    f"{start}; this server takes {self.max_tokens:,}: shorten them, or raise "
                    "--max_prompt"
                )
        return encoded

    def warm_up(self, longest: int) -> None:
        """Compiles the programs of texts of up to `longest` tokens.

        Raises ValueError if a reward is not finite.
        """
        token, most = self.tokenizer.stop_ids[0], padded_length(longest)
        texts = [(token,) * min(size, longest) for size in (*LENGTHS, most) if size <= most]
        for text, reward in self._stream_rewards(list(dict.fromkeys(texts))):
            if not math.isfinite(reward):
                raise ValueError(
                    f"the reward of {len(text):,} tokens is {reward}, which is not finite: check "
                    "the weights, or load them in float32"
                )

    def _stream_rewards(
        self, texts: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], float]]:
        """Yields each text with its reward.

        Texts of one padded length form batches of one size, so that a reward does not depend on
        the other texts.
        """
        lengths: dict[int, list[tuple[int, ...]]] = {}
        for ids in texts:
            lengths.setdefault(padded_length(len(ids)), []).append(ids)
        for length, members in sorted(lengths.items()):
            batch = max(1, min(BATCH, BATCH_TOKENS // length)) * batch_shards(self.head.mesh)
            batch = min(batch, self.max_batch or batch)
            for i, reward in self.head.stream_tokens([list(ids) for ids in members], batch):
                yield members[i], reward

    def _verdict(
        self, comparison: Comparison, rewards: Mapping[int, float], tokens: int
    ) -> Verdict | Unjudged:
        scores = tuple(rewards[i] for i in range(comparison.n))
        for number, reward in enumerate(scores, start=1):
            if not math.isfinite(reward):
                return Unjudged(
                    f"the reward of response {number} is {reward}: check the weights, or load them "
                    "in float32"
                )
        best = votes.winner(scores)
        return Verdict(comparison.id, scores, best, (), unparsed=0, prompt_tokens=tokens)


def load(
    path: str | Path,
    meta_rm: str | Path | None,
    mesh: Mesh | None,
    template: str | Path | None,
    options: LoadOptions,
) -> ScalarJudge:
    """Loads the folder of a sequence classifier; see `Judge.load`.

    Raises ValueError for an argument that only a judge with critiques has.
    """
    given: dict[str, Any] = {"meta_rm": meta_rm, "template": template, "rows": options.rows}
    given |= {name: getattr(options, name) for name in ("meta_template", "kv_cache_dtype")}
    check_unused(str(path), given)
    choose_platform()
    use_compilation_cache()
    return ScalarJudge(**scalar_arguments(path, mesh, options))


def _system_in_user_turn(comparison: Comparison) -> Comparison | None:
    """Returns the comparison with its first system turns at the start of the user turn after them.

    None if there are none.
    """
    turns = comparison.turns
    count = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    if not 0 < count < len(turns):
        return None
    text = "\n\n".join(turn["content"] for turn in turns[: count + 1])
    merged = [turns[count] | {"content": text}, *turns[count + 1 :]]
    return dataclasses.replace(comparison, query=merged)
