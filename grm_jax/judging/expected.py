r"""Expected scores: the mean score under the model's distribution over score tokens.

A critique ends in \boxed{7, 4}. At the 7, the model has a probability for each score of the scale;
their mean is a graded score from one sample, and ties become rare. A teacher-forced pass over
prompt and critique gives these probabilities. The expectation for a response is conditional on the
sampled scores before it.

Gemma encodes 10 as two tokens, "1" and "0": P(10) = P(1) P(0 | 1), and P(1 alone) =
P(1) (1 - P(0 | 1)). P(0 | 1) needs a "1" in that place, which the critique may not have.

One pass has critiques of one comparison, as many as fit: what their prompts begin with, the rest of
each prompt, the critiques, and the first digits to try, each once (`TokenTree`).

Source of the idea: judgement distributions (arXiv 2503.03064).
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from grm_jax.judging.scalar_head import padded_length
from grm_jax.models import cpu
from grm_jax.models.attend import LayerRef
from grm_jax.models.attention import attend_part
from grm_jax.models.transformer import Transformer
from grm_jax.sampling import prefixes
from grm_jax.sharding import named, use_mesh
from grm_jax.text.parse import find_box
from grm_jax.text.rendering import Template
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Critique

# Of several critiques in one pass; a critique that exceeds these has a pass of its own.
ROW_TOKENS, QUERIES = 4096, 64
TARGETS = 32  # the numbers of queries and of targets are padded to multiples of these two


class TokenTree:
    """Tokens of one pass that form a tree, and the tokens to predict in it.

    A token attends to the tokens before it on its own path. With two orders a and b of a prompt, a
    critique c of a, and the digit 1 to try in place of the token c2:

        tokens       p0 p1 | a2 a3 | b2 b3 | c0 c1 c2 c3 | 1
        positions    0  1    2  3    2  3    4  5  6  7    6
        order        0  0    1  1    2  2    1  1  1  1    1
        critique     0  0    0  0    0  0    1  1  1  1    1

    Attributes:
      slots: (token, position, reach, order, critique, hidden) of each token. It attends to itself
        and to positions up to `reach`; nothing else attends to a hidden token.
      queries: slots whose next token is to be predicted.
      targets: tokens whose log-probabilities are computed, by query.
    """

    def __init__(self) -> None:
        self.slots: list[tuple[int, int, int, int, int, bool]] = []
        self.queries: list[int] = []
        self.targets: list[list[int]] = []

    def add(self, tokens: Sequence[int], start: int, order: int = 0, critique: int = 0) -> None:
        """Appends tokens at positions from `start`."""
        for position, token in enumerate(tokens, start):
            self.slots.append((token, position, position, order, critique, False))

    def add_alternative(self, token: int, position: int, order: int, critique: int) -> int:
        """Appends a token in place of the critique's at `position`; returns its slot."""
        self.slots.append((token, position, position - 1, order, critique, True))
        return len(self.slots) - 1

    def add_query(self, slot: int, tokens: Sequence[int]) -> int:
        """Adds a query for the log-probabilities of tokens after a slot; returns its number."""
        self.queries.append(slot)
        self.targets.append(list(tokens))
        return len(self.queries) - 1


# row -> log-probabilities (M, W) of the targets, by query
LogProbs = Callable[[TokenTree], np.ndarray]
Sample = tuple[list[int], list[int], Critique]  # prompt, tokens, and the parsed critique


@dataclasses.dataclass(frozen=True)
class _Place:
    """A score of a critique.

    Attributes:
      index: of its first token among the critique's; the box is before it.
      values: that the score may have.
      whole: token of each value that is one token.
      digits: first and second token of each value that is two.
    """

    index: int
    values: range
    whole: dict[int, int]
    digits: dict[int, tuple[int, int]]

    @property
    def first_digits(self) -> set[int]:
        return {first for first, _ in self.digits.values()}


