"""The meta reward model: a scalar for each critique, high where its scores are likely to be right (SPCT, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grm_jax.sharding import use_mesh
from grm_jax.text import rendering
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Comparison

BUCKETS = (64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536, 131072)

# A comparison, the order that the critique saw, and the critique's text.
JudgedComparison = tuple[Comparison, tuple[int, ...], str]


class TooLong(ValueError):
    """A critique with its responses is longer than the meta model's context."""


class MetaRM:
    """Scores critiques with a model that has a scalar head (`models.critique_rewards`).

    The chat is the query with the responses in the order that the critique saw them, then the critique as the answer.
    template: "grm/meta_rm", "compact/meta_rm", a judge's family of templates, or a file.  batch: critiques per forward pass.
    name: for output rows.  likelihood: weight of the critique's mean log-probability in its score, 0 for the scalar head alone.
    """

    def __init__(
        self,
        model,
        tokenizer: Tokenizer,
        template: str = "grm/meta_rm",
        mesh=None,
        batch: int = 4,
        name: str = "meta_rm",
        likelihood: float = 0.0,
    ):
        from flax import nnx

        from grm_jax.models import critique_rewards
        from grm_jax.sharding import named

        if not model.cfg.scalar_head:
            raise ValueError(
                f"{model.cfg.name} has no scalar head: a meta reward model is a sequence classifier"
            )
        self.tokenizer, self.template, self.mesh, self.batch, self.name = (
            tokenizer,
            template,
            mesh,
            batch,
            name,
        )
        self.likelihood = float(likelihood)
        rendering.load(template)
        self._model = model
        self._rewards = nnx.jit(
            lambda model, tokens, segments, starts: critique_rewards(
                model,
                model.hidden(tokens, None, segments),
                tokens,
                segments,
                starts,
                self.likelihood,
            ),
            out_shardings=None
            if mesh is None
            else named(mesh),  # whole on every host, which reads it
        )

    def encode(self, judged: JudgedComparison) -> list[int]:
        """The token ids that are scored."""
        comparison, order, text = judged
        template = rendering.choose(self.template, comparison)
        messages = rendering.render(template, comparison, order, critique=text)
        return self.tokenizer.encode_chat(messages, add_generation_prompt=False)

    def critique_start(self, judged: JudgedComparison, ids: list[int]) -> int:
        """How many of `ids`, which `encode` made of the same critique, come before the critique.

        A token that holds the end of the prompt and the start of the critique (a vocabulary may join them) is the critique's.
        """
        comparison, order, _ = judged
        messages = rendering.render(rendering.choose(self.template, comparison), comparison, order)
        prompt = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
        return next((i for i, (a, b) in enumerate(zip(prompt, ids)) if a != b), len(prompt))

    def __call__(self, critiques: Sequence[JudgedComparison]) -> list[float]:
        """One logit per critique. Raises TooLong for a critique that is longer than the model's context."""
        encoded = [self.encode(judged) for judged in critiques]
        longest = self._model.cfg.max_length
        for ids in encoded:
            if len(ids) > longest:
                raise TooLong(
                    f"a critique with its responses is {len(ids):,} tokens, the meta model's context {longest:,}: "
                    "lower max_new_tokens, or shorten the responses"
                )
        # Only the likelihood asks where a critique starts, which costs another rendering.
        starts = (
            [self.critique_start(one, ids) for one, ids in zip(critiques, encoded)]
            if self.likelihood
            else [0] * len(encoded)
        )
        scores: dict[int, float] = {}
        # Sorted by length, so that a batch is padded to about its own size.
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(by_length), self.batch):
            part = by_length[start : start + self.batch]
            scores.update(
                zip(part, self.score_tokens([encoded[i] for i in part], [starts[i] for i in part]))
            )
        return [scores[i] for i in range(len(encoded))]

    def score_tokens(self, encoded: list[list[int]], starts: Sequence[int] = ()) -> list[float]:
        """Scalar rewards of at most `batch` texts, given as token ids; starts: where each critique begins, which the likelihood reads."""
        if self.likelihood and len(starts) != len(encoded):
            raise ValueError(
                f"{len(starts)} starts of {len(encoded)} critiques: the likelihood needs one each (`critique_start`)"
            )
        length = bucket(max(map(len, encoded)))
        tokens_BxL = np.full((self.batch, length), self.tokenizer.pad_id, np.int32)
        segments_BxL = np.zeros((self.batch, length), np.int32)
        for row, ids in enumerate(encoded):
            tokens_BxL[row, : len(ids)], segments_BxL[row, : len(ids)] = ids, 1
        starts_B = np.zeros(self.batch, np.int32)
        starts_B[: len(starts)] = starts
        segments_BxL[len(encoded) :, 0] = (
            1  # empty rows of a last batch: one token, so that nothing divides by zero
        )
        with use_mesh(self.mesh):
            rewards_B = self._rewards(self._model, tokens_BxL, segments_BxL, starts_B)
        return [float(reward) for reward in np.asarray(rewards_B)[: len(encoded)]]


def bucket(length: int) -> int:
    """The smallest declared length that holds `length`: few shapes, few compilations."""
    return next((size for size in BUCKETS if size >= length), length)
