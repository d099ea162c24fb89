"""Bradley-Terry rewards: a scalar head over a text, trained so that the best response's text has the higher one.

loss = -log sigmoid(r_best - r_other), the mean over pairs (arXiv 2204.05862). Axes: B pairs, L length; a pair's two texts lie
beside each other, so that micro-batches never part them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grm_jax.data.packing import shuffled_index
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.metadata import meta_template
from grm_jax.training import checkpoint, loop, meta_rm, optim
from grm_jax.training import state as states
from grm_jax.training.programs import build_update, model_config
from grm_jax.types import Comparison

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Tokenised (best, other) texts: tokens and segment_ids (B, 2, L), best first."""

    tokens: np.ndarray
    segment_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index) -> dict[str, np.ndarray]:
        return {"tokens": self.tokens[index], "segment_ids": self.segment_ids[index]}


def encode_response(
    tokenizer, comparison: Comparison, response: str, critique: str | None = None
) -> list[int]:
    """The chat that a reward is read off: the conversation, the response as its answer, and the critique after it, if any."""
    answer = response if critique is None else f"{response}\n\n{critique}"
    turns = [*comparison.turns, {"role": "assistant", "content": answer}]
    return tokenizer.encode_chat(turns, add_generation_prompt=False)


def pair_up(texts: Sequence[tuple[list[int], list[int]]], seq_len: int) -> Pairs:
    """Pairs of token lists, padded to the longest (in steps of 16).

    Pairs with a text longer than seq_len are left out, and counted in the log. ValueError where none is left.
    """
    fitting = [pair for pair in texts if max(map(len, pair)) <= seq_len]
    if len(fitting) < len(texts):
        log.warning(
            "%d of %d pairs hold more than %d tokens",
            len(texts) - len(fitting),
            len(texts),
            seq_len,
        )
    if not fitting:
        raise ValueError(f"none of {len(texts)} pairs fits {seq_len} tokens: raise meta_rm.seq_len")
    longest = max(len(ids) for pair in fitting for ids in pair)
    shape = (len(fitting), 2, min(seq_len, -(-longest // 16) * 16))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, pair in enumerate(fitting):
        for side, ids in enumerate(pair):
            tokens[row, side, : len(ids)], segments[row, side, : len(ids)] = ids, 1
    return Pairs(tokens, segments)


def bradley_terry_loss(rewards_Bx2) -> jax.Array:
    """-log sigmoid(first - second), float32, per pair (B,)."""
    return jax.nn.softplus(
        rewards_Bx2[:, 1].astype(jnp.float32) - rewards_Bx2[:, 0].astype(jnp.float32)
    )


def build_step(config, section, mesh, model_abstract=None):
    """One update: (state, batch) -> (state, metrics), batch as `Pairs.rows`."""
    cfg = model_config(config, scalar_head=True)
    graphdef, params = model_abstract or states.abstract_model(cfg, mesh)

    def loss_of(params, micro, pairs):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        B, _, L = micro["tokens"].shape
        rewards_2B = model.rewards(
            micro["tokens"].reshape(2 * B, L), micro["segment_ids"].reshape(2 * B, L)
        )
        rewards_Bx2 = rewards_2B.reshape(B, 2)
        right = (rewards_Bx2[:, 0] > rewards_Bx2[:, 1]).astype(jnp.float32)
        return bradley_terry_loss(rewards_Bx2).sum() / pairs, {"accuracy": right.sum() / pairs}

    shape = ((section.batch_size, 2, section.seq_len), jnp.int32)
    shapes = {"tokens": shape, "segment_ids": shape}
    return build_update(
        "bt_update", loss_of, section, mesh, params, shapes, lambda b: b["tokens"].shape[0]
    )


def train(run: loop.Run, section, start, pairs: Pairs, folder, stage: str = "bt"):
    """Trains a scalar head and its trunk; returns the parameters.

    start: () -> parameters of the language model that becomes the trunk.
    """
    config, mesh = run.config, run.mesh
    section = section.copy_and_resolve_references()
    section.seq_len = pairs.tokens.shape[2]
    update = build_step(config, section, mesh)

    def init():
        params = meta_rm.add_head(config, mesh, start(), config.seed)
        return states.init_state(params, optim.make_optimizer(section), mesh, config.seed)

    def step(state, i, seed):
        places = range(i * section.batch_size, (i + 1) * section.batch_size)
        index = [shuffled_index(place, len(pairs), config.seed) for place in places]
        state, metrics = update.fn(state, states.put_batch(pairs.rows(index), mesh))
        return state, metrics, f"{i} of seed {config.seed}"

    training = loop.Stage(
        stage,
        section,
        folder,
        init=init,
        abstract_state=update.args[0],
        step=step,
        identity={
            "data": f"{len(pairs)} pairs",
            "seed": config.seed,
            "start": checkpoint.fingerprint(start()),
        },
        shown=("loss", "accuracy"),
        tensorboard=config.tensorboard,
    )
    return loop.train(training, run.stop)["params"]


class Scalar:
    """Rewards of texts under trained parameters, in padded batches."""

    def __init__(self, config, mesh, params, tokenizer, batch: int = 16):
        graphdef, _ = states.abstract_model(model_config(config, scalar_head=True), mesh)
        template = meta_template(config.template)
        # The meta reward model's batching does what is needed here; only the texts are others.
        self.scorer, self.tokenizer = (
            MetaRM(nnx.merge(graphdef, params), tokenizer, template, mesh, batch),
            tokenizer,
        )

    def __call__(self, encoded: Sequence[list[int]]) -> list[float]:
        """One reward per token list."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        rewards = [0.0] * len(encoded)
        for start in range(0, len(order), self.scorer.batch):
            part = order[start : start + self.scorer.batch]
            for i, reward in zip(part, self.scorer.score_tokens([encoded[i] for i in part])):
                rewards[i] = reward
        return rewards