class ExpectedScores:
    """Computes the expected scores of the critiques of a comparison.

    Args:
      log_probs: `model_log_probs(model)`.
    """

    def __init__(self, log_probs: LogProbs, tokenizer: Tokenizer):
        self.log_probs, self.tokenizer = log_probs, tokenizer

    def __call__(
        self, samples: Sequence[Sample], template: Template
    ) -> list[tuple[float, ...] | None]:
        """Returns one expectation per response, in prompt order, for each critique.

        For "choice" templates: the probability that each response is named the best. None if the
        critique is unparsed, a score is not a whole number, or its tokens cannot be located.

        Args:
          samples: prompts and critiques of one comparison.
        """
        results: list[tuple[float, ...] | None] = [None] * len(samples)
        pending = []
        for i, (_, ids, critique) in enumerate(samples):
            if critique.status == "ok" and (places := self._places(ids, critique, template)):
                pending.append((i, places))
        while pending:
            # At least one critique, and as many others as one row holds.
            taken: list[tuple[int, list[_Place]]] = []
            tokens = queries = 0
            for i, places in pending:
                prompt, ids, _ = samples[i]
                count = sum(1 + len(place.first_digits) for place in places)
                new = all(samples[j][0] != prompt for j, _ in taken)
                tokens += len(prompt) * new + len(ids) + count
                queries += count
                if taken and (tokens > ROW_TOKENS or queries > QUERIES):
                    break
                taken.append((i, places))
            pending = pending[len(taken) :]
            for (i, _), masses in zip(taken, self._masses(samples, taken), strict=True):
                results[i] = _expectations(masses, template.output == "choice")
        return results

    def _masses(
        self, samples: Sequence[Sample], taken: Sequence[tuple[int, list[_Place]]]
    ) -> list[list[dict[int, float]]]:
        """Returns the probability of each value, by critique and place; runs one pass."""
        row = TokenTree()
        prompts = list(dict.fromkeys(tuple(samples[i][0]) for i, _ in taken))
        shared = prefixes.common_length(prompts)
        row.add(prompts[0][:shared], 0)
        for order, prompt in enumerate(prompts, 1):
            row.add(prompt[shared:], shared, order)
        queried = []
        for number, (i, places) in enumerate(taken, 1):
            prompt_ids, ids, _ = samples[i]
            order = 1 + prompts.index(tuple(prompt_ids))
            begin = len(row.slots)
            row.add(ids, len(prompt_ids), order, number)
            for place in places:
                query = row.add_query(
                    begin + place.index - 1, sorted({*place.whole.values(), *place.first_digits})
                )
                tries = {}
                for first in sorted(place.first_digits):
                    seconds = [second for digit, second in place.digits.values() if digit == first]
                    slot = row.add_alternative(first, len(prompt_ids) + place.index, order, number)
                    tries[first] = row.add_query(slot, seconds)
                queried.append((place, query, tries))
        probs_MxW = np.exp(self.log_probs(row))
        all_masses = [_place_masses(row, probs_MxW, *one) for one in queried]
        starts = np.cumsum([0, *(len(places) for _, places in taken)])
        return [all_masses[a:b] for a, b in zip(starts, starts[1:])]

    def _places(
        self, ids: list[int], critique: Critique, template: Template
    ) -> list[_Place] | None:
        """Returns where the scores are, and the tokens of every value there."""
        located = self.locate(ids, critique.text, critique, template)
        if located is None:
            return None
        is_choice = template.output == "choice"
        low, high = (1, len(critique.order)) if is_choice else (template.low, template.high)
        values = range(int(low), int(high) + 1)
        places = []
        for index, lead in located[:1] if is_choice else located:
            whole = {value: self._id(lead + str(value)) for value in values}
            if any(whole[value] is None for value in values if len(str(value)) > 2):
                return None  # a value of three tokens
            digits = {}
            for value in (value for value in values if len(str(value)) == 2):
                if value // 10 not in values:
                    continue
                first, second = whole[value // 10], self._id(str(value % 10))
                if first is None or second is None:
                    return None
                digits[value] = first, second
            known = {value: token for value, token in whole.items() if token is not None}
            places.append(_Place(index, values, known, digits))
        return places

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
        if "\ufffd" in text[: box.end]:
            return None  # stands for bytes of another length
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

    def _id(self, piece: str) -> int | None:
        token = self.tokenizer.id_of(piece.replace(" ", "▁"))
        return token if token is not None else self.tokenizer.id_of(piece)


def _place_masses(
    row: TokenTree, probs_MxW: np.ndarray, place: _Place, query: int, tries: dict[int, int]
) -> dict[int, float]:
    """Returns the probability of each value at a place."""

    def probability(query: int, token: int) -> float:
        return float(probs_MxW[query, row.targets[query].index(token)])

    masses = dict.fromkeys(place.values, 0.0)
    for value, token in place.whole.items():
        masses[value] += probability(query, token)
    for value, (first, second) in place.digits.items():
        both = probability(query, first) * probability(tries[first], second)
        masses[value] += both
        masses[value // 10] -= both
    return masses


def _expectations(masses: list[dict[int, float]], is_choice: bool) -> tuple[float, ...] | None:
    """Returns the expectations of the places; of a choice, the probabilities of its values."""
    distributions = []
    for one in masses:
        total = sum(one.values())
        if not total > 0:
            return None
        distributions.append({value: mass / total for value, mass in one.items()})
    if is_choice:
        return tuple(distributions[0].values())
    return tuple(sum(value * p for value, p in one.items()) for one in distributions)


def model_log_probs(model: Transformer, mesh: Mesh | None = None) -> LogProbs:
    """Returns the log-probabilities of a model by teacher forcing.

    Lengths are padded to a few sizes; only the logits of the queries are computed.
    """
    forward = row_program(mesh)

    def log_probs(row: TokenTree) -> np.ndarray:
        slots_6xL = np.zeros((6, padded_length(len(row.slots))), np.int32)
        slots_6xL[2:4], slots_6xL[5] = -1, 1  # padding sees itself alone
        slots_6xL[:, : len(row.slots)] = np.array(row.slots).T
        M, W = len(row.queries), max(map(len, row.targets))
        queries_M = np.zeros(-(-M // QUERIES) * QUERIES, np.int32)
        queries_M[:M] = row.queries
        targets_MxW = np.zeros((len(queries_M), -(-W // TARGETS) * TARGETS), np.int32)
        for targets_W, tokens in zip(targets_MxW, row.targets):
            targets_W[: len(tokens)] = tokens
        with use_mesh(mesh):
            logps_MxW = forward(model, slots_6xL, queries_M, targets_MxW)
        return np.asarray(logps_MxW)[:M, :W]

    return log_probs


def row_program(mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """Returns the program (model, slots_6xL, queries_M, targets_MxW) -> log-probabilities (M, W).

    The result is replicated over the mesh, as every host reads it.
    """

    def forward(
        model: Transformer, slots_6xL: jax.Array, queries_M: jax.Array, targets_MxW: jax.Array
    ) -> jax.Array:
        cfg, L = model.cfg, slots_6xL.shape[1]
        tokens_L, positions_L, reach_L, order_L, critique_L, hidden_L = slots_6xL

        def attend(layer: LayerRef, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> Any:
            def part(start: int, stop: int) -> jax.Array:
                one, seen = slice(start, stop), slice(0, stop)  # a token's path is before it
                mask = positions_L[seen] <= reach_L[one, None]
                for path_L in (order_L, critique_L):
                    mask &= (path_L[seen] == 0) | (path_L[seen] == path_L[one, None])
                mask &= hidden_L[seen] == 0
                if layer.spec.window is not None:
                    mask &= positions_L[one, None] - positions_L[seen] < layer.spec.window
                mask |= jnp.arange(stop) == jnp.arange(start, stop)[:, None]
                o, _ = attend_part(q[:, one], k[:, seen], v[:, seen], mask[None], cfg.attn_cap)
                return o

            chunk = cpu.query_chunk(cfg.query_chunk, L)
            parts = [part(i, min(i + chunk, L)) for i in range(0, L, chunk)]
            return jnp.concatenate(parts, axis=1), state, None

        x_1xLxD, _, _ = model.trunk(
            model.embedder.encode(tokens_L[None]), positions_L[None], attend
        )
        x_MxD = model.final_norm(x_1xLxD[:, queries_M])[0]
        logps_MxV = jax.nn.log_softmax(model.embedder.decode(x_MxD), axis=-1)
        return jnp.take_along_axis(logps_MxV, targets_MxW, axis=1)

    return nnx.jit(forward, out_shardings=None if mesh is None else named(mesh))
