r"""Expected scores: the mean score under the model's distribution over score tokens.

A critique ends in \boxed{7, 4}. At the 7, the model has a probability for each score of the scale;
their mean is a graded score from one sample, and ties become rare. One teacher-forced pass over
prompt and critique gives these probabilities. The expectation for a response is conditional on the
sampled scores before it.

Gemma encodes 10 as two tokens, "1" and "0": P(10) = P(1) P(0 | 1), and P(1 alone) =
P(1) (1 - P(0 | 1)). P(0 | 1) needs a pass of its own over the text with "1" in that place; the pass
is skipped where P(1) is below `negligible`, which changes an expectation by at most 9 x negligible.
Source of the idea: judgement distributions (arXiv 2503.03064).
"""

import re
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from grm_jax.judging.scalar_head import padded_length
from grm_jax.models.transformer import Transformer
from grm_jax.sharding import named, use_mesh
from grm_jax.text.parse import find_box
from grm_jax.text.rendering import Template
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Critique

# (ids, M positions) -> log-probabilities (M, V) of the token that follows each position
LogProbs = Callable[[list[int], list[int]], np.ndarray]


class ExpectedScores:
    """Computes the expected scores of critiques, in prompt order.

    Args:
      log_probs: `model_log_probs(model)`.
      negligible: P(1) below which 10 is ignored.
    """

    def __init__(self, log_probs: LogProbs, tokenizer: Tokenizer, negligible: float = 1e-4):
        self.log_probs, self.tokenizer, self.negligible = log_probs, tokenizer, negligible

    def __call__(
        self, prompt: list[int], ids: list[int], text: str, critique: Critique, template: Template
    ) -> tuple[float, ...] | None:
        """Returns one expectation per response, in prompt order.

        For "choice" templates: the probability that each response is named the best. None if a
        score is not a whole number, or its tokens cannot be located.

        Args:
          prompt, ids, text: tokens of prompt and critique, and the critique's text.
          critique: parsed, in prompt order.
        """
        places = self.locate(ids, text, critique, template)
        if places is None:
            return None
        is_choice = template.output == "choice"
        low, high = (1, len(critique.order)) if is_choice else (template.low, template.high)
        values = list(range(int(low), int(high) + 1))
        positions = [len(prompt) + index for index, _ in places]
        probs_MxV = np.exp(self.log_probs(prompt + ids, [at - 1 for at in positions]))
        distributions = []
        for at, (_, lead), probs_V in zip(positions, places, probs_MxV):
            distribution = self._distribution((prompt + ids)[:at], lead, probs_V, values)
            if distribution is None:
                return None
            distributions.append(distribution)
        if is_choice:
            return tuple(float(probability) for probability in distributions[0])
        return tuple(float(np.dot(distribution, values)) for distribution in distributions)

    def locate(
        self, ids: list[int], text: str, critique: Critique, template: Template
    ) -> list[tuple[int, str]] | None:
        """Returns (index in ids, lead) of the token that begins each score.

        The lead is what the token has before the digit: a tokenizer may encode ", 4" as ",", " ",
        "4" or as ",", " 4". None if tokens and scores do not align.
        """
        box = find_box(text, len(critique.order), template.output, critique.finish)
        pieces = [self.tokenizer.piece_bytes(i) for i in ids]
        if box is None or b"".join(pieces).decode("utf-8", "replace") != text:
            return None
        offsets = np.cumsum([0, *map(len, pieces)])  # in bytes
        inside = text.index("{", box.start, box.end)
        places = []
        for number in re.finditer(r"[^,{}]+", text[inside : box.end]):
            digits = number.group().strip()
            if not digits.isdecimal():
                return None
            start = inside + number.start() + number.group().index(digits)
            start_byte = len(text[:start].encode())
            index = int(np.searchsorted(offsets, start_byte, side="right")) - 1
            lead = pieces[index][: start_byte - int(offsets[index])].decode("utf-8", "replace")
            if lead.strip():
                return None  # the token has more than a space before the digit
            places.append((index, lead))
        return places

    def _distribution(
        self, prefix: list[int], lead: str, probs_V: np.ndarray, values: list[int]
    ) -> list[float] | None:
        """Returns the normalised probabilities of the values after a prefix of tokens."""
        masses: dict[int, float] = {value: 0.0 for value in values}
        tokens = {value: self._id(lead + str(value)) for value in values}
        for value, token in tokens.items():
            if token is not None:
                masses[value] += float(probs_V[token])
        for value in values:
            digits = str(value)
            if len(digits) == 2 and int(digits[0]) in masses:
                first, second = tokens[int(digits[0])], self._id(digits[1])
                if first is None or second is None:
                    return None
                p_first = float(probs_V[first])
                if p_first < self.negligible:
                    continue
                log_probs_1xV = self.log_probs([*prefix, first], [len(prefix)])
                p_second = float(np.exp(log_probs_1xV[0, second]))
                masses[value] += p_first * p_second
                masses[int(digits[0])] -= p_first * p_second
        total = sum(masses.values())
        return [masses[value] / total for value in values] if total > 0 else None

    def _id(self, piece: str) -> int | None:
        token = self.tokenizer.id_of(piece.replace(" ", "▁"))
        return token if token is not None else self.tokenizer.id_of(piece)


def model_log_probs(model: Transformer, mesh: Mesh | None = None) -> LogProbs:
    """Returns the log-probabilities of a model by teacher forcing.

    Lengths are padded to a few sizes; only the logits of the given positions are computed.
    """
    forward = positions_program(mesh)

    def log_probs(ids: list[int], positions: list[int]) -> np.ndarray:
        length = padded_length(len(ids))
        tokens_1xL, segments_1xL = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        tokens_1xL[0, : len(ids)], segments_1xL[0, : len(ids)] = ids, 1
        positions_M = np.zeros(-(-len(positions) // 4) * 4, np.int32)  # in fours: few shapes
        positions_M[: len(positions)] = positions
        with use_mesh(mesh):
            logps_MxV = forward(model, tokens_1xL, segments_1xL, positions_M)
        return np.asarray(logps_MxV)[: len(positions)]

    return log_probs


def positions_program(mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """Returns the program (model, tokens, segments, positions) -> log-probabilities (M, V).

    The result is replicated over the mesh, as every host reads it.
    """

    def forward(
        model: Transformer, tokens_1xL: jax.Array, segments_1xL: jax.Array, positions_M: jax.Array
    ) -> jax.Array:
        x_1xLxD = model.hidden(tokens_1xL, None, segments_1xL)
        return jax.nn.log_softmax(model.embedder.decode(x_1xLxD[0, positions_M]), axis=-1)

    return nnx.jit(forward, out_shardings=None if mesh is None else named(mesh))
