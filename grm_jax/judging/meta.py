"""The meta reward model: scores critiques by how likely their scores are right (SPCT, sec. 4)."""

from collections.abc import Sequence

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from grm_jax.models import critique_rewards
from grm_jax.models.transformer import Transformer
from grm_jax.sharding import named, use_mesh
from grm_jax.text import rendering
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Comparison

LENGTHS = (*(128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536, 131072),)

# A comparison, the response order that the critique saw, and the critique's text.
CritiqueText = tuple[Comparison, tuple[int, ...], str]


class TooLong(ValueError):
    """A critique with its responses is longer than the meta model's context."""


class MetaRM:
    """Scores critiques with a model that has a scalar head (`models.critique_rewards`).

    The model reads a chat: the query with the responses in the order that the critique saw, then
    the critique as the answer.

    Args:
      template: "grm/meta_rm", a judge's family of templates, or a file.
      mesh: mesh of the model's parameters; None for one device.
      batch: critiques per forward pass.
      name: the model's name in output rows.
      likelihood: weight of the critique's mean log-probability in the score; 0 for the scalar head
        alone.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        template: str = "grm/meta_rm",
        mesh: Mesh | None = None,
        batch: int = 4,
        name: str = "meta_rm",
        likelihood: float = 0.0,
    ):
        if not model.cfg.scalar_head:
            raise ValueError(
                f"{model.cfg.name} has no scalar head: a meta reward model is a sequence classifier"
            )
        rendering.load(template)  # raises for a wrong name or a broken file
        self._model, self.tokenizer, self.template, self.mesh = model, tokenizer, template, mesh
        self.batch, self.name, self.likelihood = batch, name, float(likelihood)
        self._rewards = nnx.jit(
            lambda model, tokens, segments, starts: critique_rewards(
                model,
                model.hidden(tokens, None, segments),
                tokens,
                segments,
                starts,
                self.likelihood,
            ),
            out_shardings=None if mesh is None else named(mesh),  # replicated: every host reads it
        )

    def templates(self) -> list[rendering.Template]:
        """Returns every template under which a critique may be scored."""
        names = [self.template]
        if self.template in rendering.FAMILIES:
            names = [f"{self.template}/{role}" for role in ("judge", "single", "reference")]
        return [rendering.load(name) for name in names]

    def encode(self, critique: CritiqueText) -> list[int]:
        """Returns the token ids that are scored."""
        comparison, order, text = critique
        template = rendering.choose(self.template, comparison)
        messages = rendering.render(template, comparison, order, critique=text)
        return self.tokenizer.encode_chat(messages, add_generation_prompt=False)

    def critique_start(self, critique: CritiqueText, ids: list[int]) -> int:
        """Returns the number of tokens before the critique in `ids`, the result of `encode`.

        A token that spans the end of the prompt and the start of the critique, as some vocabularies
        have, belongs to the critique.
        """
        comparison, order, _ = critique
        messages = rendering.render(rendering.choose(self.template, comparison), comparison, order)
        prompt = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
        return next((i for i, (a, b) in enumerate(zip(prompt, ids)) if a != b), len(prompt))

    def __call__(self, critiques: Sequence[CritiqueText]) -> list[float]:
        """Returns one score per critique. Raises TooLong for one beyond the model's context."""
        encoded = [self.encode(critique) for critique in critiques]
        context = self._model.cfg.max_length
        for ids in encoded:
            if len(ids) > context:
                raise TooLong(
                    f"a critique with its responses is {len(ids):,} tokens, the meta model's "
                    f"context {context:,}: lower max_new_tokens, or shorten the responses"
                )
        if not self.likelihood:  # the starts are not used, and each costs a rendering
            return self.score_tokens(encoded)
        starts = [self.critique_start(c, ids) for c, ids in zip(critiques, encoded)]
        return self.score_tokens(encoded, starts)

    def score_tokens(self, encoded: Sequence[list[int]], starts: Sequence[int] = ()) -> list[float]:
        """Returns the scores of sequences of token ids, computed in batches of similar lengths.

        starts: where each critique begins; required with a likelihood.
        """
        if self.likelihood and len(starts) != len(encoded):
            raise ValueError(
                f"{len(starts)} starts for {len(encoded)} critiques: the likelihood needs one each "
                "(`critique_start`)"
            )
        starts = starts if len(starts) else [0] * len(encoded)
        scores: dict[int, float] = {}
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # little padding
        for first in range(0, len(by_length), self.batch):
            batch = by_length[first : first + self.batch]
            values = self._score_batch([encoded[i] for i in batch], [starts[i] for i in batch])
            scores.update(zip(batch, values))
        return [scores[i] for i in range(len(encoded))]

    def _score_batch(self, encoded: Sequence[list[int]], starts: Sequence[int]) -> list[float]:
        length = padded_length(max(map(len, encoded)))
        tokens_BxL = np.full((self.batch, length), self.tokenizer.pad_id, np.int32)
        segments_BxL = np.zeros((self.batch, length), np.int32)
        for b, ids in enumerate(encoded):
            tokens_BxL[b, : len(ids)], segments_BxL[b, : len(ids)] = ids, 1
        # Empty rows of a last batch get one token, so that nothing divides by zero.
        segments_BxL[len(encoded) :, 0] = 1
        starts_B = np.zeros(self.batch, np.int32)
        starts_B[: len(starts)] = starts
        with use_mesh(self.mesh):
            rewards_B = self._rewards(self._model, tokens_BxL, segments_BxL, starts_B)
        return [float(reward) for reward in np.asarray(rewards_B)[: len(encoded)]]


def padded_length(length: int) -> int:
    """Returns the smallest of a few lengths that holds `length`, so that few shapes compile."""
    return next((size for size in LENGTHS if size >= length), length)
