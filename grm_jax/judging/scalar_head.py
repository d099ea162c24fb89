"""A model with a scalar head as a function from token ids to rewards."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from grm_jax.models import critique_rewards
from grm_jax.models.transformer import Transformer
from grm_jax.sharding import named, use_mesh
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Comparison

LENGTHS = (*(128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536, 131072),)


class ScalarHead:
    """Scores sequences of token ids with a model that has a scalar head.

    Args:
      pad_id: fills the batch; it is masked.
      mesh: mesh of the model's parameters; None for one device.
      batch: sequences per forward pass.
      likelihood: weight of the mean log-probability of a sequence's end in its score
        (`models.critique_rewards`); 0 for the scalar head alone.

    Attributes:
      run: calls a function of one forward pass; a server replaces it to run it on its own thread.
    """

    def __init__(
        self,
        model: Transformer,
        pad_id: int = 0,
        mesh: Mesh | None = None,
        batch: int = 4,
        likelihood: float = 0.0,
    ):
        if not model.cfg.scalar_head:
            raise ValueError(
                f"{model.cfg.name} has no scalar head: a meta reward model is a sequence classifier"
            )
        self._model, self._pad_id, self.mesh = model, pad_id, mesh
        self.batch, self.likelihood = batch, float(likelihood)
        self.run: Callable[..., list[float]] = lambda function, *batch: function(*batch)
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

    def score_tokens(self, encoded: Sequence[list[int]], starts: Sequence[int] = ()) -> list[float]:
        """Returns the scores of sequences of token ids, computed in batches of similar lengths.

        starts: where each critique begins; required with a likelihood.
        """
        if self.likelihood and len(starts) != len(encoded):
            raise ValueError(
                f"{len(starts)} starts for {len(encoded)} critiques: the likelihood needs one each "
                "(`critique_start`)"
            )
        scores = dict(self.stream_tokens(encoded, self.batch, starts))
        return [scores[i] for i in range(len(encoded))]

    def stream_tokens(
        self, encoded: Sequence[list[int]], batch: int, starts: Sequence[int] = ()
    ) -> Iterator[tuple[int, float]]:
        """Yields (index, score) of sequences, the shortest first, batch after batch."""
        starts = starts if len(starts) else [0] * len(encoded)
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # little padding
        for first in range(0, len(by_length), batch):
            chosen = by_length[first : first + batch]
            texts, places = [encoded[i] for i in chosen], [starts[i] for i in chosen]
            yield from zip(chosen, self.run(self._score_batch, texts, places, batch))

    def _score_batch(
        self, encoded: Sequence[list[int]], starts: Sequence[int], batch: int
    ) -> list[float]:
        length = padded_length(max(map(len, encoded)))
        tokens_BxL = np.full((batch, length), self._pad_id, np.int32)
        segments_BxL = np.zeros((batch, length), np.int32)
        for b, ids in enumerate(encoded):
            tokens_BxL[b, : len(ids)], segments_BxL[b, : len(ids)] = ids, 1
        # Empty rows of a last batch get one token, so that nothing divides by zero.
        segments_BxL[len(encoded) :, 0] = 1
        starts_B = np.zeros(batch, np.int32)
        starts_B[: len(starts)] = starts
        with use_mesh(self.mesh):
            rewards_B = self._rewards(self._model, tokens_BxL, segments_BxL, starts_B)
        return [float(reward) for reward in np.asarray(rewards_B)[: len(encoded)]]


def padded_length(length: int) -> int:
    """Returns the smallest of a few lengths that holds `length`, so that few shapes compile."""
    return next((size for size in LENGTHS if size >= length), length)


def encode_response(
    tokenizer: Tokenizer, comparison: Comparison, response: str, critique: str | None = None
) -> list[int]:
    """Tokenises the conversation with the response as its answer, and the critique after it."""
    answer = response if critique is None else f"{response}\n\n{critique}"
    turns = [*comparison.turns, {"role": "assistant", "content": answer}]
    return tokenizer.encode_chat(turns, add_generation_prompt=False)
