r"""Expected scores: what a critique would score on average if its score tokens alone were drawn again.

A critique ends in \boxed{7, 4}. At the place of the 7 the model had a probability for every score of the scale; their mean is
a graded score from one sample, and ties become rare. One teacher-forced pass over prompt and critique gives these
probabilities. Each response's expectation is taken with the scores before it as they were sampled.

Gemma writes 10 as two tokens, "1" and "0": P(10) = P(1) P(0 | 1) and P(1 alone) = P(1) (1 - P(0 | 1)). Where the sampled
score does not begin with "1", P(0 | 1) needs a pass of its own over the text with "1" in that place; it is left out where
P(1) is below `negligible`, which moves an expectation by at most 9 x negligible.
Source: the idea is that of judgement distributions (arXiv 2503.03064).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from grm_jax.judging.meta import bucket
from grm_jax.sharding import use_mesh
from grm_jax.text.parse import find_box
from grm_jax.text.rendering import Template
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Critique

# log_probs(ids, positions) -> natural-log probabilities (len(positions), V) of the token that follows each position
LogProbs = Callable[[list[int], list[int]], np.ndarray]


class ExpectedScores:
    """Computes expected scores of critiques in prompt order.

    log_probs: see LogProbs (`model_log_probs(model)`).  negligible: a P(1) too small to matter.
    """

    def __init__(self, log_probs: LogProbs, tokenizer: Tokenizer, negligible: float = 1e-4):
        self.log_probs, self.tokenizer, self.negligible = log_probs, tokenizer, negligible

    def __call__(
        self, prompt: list[int], ids: list[int], text: str, critique: Critique, template: Template
    ) -> tuple[float, ...] | None:
        """The expectation for each response, prompt order; None where a score is no whole number or cannot be located.

        For "choice" templates: the probability that each response is named the best.
        """
        places = self.places(ids, text, critique, template)
        if places is None:
            return None
        probs_MxV = np.exp(self.log_probs(prompt + ids, [len(prompt) + at - 1 for at, _ in places]))
        values = (
            range(1, len(critique.order) + 1)
            if template.output == "choice"
            else self._scale(template)
        )
        found = []
        for (at, lead), probs_V in zip(places, probs_MxV):
            masses = self._masses(prompt + ids, len(prompt) + at, lead, probs_V, list(values))
            if masses is None:
                return None
            found.append(masses)
        if template.output == "choice":
            return tuple(float(mass) for mass in found[0])
        return tuple(float(np.dot(masses, list(values))) for masses in found)

    def _scale(self, template: Template) -> range:
        return range(int(template.low), int(template.high) + 1)

    def places(
        self, ids: list[int], text: str, critique: Critique, template: Template
    ) -> list[tuple[int, str]] | None:
        """(index in ids, leading space) of the token that begins each score; None where tokens and scores do not line up.

        A tokenizer may write ", 4" as ",", " ", "4" or as ",", " 4": the lead is what the token holds before the digit.
        """
        wanted = 1 if template.output == "choice" else len(critique.order)
        box = find_box(text, wanted, critique.finish)
        pieces = [self.tokenizer.piece_bytes(i) for i in ids]
        if box is None or b"".join(pieces).decode("utf-8", "replace") != text:
            return None
        starts = np.cumsum([0, *map(len, pieces)])
        body = text[box.start : box.end]
        inside = body.index("{")
        found = []
        for number in re.finditer(r"[^,{}]+", body[inside:]):
            digits = number.group().strip()
            if not digits.isdecimal():
                return None
            begin = box.start + inside + number.start() + number.group().index(digits)
            at = int(np.searchsorted(starts, len(text[:begin].encode()), side="right")) - 1
            lead = pieces[at][: len(text[:begin].encode()) - int(starts[at])].decode(
                "utf-8", "replace"
            )
            if lead.strip():
                return None  # a token that holds more than a space before the digit: other scores would be cut otherwise
            found.append((at, lead))
        return found

    def _masses(
        self, ids: list[int], at: int, lead: str, probs_V: np.ndarray, values: list[int]
    ) -> list[float] | None:
        """Normalised probabilities of the values at one place."""
        masses: dict[int, float] = {value: 0.0 for value in values}
        single = {value: self._id(lead + str(value)) for value in values}
        for value, token in single.items():
            if token is not None:
                masses[value] += float(probs_V[token])
        for value in values:
            digits = str(value)
            if len(digits) == 2 and int(digits[0]) in masses:
                first, second = single[int(digits[0])], self._id(digits[1])
                if first is None or second is None:
                    return None
                p_first = float(probs_V[first])
                if p_first < self.negligible:
                    continue
                p_second = self._following(ids, at, first, second)
                masses[value] += p_first * p_second
                masses[int(digits[0])] -= p_first * p_second
        total = sum(masses.values())
        return [masses[value] / total for value in values] if total > 0 else None

    def _id(self, piece: str) -> int | None:
        token = self.tokenizer.id_of(piece.replace(" ", "▁"))
        return token if token is not None else self.tokenizer.id_of(piece)

    def _following(self, ids: list[int], at: int, first: int, second: int) -> float:
        """P(second | the text before `at`, then first)."""
        prefix = [*ids[:at], first]
        return float(np.exp(self.log_probs(prefix, [at])[0, second]))


def model_log_probs(model, mesh=None) -> LogProbs:
    """Log-probabilities by teacher forcing. Lengths are padded to buckets; only the asked rows of logits are made."""
    forward = asked_rows(mesh)

    def log_probs(ids: list[int], positions: list[int]) -> np.ndarray:
        length = bucket(len(ids))
        tokens_1xL, segments_1xL = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        tokens_1xL[0, : len(ids)], segments_1xL[0, : len(ids)] = ids, 1
        positions_M = np.zeros(-(-len(positions) // 4) * 4, np.int32)  # in fours: few shapes
        positions_M[: len(positions)] = positions
        with use_mesh(mesh):
            rows = forward(model, tokens_1xL, segments_1xL, positions_M)
        return np.asarray(rows)[: len(positions)]

    return log_probs


def asked_rows(mesh=None):
    """The program (model, tokens, segments, positions) -> log-probabilities (M, V), whole on every host."""
    import jax
    from flax import nnx

    from grm_jax.sharding import named

    def forward(model, tokens_1xL, segments_1xL, positions_M):
        x_1xLxD = model.hidden(tokens_1xL, None, segments_1xL)
        return jax.nn.log_softmax(model.embedder.decode(x_1xLxD[0, positions_M]), axis=-1)

    return nnx.jit(forward, out_shardings=None if mesh is None else named(mesh))
